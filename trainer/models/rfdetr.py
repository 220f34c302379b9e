"""RF-DETR, detectors and segmenters on DINOv2: rfdetr's networks and losses, trained by our own loop.

rfdetr is an extra, `pip install 'image-trainer[rfdetr]'`; only this file and rfdetr_class_weights.py import
it, when one of its models is used. Its XL and 2XL detectors are not offered: they belong to another package,
which is not under Apache-2.0.
"""

from __future__ import annotations

import logging
import math
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from trainer.annotations import Detections, Examples, FloatArray, Image, Mask, Objects, Prediction
from trainer.errors import JobError, Problem
from trainer.models.box_augmentation import augment
from trainer.models.catalog import find
from trainer.models.class_weights import object_weights
from trainer.models.family import Family, TrainingDataset
from trainer.models.geometry import Geometry, Preparation, stretched_to_square
from trainer.models.graphs import in_tensor, widened
from trainer.models.heads import FOCAL_PRIOR
from trainer.models.masks import logit, paste_prototypes, rasterise_all
from trainer.models.tensors import as_detections, as_pixels, rescaled, stacked, stretched
from trainer.models.training_items import Batch, Draw, Progress
from trainer.models.weights.published import PublishedWeights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

with warnings.catch_warnings():
    # It uses deprecated parts of torch, and advertises its other package.
    warnings.simplefilter("ignore")
    from rfdetr import config as library
    from rfdetr.assets.model_weights import ModelWeights
    from rfdetr.models import build_criterion_from_config, build_model_from_config

    from trainer.models.rfdetr_class_weights import WeighingCriterion

if TYPE_CHECKING:
    from trainer.settings import Settings

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

_LOSSES = {
    "class_loss": "loss_ce",
    "box_loss": "loss_bbox",
    "giou_loss": "loss_giou",
    "mask_loss": "loss_mask_ce",
    "dice_loss": "loss_mask_dice",
}
_ENCODER = "backbone.0.encoder.encoder."
_QUERIES = ("refpoint_embed.weight", "query_feat.weight")
_KEYPOINTS = "_kp_active_mask"  # an empty buffer of networks without keypoints, which older files lack

Item = dict[str, Any]


