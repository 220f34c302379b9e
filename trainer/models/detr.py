"""DETRs: the detectors and segmenters of `transformers`, with its losses, trained by our own loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from trainer.annotations import Detections, Examples, FloatArray, Image, Mask, Objects, Prediction
from trainer.errors import RunError
from trainer.models import detr_losses, detr_networks
from trainer.models.detr_configs import PUBLISHED
from trainer.models.family import Family, TrainingDataset, with_attributes
from trainer.models.geometry import Geometry, Preparation, stretched_to_square
from trainer.models.graphs import in_tensor, widened
from trainer.models.heads import FOCAL_PRIOR
from trainer.models.masks import logit, paste_prototypes, rasterise_all
from trainer.models.query_items import Item, QueryItems, check_side
from trainer.models.tensors import as_detections, as_pixels, rescaled, stacked, stretched
from trainer.models.training_items import Batch, Progress
from trainer.models.weights.published import PublishedWeights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings


class Output(NamedTuple):
    """One image's raw output.

    Attributes:
        logits: float32 [queries, C]; with a softmax [queries, C + 1], the last for none.
        boxes: float32 [queries, 4]: centre x and y, width, height, normalised.
        masks: logits, float32 [queries, h', w'] over the whole image, or None for a detector.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None


class DETR(Family):
    """Networks that match each object with one of their queries. Images are stretched to squares.

    There is no NMS, so nms_iou_threshold has no effect, and box_detections_per_image has none above the
    number of queries. The losses draw noise and points of masks from torch's global generator.

    "shared" in a training batch holds `class_weights`, float32 [C] or None, and `size` for multi_scale: the
    side, in pixels, to which the batch is resized.
    """

    has_one_size = True

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        published = PUBLISHED[model]
        config = detr_networks.config_of(published)
        changes = changes_of(config, model, settings.image_size, pretrained=pretrained)
        values = {"model_type": published.architecture, **published.values, **changes}
        numbers = {"mean": published.mean, "std": published.std} if published.mean else {}
        return {"image_size": settings.image_size, "config": values, **numbers, **needs_of(config)}

    def options_at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        side, whole = (
            sizes.get("image_size", self.spec.options["image_size"]),
            detr_networks.step(self.config),
        )
        queries = detr_networks.queries(self.config)
        if side % whole or detr_networks.positions(self.config, side) < queries:
            raise RunError(
                f"{self.spec.model} takes images whose side is a multiple of {whole} pixels, with at least "
                f"as many positions as it has queries ({queries}), not {side}"
            )
        return super().options_at(sizes)

    @cached_property
    def config(self) -> Any:
        """The library's configuration of the network."""
        return detr_networks.configured({**self.spec.options["config"], "num_labels": len(self.spec.classes)})

    @property
    def architecture(self) -> detr_networks.Architecture:
        """The facts about the network's architecture."""
        return detr_networks.ARCHITECTURES[self.config.model_type]

    @property
    def has_nms(self) -> bool:
        return False

    @property
    def max_boxes(self) -> int:
        return detr_networks.queries(self.config)

    def build(self) -> nn.Module:
        return detr_networks.build(self.config, masks=self.masks)

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        """The layers with class scores: one for each decoder layer and, in some networks, for the encoder."""
        return [
            (module, 0.5 if self.architecture.softmax else FOCAL_PRIOR)
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and f"{name}.".startswith(self.architecture.heads)
        ]

    def published(self) -> PublishedWeights:
        published = PUBLISHED[self.spec.model]
        repository = published.hub.split("/")[1]
        files = (f"{repository}.safetensors", f"{repository}/model.safetensors")
        return PublishedWeights(
            files=(published.file, *files) if published.file else files,
            hub=published.hub,
            url=published.url,
            md5=published.md5,
            head=self.architecture.heads,
            adapt=detr_networks.fitted,
            licence=published.licence,
        )

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Stretch to the square; normalise as the library's image processor for this architecture does."""
        tensor, geometry = stretched(image, self.spec.options["image_size"])
        return (tensor - self._channels("mean")) / self._channels("std"), geometry

    def _numbers(self, name: str) -> tuple[float, float, float]:
        """The "mean" or "std" of each channel: the model's own, or else its architecture's."""
        red, green, blue = self.spec.options.get(name) or getattr(self.architecture, name)
        return red, green, blue

    def _channels(self, name: str) -> Tensor:
        return torch.tensor(self._numbers(name))[:, None, None]

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Output]:
        return _outputs(network(torch.stack(list(tensors))))

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[Sequence[Output], dict[str, Tensor]]:
        """Run the network once: the losses are computed from its predictions."""
        predictions, losses = self._with_losses(network, batch["images"], batch)
        return _outputs(predictions), losses

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
        """The pairs of query and class with the highest scores, as the library's image processors rank them.

        With a softmax, each query has one class.

        Returns:
            xyxy in tensor pixels [n, 4], scores [n], labels [n] and queries [n].
        """
        if self.architecture.softmax:
            each, labels = output.logits.softmax(-1)[:, :-1].max(-1)
            scores, queries = each.sort(descending=True, stable=True)
            labels = labels[queries]
        else:
            classes = output.logits.shape[1]
            scores, order = output.logits.sigmoid().flatten().sort(descending=True, stable=True)
            queries, labels = order // classes, order % classes
        limit = min(parameters.box_detections_per_image, len(output.logits))
        kept = scores[:limit] >= parameters.box_score_threshold
        scores, labels, queries = (each[:limit][kept] for each in (scores, labels, queries))
        boxes = box_convert(output.boxes[queries], "cxcywh", "xyxy")
        return boxes * self.spec.options["image_size"], scores, labels, queries

    def preparation(self) -> Preparation:
        square = stretched_to_square(self.spec.options["image_size"])
        return replace(square, mean=self._numbers("mean"), std=self._numbers("std"))

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        (output,) = self.infer(network, list(images), parameters)
        boxes, scores, labels, queries = self._chosen(output, parameters)
        detections = {"boxes": in_tensor(boxes, images), "scores": scores, "labels": labels}
        if output.masks is not None:
            wide = widened(output.masks[queries], images)
            detections["masks"] = wide >= logit(parameters.mask_pixel_score_threshold)
        return detections

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> TrainingDataset:
        return QueryItems(self, self.target, examples, settings, self.sizes())

    def validation_item(self, image: Tensor, target: Objects, geometry: Geometry) -> Item:
        return {"image": image, "target": self.target(target, geometry)}

    def target(self, objects: Objects, geometry: Geometry) -> dict[str, Tensor]:
        """The library's target: class_labels [n]; boxes [n, 4], normalised cx, cy, w, h; masks [n, h, w].

        Masks are boolean. Crowds are left out.
        """
        sized = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(axis=1)
        kept = np.flatnonzero(~objects.crowd & sized)
        corners = torch.from_numpy(objects.boxes[kept]).float().reshape(-1, 4)
        boxes = box_convert(corners, "xyxy", "cxcywh")
        target = {"class_labels": torch.from_numpy(objects.labels[kept]), "boxes": boxes}
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
            image = as_pixels(tensor * self._channels("std") + self._channels("mean"))
            boxes = box_convert(target["boxes"], "cxcywh", "xyxy")
            shown.append((image, as_detections(boxes, target["class_labels"], image, target.get("masks"))))
        return shown

    def losses(self, network: nn.Module, batch: Batch, progress: Progress | None = None) -> dict[str, Tensor]:
        """Compute the library's losses of the encoder, of each decoder layer and of denoising."""
        return self._with_losses(network, rescaled(batch), batch)[1]

    def _with_losses(self, network: Any, images: Tensor, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        weights = batch.get("shared", {}).get("class_weights")
        counted = with_attributes(network, "", _loss_function=detr_losses.loss_function(network, weights))
        predictions = counted(images, labels=list(batch["targets"]))
        of_proposals = detr_losses.of_proposals(network, predictions, batch["targets"])
        losses = detr_losses.named({**predictions.loss_dict, **of_proposals}, network.config)
        if network.training and not any(len(target["boxes"]) for target in batch["targets"]):
            # Without objects, some parameters would get no gradient, and other ranks would wait for it.
            unused = [each.sum() for each in network.parameters() if each.requires_grad]
            losses["class_loss"] = losses["class_loss"] + 0 * torch.stack(unused).sum()
        return predictions, losses

    def parts_to_compile(self, network: nn.Module) -> list[nn.Module]:
        """The modules before the decoder, whose shapes depend on the number of objects in a batch."""
        return detr_networks.before_decoder(network)

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The embedding of the image, then the backbone's stages or blocks."""
        return detr_networks.backbone_groups(network)

    def sizes(self) -> range:
        """The sides that multi_scale draws from: ±50 %, but with at least as many positions as queries."""
        side, whole = self.spec.options["image_size"], detr_networks.step(self.config)
        least = -(-(side // 2) // whole) * whole
        while detr_networks.positions(self.config, least) < detr_networks.queries(self.config):
            least += whole
        return range(least, side * 3 // 2 + 1, whole)


def _outputs(predictions: Any) -> list[Output]:
    masks = getattr(predictions, "pred_masks", None)
    logits, boxes = predictions.logits.float(), predictions.pred_boxes.float()
    grids = [None] * len(logits) if masks is None else masks
    return [Output(*output) for output in zip(logits, boxes, grids, strict=True)]


def _mask(box: FloatArray, grid: FloatArray, geometry: Geometry, threshold: float) -> Mask:
    """A mask's logits [h', w'] over the image → its pixels, sampled bilinearly and not cropped to the box."""
    rows, columns = np.nonzero(grid >= logit(threshold))
    if len(rows):
        # Between the centres of two cells the logit is between the two.
        first = np.array([columns.min(), rows.min()]) - 0.5
        last = np.array([columns.max(), rows.max()]) + 1.5
        box = (np.concatenate([first, last]) / [*grid.shape[::-1], *grid.shape[::-1]]).clip(0, 1)
    return paste_prototypes(
        box.astype(np.float32), np.ones(1, dtype=np.float32), grid[None], geometry, threshold
    )


def changes_of(config: Any, model: str, side: int, *, pretrained: bool) -> dict[str, Any]:
    """What changes in a published configuration for images of a size, and for the start of the network.

    Args:
        side: of the images, in pixels.
        pretrained: the network will start from weights, not from scratch.

    Raises:
        JobError: the network takes no images of that size.
    """
    check_side(model, side, detr_networks.step(config))
    layers_have_losses = detr_networks.ARCHITECTURES[config.model_type].layers_have_losses
    # Each query starts from a position of its own.
    values: dict[str, Any] = {
        **detr_networks.queries_at(config, side),
        "auxiliary_loss": layers_have_losses,
    }
    if hasattr(config, "initializer_bias_prior_prob"):
        # As the authors set it. With the library's 1 / (classes + 1), few classes give huge first losses.
        values["initializer_bias_prior_prob"] = FOCAL_PRIOR
    if not pretrained and detr_networks.can_freeze_norms(config):
        values["freeze_backbone_batch_norms"] = False  # there are no statistics to keep
    return values


def needs_of(config: Any) -> dict[str, Any]:
    """The option of a spec that says whether its network needs timm, as the family's card names it."""
    return {"timm": True} if detr_networks.uses_timm(config) else {}


FAMILY = DETR
