"""Mask transformers: the segmenters Mask2Former and EoMT of `transformers`, whose boxes follow from masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from trainer.annotations import Detections, Examples, FloatArray, Image, Mask, Objects, Prediction
from trainer.errors import RunError
from trainer.models import mask_losses, mask_networks
from trainer.models.family import Family, TrainingDataset
from trainer.models.geometry import Geometry, Preparation
from trainer.models.graphs import widened
from trainer.models.mask_networks import PUBLISHED, Predictions
from trainer.models.masks import logit, paste_prototypes, rasterise_all
from trainer.models.query_items import Item, QueryItems, check_side
from trainer.models.tensors import as_detections, as_pixels, rescaled, stacked, stretched
from trainer.models.training_items import Batch, Progress
from trainer.models.weights.published import PublishedWeights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

_INSIDE = 0.5
"""The probability from which on a pixel is inside a mask, for the score and the box."""


class Output(NamedTuple):
    """One image's raw output, by descending score.

    Attributes:
        scores: float32 [n].
        labels: [n].
        masks: logits, float32 [n, h', w'] over the whole tensor.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor


class MaskTransformer(Family):
    """Segmenters that learn to give each object one of their queries' masks.

    Mask2Former sees images stretched to a square; EoMT sees them with their aspect ratio in a square, whose
    rest is black on the right or at the bottom.

    There is no NMS, so nms_iou_threshold has no effect, and box_detections_per_image has none above the
    number of queries. The losses draw points of masks from torch's global generator.

    "shared" in a training batch holds `class_weights`, float32 [C] or None, and `size` for multi_scale: the
    side, in pixels, to which the batch is resized.
    """

    has_one_size = True

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        published, side = PUBLISHED[model], settings.image_size
        values = {"model_type": published.architecture, **published.values}
        config = mask_networks.configured(values)
        check_side(model, side, mask_networks.step(config))
        if mask_networks.is_eomt(config):
            values["image_size"] = side
        return {"image_size": side, "config": values}

    def options_at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        if self._pads:
            self._keep_size(sizes, "image_size")
        side, whole = sizes.get("image_size", self.spec.options["image_size"]), self._step
        if side % whole:
            raise RunError(f"{self.spec.model} takes images of a multiple of {whole} pixels, not {side}")
        return super().options_at(sizes)

    @cached_property
    def config(self) -> Any:
        """The library's description of the network."""
        values = {**self.spec.options["config"], "num_labels": len(self.spec.classes)}
        return mask_networks.configured(values)

    @property
    def _pads(self) -> bool:
        return mask_networks.is_eomt(self.config)

    @property
    def _step(self) -> int:
        return mask_networks.step(self.config)

    def build(self) -> nn.Module:
        return mask_networks.build(self.config)

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        return [(network.get_submodule("class_predictor"), 0.5)]

    def published(self) -> PublishedWeights:
        published = PUBLISHED[self.spec.model]
        repository = published.hub.partition("/")[2]
        return PublishedWeights(
            files=(f"{repository}.safetensors", f"{repository}/model.safetensors"),
            hub=published.hub,
            head=mask_networks.HEADS,
            adapt=mask_networks.fitted,
            licence=published.licence,
        )

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Stretch to a square, or fit into it; normalise as the library's image processors do."""
        side = self.spec.options["image_size"]
        tensor, geometry = _fitted(image, side) if self._pads else stretched(image, side)
        return (tensor - _channels(mask_networks.MEAN)) / _channels(mask_networks.STD), geometry

    def inner_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image has in its tensor, without what is black."""
        side = self.spec.options["image_size"]
        return _inner_size(height, width, side) if self._pads else (side, side)

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Output]:
        images = torch.stack(list(tensors))
        return self._outputs(mask_networks.final(network, images), images, parameters)

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[Sequence[Output], dict[str, Tensor]]:
        """Run the network once: the losses are computed from its predictions."""
        predictions, losses = self._with_losses(network, batch["images"], batch)
        return self._outputs(predictions, batch["images"], parameters), losses

    def _outputs(
        self, predictions: Predictions, images: Tensor, parameters: ScoringParameters
    ) -> list[Output]:
        pairs = zip(predictions.classes.float(), predictions.masks.float(), strict=True)
        return [_chosen(classes, masks, images, parameters) for classes, masks in pairs]

    def postprocess(self, output: Output, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        """Masks without a pixel are left out, as the library's image processors do."""
        reached = output.scores >= parameters.box_score_threshold
        scores, labels = output.scores[reached].cpu().numpy(), output.labels[reached].cpu().numpy()
        threshold = parameters.mask_pixel_score_threshold
        boxes, masks, kept = [], [], []
        for index, grid in enumerate(output.masks[reached].float().cpu().numpy()):
            inside = _mask(grid, geometry, _INSIDE)
            if not inside.pixels.any():
                continue
            kept.append(index)
            boxes.append(_box(inside, geometry))
            masks.append(inside if threshold == _INSIDE else _mask(grid, geometry, threshold))
        corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        return Detections(corners, labels[kept], scores[kept], geometry.image_size, tuple(masks))

    def preparation(self) -> Preparation:
        side = self.spec.options["image_size"]
        rule = "keep the aspect ratio, in the square's upper left corner" if self._pads else "stretch"
        resizing = {"rule": rule, "side": side, "interpolation": "bilinear"}
        if self._pads:
            resizing["fill"] = 0
        return Preparation(resizing, (side, side), mask_networks.MEAN, mask_networks.STD)

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        (output,) = self.infer(network, list(images), parameters)
        wide = widened(output.masks, images)
        inside = wide >= logit(_INSIDE)
        kept = (output.scores >= parameters.box_score_threshold) & inside.flatten(1).any(dim=1)
        return {
            "boxes": _bounds(inside[kept]),
            "scores": output.scores[kept],
            "labels": output.labels[kept],
            "masks": wide[kept] >= logit(parameters.mask_pixel_score_threshold),
        }

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> TrainingDataset:
        jittered = self.inner_size if settings.large_scale_jitter else None
        return QueryItems(self, self.target, examples, settings, self.sizes(), jittered)

    def short_side(self, settings: Settings) -> int:
        """Crops around the boxes and the jitter's scales enlarge a part of the image up to twice."""
        return 2 * settings.image_size

    def validation_item(self, image: Tensor, target: Objects, geometry: Geometry) -> Item:
        return {"image": image, "target": self.target(target, geometry)}

    def target(self, objects: Objects, geometry: Geometry) -> dict[str, Tensor]:
        """class_labels [n] and masks, bool [n, h, w], without crowds and objects that cover no pixel."""
        kept = np.flatnonzero(~objects.crowd)
        masks = rasterise_all(objects, kept, geometry).view(np.bool_)
        seen = masks.any(axis=(1, 2))
        labels = torch.from_numpy(objects.labels[kept[seen]])
        return {"class_labels": labels, "masks": torch.from_numpy(masks[seen])}

    def collate(self, items: Sequence[Item]) -> Batch:
        return {
            "images": stacked([item["image"] for item in items]),
            "targets": [item["target"] for item in items],
        }

    def training_view(self, batch: Batch) -> list[tuple[Image, Prediction]]:
        shown: list[tuple[Image, Prediction]] = []
        for tensor, target in zip(rescaled(batch), batch["targets"], strict=True):
            image = as_pixels(tensor * _channels(mask_networks.STD) + _channels(mask_networks.MEAN))
            masks = target["masks"]
            # masks_to_boxes gives the last pixels, not the edges behind them.
            boxes = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
            boxes = boxes / torch.tensor(masks.shape[:0:-1] * 2)
            shown.append((image, as_detections(boxes, target["class_labels"], image, masks)))
        return shown

    def losses(self, network: nn.Module, batch: Batch, progress: Progress | None = None) -> dict[str, Tensor]:
        """Compute the library's losses of all layers: of the classes, of masks' pixels and of their dice."""
        return self._with_losses(network, rescaled(batch), batch)[1]

    def _with_losses(
        self, network: nn.Module, images: Tensor, batch: Batch
    ) -> tuple[Predictions, dict[str, Tensor]]:
        layers = mask_networks.all_layers(network, images)
        weights = batch.get("shared", {}).get("class_weights")
        return layers[-1], mask_losses.losses(network, layers, batch["targets"], weights)

    def parts_to_compile(self, network: nn.Module) -> list[nn.Module]:
        """A Mask2Former's backbone; all layers of an EoMT."""
        return mask_networks.parts_to_compile(network)

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The embedding of the image, then the backbone's stages or layers."""
        return mask_networks.backbone_groups(network)

    def sizes(self) -> range:
        """The sides that multi_scale draws from: ±50 %."""
        side, whole = self.spec.options["image_size"], self._step
        return range(-(-(side // 2) // whole) * whole, side * 3 // 2 + 1, whole)


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _inner_size(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _fitted(image: Image, side: int) -> tuple[Tensor, Geometry]:
    """Resize an image until its long side has `side` pixels, in the upper left corner of a black square.

    Returns:
        float32 [3, side, side] in [0, 1].
    """
    height, width = image.shape[:2]
    rows, columns = _inner_size(height, width, side)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[:rows, :columns] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    geometry = Geometry((height, width), (side, side), (columns / width, rows / height))
    return torch.from_numpy(square).permute(2, 0, 1).contiguous().float() / 255, geometry


def _chosen(classes: Tensor, masks: Tensor, images: Tensor, parameters: ScoringParameters) -> Output:
    """The pairs of query and class with the highest scores: the class's times the quality of the mask.

    The quality is the mean probability of the pixels that are inside, as in the library's image processor of
    Mask2Former and in the evaluation of EoMT's authors.

    Args:
        classes: logits [queries, C + 1].
        masks: logits [queries, h', w'].
        images: [B, 3, h, w]; the quality is measured at their size.
    """
    queries, count = len(classes), classes.shape[1] - 1
    best, pairs = classes.softmax(dim=-1)[:, :-1].flatten().topk(queries)
    wide = widened(masks, images)
    inside = (wide > 0).to(wide)
    quality = (wide.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores, order = (best * quality[pairs // count]).sort(descending=True, stable=True)
    limit = min(parameters.box_detections_per_image, queries)
    pairs = pairs[order[:limit]]
    return Output(scores[:limit], pairs % count, masks[pairs // count])


def _mask(grid: FloatArray, geometry: Geometry, threshold: float) -> Mask:
    """A mask's logits [h', w'] over the tensor → its pixels of the image, sampled bilinearly."""
    rows, columns = np.nonzero(grid >= logit(threshold))
    if not len(rows):
        return Mask(0, 0, np.zeros((1, 1), dtype=np.bool_))
    # Between the centres of two cells the logit is between the two.
    cells = np.array([columns.min() - 0.5, rows.min() - 0.5, columns.max() + 1.5, rows.max() + 1.5])
    pixels = cells * (np.array(geometry.tensor_size[::-1]) / grid.shape[::-1])[[0, 1, 0, 1]]
    box = geometry.boxes_to_image(pixels.astype(np.float32))
    return paste_prototypes(box, np.ones(1, dtype=np.float32), grid[None], geometry, threshold)


def _box(mask: Mask, geometry: Geometry) -> list[float]:
    """The normalised box around a mask's pixels."""
    height, width = geometry.image_size
    left, top, columns, rows = cv2.boundingRect(mask.pixels.astype(np.uint8))
    x, y = mask.left + left, mask.top + top
    return [x / width, y / height, (x + columns) / width, (y + rows) / height]


def _bounds(masks: Tensor) -> Tensor:
    """The boxes around masks, bool [n, h, w], for torch.export: xyxy in pixels, float32 [n, 4]."""
    edges = []
    for pixels in (masks.any(dim=1), masks.any(dim=2)):  # columns, then rows
        places = torch.arange(pixels.shape[1], device=masks.device)
        first = torch.where(pixels, places, pixels.shape[1]).amin(dim=1)
        last = torch.where(pixels, places + 1, 0).amax(dim=1)
        edges.append((first, last))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).float()


FAMILY = MaskTransformer