class Output(NamedTuple):
    """One image's raw output.

    Attributes:
        logits: float32 [queries, C].
        boxes: float32 [queries, 4]: centre x and y, width, height, normalised.
        masks: logits, float32 [queries, h/4, w/4] over the whole image, or None for a detector without masks.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None


class RFDETR(Family):
    """Detectors that learn to give each object one of their queries' boxes. Images are stretched to a square.

    There is no NMS, so nms_iou_threshold has no effect, and box_detections_per_image has none above the
    number of queries. The mask loss draws its points from torch's global generator.

    "shared" in a training batch holds `class_weights`, float32 [C] or None, and `size` for multi_scale: the
    side, in pixels, to which the batch is resized.
    """

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        config = _config(task, model)
        side = settings.image_size
        whole = config.patch_size * config.num_windows
        if side % whole:
            near = sorted({max(whole, side // whole * whole), -(-side // whole) * whole})
            rule = f"must be a multiple of {whole} for {model}"
            hint = f"take {' or '.join(map(str, near))}"
            raise JobError("the settings cannot be used:", [Problem("", "image_size", rule, str(side), hint)])
        return {
            "image_size": side,
            # Each query starts from a patch of its own; with too few patches, groups of queries would mix.
            "queries": min(config.num_queries, (side // config.patch_size) ** 2),
            "decoder_layers": config.dec_layers,
        }

    def options_at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        self._keep_size(sizes, "image_size")
        return super().options_at(sizes)

    @cached_property
    def config(self) -> Any:
        """rfdetr's description of the network."""
        return _config(
            self.spec.task,
            self.spec.model,
            num_classes=len(self.spec.classes),
            num_queries=self.spec.options["queries"],
            dec_layers=self.spec.options["decoder_layers"],
        )

    @cached_property
    def criterion(self) -> Any:
        """rfdetr's losses, which hold no tensors."""
        kind = library.SegmentationTrainConfig if self.masks else library.TrainConfig
        criterion = build_criterion_from_config(self.config, kind(dataset_dir=".", output_dir="."))[0]
        criterion.__class__ = WeighingCriterion  # which adds no state
        return criterion

    def build(self) -> nn.Module:
        with _quiet():
            network: nn.Module = build_model_from_config(self.config)
        # It is for pretraining only; several ranks would wait for its gradient.
        network.get_submodule(_ENCODER + "embeddings").mask_token.requires_grad_(False)
        return network

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        """The scores of the decoder, and of the encoder for each group of queries."""
        encoder: Any = network.get_submodule("transformer.enc_out_class_embed")
        return [(layer, FOCAL_PRIOR) for layer in (network.get_submodule("class_embed"), *encoder)]

    def published(self) -> PublishedWeights:
        file = ModelWeights.from_filename(type(self.config).model_fields["pretrain_weights"].default)
        return PublishedWeights(
            files=(file.filename,),
            url=file.url,
            md5=file.md5_hash or "",
            head=("class_embed.", "transformer.enc_out_class_embed."),
            adapt=lambda tensors, network: _fitted(tensors, network, self.config.group_detr),
            licence=self.config.license.lower(),
        )

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Stretch to the square, as rfdetr's `predict` does, and normalise by ImageNet's statistics."""
        tensor, geometry = stretched(image, self.spec.options["image_size"])
        return (tensor - IMAGENET_MEAN) / IMAGENET_STD, geometry

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Output]:
        return self._outputs(network(torch.stack(list(tensors))))

    def _outputs(self, predictions: Mapping[str, Any]) -> list[Output]:
        # The last logit belongs to no class: rfdetr numbers classes from 0 or from 1.
        logits = predictions["pred_logits"][..., : len(self.spec.classes)]
        masks = predictions["pred_masks"] if self.masks else [None] * len(logits)
        return [Output(*output) for output in zip(logits, predictions["pred_boxes"], masks, strict=True)]

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[Sequence[Output], dict[str, Tensor]]:
        """Run the network once: the losses are computed from its predictions."""
        predictions = network(batch["images"])
        return self._outputs(predictions), self._losses(network, predictions, batch)

    def postprocess(self, output: Output, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        *chosen, queries = self._chosen(output, parameters)
        corners, scores, labels = (each.cpu().numpy() for each in chosen)
        boxes = geometry.boxes_to_image(corners)
        masks = None
        if output.masks is not None:
            grids = output.masks[queries].float().cpu().numpy()
            threshold = parameters.mask_pixel_score_threshold
            masks = tuple(_mask(*pair, geometry, threshold) for pair in zip(boxes, grids, strict=True))
        return Detections(boxes, labels, scores, geometry.image_size, masks)

    def _chosen(self, output: Output, parameters: ScoringParameters) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pairs of query and class with the highest scores, as rfdetr ranks them.

        Returns:
            xyxy in tensor pixels [n, 4], scores [n], labels [n] and queries [n].
        """
        queries, classes = output.logits.shape
        scores, order = output.logits.sigmoid().flatten().sort(descending=True, stable=True)
        limit = min(parameters.box_detections_per_image, queries)
        kept = scores[:limit] >= parameters.box_score_threshold
        scores, order = scores[:limit][kept], order[:limit][kept]
        boxes = box_convert(output.boxes[order // classes], "cxcywh", "xyxy")
        boxes = boxes * self.spec.options["image_size"]
        return boxes, scores, order % classes, order // classes

    def preparation(self) -> Preparation:
        mean, std = IMAGENET_MEAN.flatten().tolist(), IMAGENET_STD.flatten().tolist()
        return replace(stretched_to_square(self.spec.options["image_size"]), mean=tuple(mean), std=tuple(std))

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        (output,) = self.infer(network, list(images), parameters)
        boxes, scores, labels, queries = self._chosen(output, parameters)
        detections = {"boxes": in_tensor(boxes, images), "scores": scores, "labels": labels}
        if output.masks is not None:
            wide = widened(output.masks[queries], images)
            detections["masks"] = wide >= logit(parameters.mask_pixel_score_threshold)
        return detections

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> TrainingDataset:
        return _TrainingDataset(self, examples, settings)

    def validation_item(self, image: Tensor, target: Objects, geometry: Geometry) -> Item:
        return {"image": image, "target": self.target(target, geometry)}

    def target(self, objects: Objects, geometry: Geometry) -> dict[str, Tensor]:
        """rfdetr's target: labels; boxes, normalised cx, cy, w, h; masks bool [n, h, w]; without crowds."""
        sized = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(axis=1)
        kept = np.flatnonzero(~objects.crowd & sized)
        corners = torch.from_numpy(objects.boxes[kept]).float().reshape(-1, 4)
        boxes = box_convert(corners, "xyxy", "cxcywh")
        target = {"labels": torch.from_numpy(objects.labels[kept]), "boxes": boxes}
        if self.masks:
            masks = rasterise_all(objects, kept, geometry)
            target["masks"] = torch.from_numpy(masks.view(np.bool_))  # without a copy
        return target

    def collate(self, items: Sequence[Item]) -> Batch:
        return {
            "images": stacked([item["image"] for item in items]),
            "targets": [item["target"] for item in items],
        }

    def training_view(self, batch: Batch) -> list[tuple[Image, Prediction]]:
        shown: list[tuple[Image, Prediction]] = []
        for tensor, target in zip(rescaled(batch), batch["targets"], strict=True):
            image = as_pixels(tensor * IMAGENET_STD + IMAGENET_MEAN)
            boxes = box_convert(target["boxes"], "cxcywh", "xyxy")
            shown.append((image, as_detections(boxes, target["labels"], image, target.get("masks"))))
        return shown

    def losses(self, network: nn.Module, batch: Batch, progress: Progress | None = None) -> dict[str, Tensor]:
        """Compute rfdetr's losses of the encoder and of each decoder layer; in training for all query groups.

        rfdetr sums them over the layers. This is their mean, because a network from scratch would seem to
        diverge otherwise; for adamw, and with a clipped gradient norm, the two are equivalent.
        """
        return self._losses(network, network(rescaled(batch)), batch)

    def _losses(self, network: nn.Module, predictions: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        self.criterion.train(network.training)
        self.criterion.weights = batch.get("shared", {}).get("class_weights")
        targets = list(batch["targets"])
        # Without a divisor it divides by the objects of all ranks and waits for ranks without a batch.
        groups = self.criterion.group_detr if network.training else 1
        objects = max(1, groups * sum(len(target["labels"]) for target in targets))
        divisor = torch.tensor(float(objects), device=predictions["pred_logits"].device)
        all_losses = self.criterion(predictions, targets, divisor)
        factors: Mapping[str, float] = self.criterion.weight_dict
        layers = self.config.dec_layers + 1
        losses = {}
        for name, key in _LOSSES.items():
            of_layers = re.compile(rf"{key}(_\d+|_enc)?")
            parts = [all_losses[part] * factors[part] for part in factors if of_layers.fullmatch(part)]
            if parts:
                losses[name] = torch.stack(parts).sum() / layers
        return losses

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The embedding of patches and positions, then the backbone's 12 blocks."""
        blocks = network.get_submodule(_ENCODER + "encoder.layer").children()
        return [[network.get_submodule(_ENCODER + "embeddings")], *([block] for block in blocks)]

    def sizes(self) -> range:
        """The sides that multi_scale draws from: ±50 %, but with at least as many patches as queries."""
        side, patch = self.spec.options["image_size"], self.config.patch_size
        whole = patch * self.config.num_windows
        least = max(side // 2, math.ceil(math.sqrt(self.spec.options["queries"])) * patch)
        return range(-(-least // whole) * whole, side * 3 // 2 + 1, whole)


def _config(task: Task, model: str, **values: Any) -> Any:
    """rfdetr's configuration of a model, not validated: validation would warn about our values."""
    kind = getattr(library, f"{find(model, task).library_name}Config")
    return kind.model_construct(device="cpu", **values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress rfdetr's warning that DINOv2's own weights are not loaded; its own files replace them."""
    logger = logging.getLogger("rf-detr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fitted(tensors: dict[str, Tensor], network: nn.Module, groups: int) -> dict[str, Tensor]:
    """Take as many queries of each group as the network has.

    Networks for small images have fewer than the published file, and so has rfdetr's own seg-large.
    """
    own = network.state_dict()
    fitted = {_KEYPOINTS: own[_KEYPOINTS], **tensors}
    for name in _QUERIES:
        value = tensors.get(name)
        if value is not None and len(value) > len(own[name]) and len(value) % groups == 0:
            fitted[name] = value.view(groups, -1, value.shape[1])[:, : len(own[name]) // groups].flatten(0, 1)
    return fitted


def _mask(box: FloatArray, grid: FloatArray, geometry: Geometry, threshold: float) -> Mask:
    """A mask's logits [h', w'] over the image → its pixels, sampled as rfdetr samples them.

    rfdetr does not crop masks to their boxes.
    """
    rows, columns = np.nonzero(grid >= logit(threshold))
    if len(rows):
        # Between the centres of two cells the logit is between the two.
        first = np.array([columns.min(), rows.min()]) - 0.5
        last = np.array([columns.max(), rows.max()]) + 1.5
        box = (np.concatenate([first, last]) / [*grid.shape[::-1], *grid.shape[::-1]]).clip(0, 1)
    return paste_prototypes(
        box.astype(np.float32), np.ones(1, dtype=np.float32), grid[None], geometry, threshold
    )


class _TrainingDataset(TrainingDataset):
    """Preprocessed images; before, at p = .5, cropped around the boxes or expanded ×1–2, then flipped."""

    def __init__(self, family: RFDETR, examples: Examples, settings: Settings) -> None:
        self.family, self.target = family, family.target
        self.examples = examples
        self.augments = settings.advanced_settings.apply_automl_train_augmentations
        self.sizes = family.sizes() if settings.multi_scale else None
        self.largest_size = self.sizes[-1] if self.sizes else None
        classes = len(family.spec.classes)
        self.class_weights = object_weights(examples.targets, classes, settings.weighted_loss)

    def item(self, draw: Draw) -> Item:
        example = self.examples[draw.example]
        assert isinstance(example.target, Objects)
        image, objects = example.image, example.target
        if self.augments:
            generator = np.random.default_rng(int(torch.randint(2**62, ())))
            image, objects = augment(image, objects, generator)
        tensor, geometry = self.family.preprocess(image)
        item: Item = {"image": tensor, "target": self.target(objects, geometry)}
        if self.sizes:
            item["size"] = random.choice(self.sizes)
        return item

    def collate(self, items: Sequence[Item]) -> Batch:
        """Batch the items; the first one's size applies to all."""
        shared = {"size": items[0]["size"]} if self.sizes else {}
        shared["class_weights"] = self.class_weights
        return {**self.family.collate(items), "shared": shared}


FAMILY = RFDETR
