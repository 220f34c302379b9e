"""torchvision's Faster R-CNN, Mask R-CNN, RetinaNet and FCOS, on a ResNet or on a network of timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from trainer.annotations import Detections, Examples, Image, Objects, Prediction
from trainer.models import rcnn_networks
from trainer.models.box_augmentation import augment, flip, jitter_scale
from trainer.models.class_weights import object_weights
from trainer.models.family import Family, TrainingDataset, with_attributes
from trainer.models.geometry import Geometry, Preparation
from trainer.models.graphs import cut_to, in_tensor, pasted, traceable_nms
from trainer.models.heads import FOCAL_PRIOR
from trainer.models.masks import paste, rasterise_all
from trainer.models.rcnn_one_stage import OneStagePass
from trainer.models.rcnn_two_stage import TwoStagePass
from trainer.models.spec import Spec
from trainer.models.tensors import as_detections, as_pixels
from trainer.models.training_items import Batch, Draw, Progress
from trainer.models.transfers import without_waits
from trainer.models.weights.published import PublishedWeights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

Item = tuple[Tensor, dict[str, Tensor]]


class RCNN(Family):
    """Two-stage detectors, and RetinaNet and FCOS with one stage. Images keep their aspect ratio.

    "shared" in a training batch holds `class_weights`, float32 [C] or None.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.one_stage = spec.model.startswith(rcnn_networks.ONE_STAGE)
        # Two stages count the background as class 0; one stage knows no background.
        self.first_label = 0 if self.one_stage else 1
        self.backbone: str = spec.options.get("backbone", "")  # timm/NAME; "" for the ResNet of the name

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        replaced = {}
        if settings.backbone is not None:
            from trainer.models import timm_backbone

            replaced = timm_backbone.options(settings.backbone)
        return {
            **replaced,
            "min_size": settings.min_size,
            "max_size": settings.max_size,
            # Frozen statistics suit small batches, but a network from scratch has none to freeze.
            "norm": "frozen" if pretrained else "batch",
            # Regions of an image that the second stage sees: torchvision's numbers.
            "proposals": 1000,
            "sampled_proposals": 512,
        }

    def build(self) -> nn.Module:
        normalisation = {name: self.spec.options[name] for name in ("mean", "std") if self.backbone}
        return rcnn_networks.build(
            self.spec.model,
            len(self.spec.classes) + self.first_label,
            frozen_norms=self.spec.options["norm"] == "frozen",
            proposals=self.spec.options["proposals"],
            sampled=self.spec.options["sampled_proposals"],
            backbone=self.backbone,
            **normalisation,
        )

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        """The class scores, and the masks; torchvision starts those with a deviation of √(2 / classes)."""
        if self.one_stage:
            return [(network.get_submodule("head.classification_head.cls_logits"), FOCAL_PRIOR)]
        names = ["box_predictor.cls_score", *(["mask_predictor.mask_fcn_logits"] if self.masks else [])]
        return [(network.get_submodule(f"roi_heads.{name}"), 0.5) for name in names]

    def published(self) -> PublishedWeights:
        return rcnn_networks.published(self.spec.model, self.backbone)

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Resize the short side to min_size unless the long side would pass max_size; values in [0, 1]."""
        pixels, geometry = self.resized(image)
        return pixels.contiguous().float() / 255, geometry

    def resized(self, image: Image) -> tuple[Tensor, Geometry]:
        """Do what `preprocess` does with values uint8 in [0, 255]; colours stay interleaved in memory."""
        height, width = image.shape[:2]
        size, scale = self.tensor_size(height, width)
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(image, size[::-1], interpolation=interpolation)
        geometry = Geometry((height, width), size, (size[1] / width, size[0] / height))
        return torch.from_numpy(resized).permute(2, 0, 1), geometry

    def tensor_size(self, height: int, width: int) -> tuple[tuple[int, int], float]:
        """The (height, width) to which an image is resized, and the scale before they are rounded."""
        scale = min(
            self.spec.options["min_size"] / min(height, width),
            self.spec.options["max_size"] / max(height, width),
        )
        return (max(1, round(height * scale)), max(1, round(width * scale))), scale

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[dict[str, Tensor]]:
        """boxes [n, 4] in tensor pixels, labels [n], scores [n] and, with masks, masks [n, 1, 28, 28]."""
        with without_waits(tensors[0].device):
            return self._seen(self._limited(network, parameters), tensors).detections()

    def _seen(self, network: nn.Module, images: Sequence[Tensor]) -> OneStagePass | TwoStagePass:
        """Run the network on images in [0, 1], up to its losses or detections."""
        return (OneStagePass if self.one_stage else TwoStagePass)(network, images)

    def _limited(self, network: nn.Module, parameters: ScoringParameters) -> Any:
        """The network with a request's thresholds, which torchvision keeps in its modules."""
        return with_attributes(
            network,
            "" if self.one_stage else "roi_heads",
            score_thresh=parameters.box_score_threshold,
            nms_thresh=parameters.nms_iou_threshold,
            detections_per_img=parameters.box_detections_per_image,
        )

    def postprocess(
        self, output: dict[str, Tensor], geometry: Geometry, parameters: ScoringParameters
    ) -> Prediction:
        order = output["scores"].argsort(descending=True, stable=True)
        found = {name: values[order].cpu() for name, values in output.items()}
        boxes = geometry.boxes_to_image(found["boxes"].float().numpy())
        masks = None
        if self.masks:
            probabilities = found["masks"][:, 0].float().numpy()
            threshold = parameters.mask_pixel_score_threshold
            masks = tuple(
                paste(box, mask, geometry.image_size, threshold)
                for box, mask in zip(boxes, probabilities, strict=True)
            )
        labels, scores = found["labels"].numpy() - self.first_label, found["scores"].float().numpy()
        return Detections(boxes, labels, scores, geometry.image_size, masks)

    def preparation(self) -> Preparation:
        sizes = {name: self.spec.options[name] for name in ("min_size", "max_size")}
        interpolation = {"interpolation": "area to shrink, bilinear to enlarge"}
        return Preparation({"rule": "keep the aspect ratio", **sizes, **interpolation}, None)

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        """Detect, with masks over the whole image. The network itself normalises by ImageNet's statistics."""
        network = self._limited(network, parameters)
        with traceable_nms():
            if self.one_stage:
                (detections,) = network(list(images))
            else:
                proposals = self.spec.options["proposals"]
                detections = rcnn_networks.traceable_detections(network, images, proposals)
        boxes = in_tensor(detections["boxes"], images)
        labels = detections["labels"] - self.first_label
        answer = {"boxes": boxes, "scores": detections["scores"], "labels": labels}
        if self.masks:
            probabilities = pasted(detections["boxes"], detections["masks"], images)
            answer["masks"] = cut_to(boxes, probabilities >= parameters.mask_pixel_score_threshold)
        return answer

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> TrainingDataset:
        return _TrainingDataset(self, examples, settings)

    def short_side(self, settings: Settings) -> int:
        """Crops around the boxes and the jitter's scales enlarge a part of the image up to twice."""
        return 2 * settings.min_size

    def validation_item(self, image: Tensor, target: Objects, geometry: Geometry) -> Item:
        return image, self.target(target, geometry)

    def target(self, objects: Objects, geometry: Geometry) -> dict[str, Tensor]:
        """torchvision's target: boxes in tensor pixels, labels, masks uint8 [n, h, w]; without crowds."""
        kept = np.flatnonzero(~objects.crowd)
        boxes = geometry.boxes_to_tensor(objects.boxes[kept])
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept, boxes = kept[has_area], boxes[has_area]
        target = {
            "boxes": torch.from_numpy(boxes).float().reshape(-1, 4),
            "labels": torch.from_numpy(objects.labels[kept] + self.first_label),
        }
        if self.masks:
            target["masks"] = torch.from_numpy(rasterise_all(objects, kept, geometry))
        return target

    def collate(self, items: Sequence[Item]) -> Batch:
        return {"images": [image for image, _ in items], "targets": [target for _, target in items]}

    def losses(self, network: nn.Module, batch: Batch, progress: Progress | None = None) -> dict[str, Tensor]:
        # Training images are copied to the device as bytes, a quarter of the size of floats.
        images = [image.float() / 255 if image.dtype == torch.uint8 else image for image in batch["images"]]
        weights = batch.get("shared", {}).get("class_weights")
        with without_waits(images[0].device):
            return self._seen(network, images).losses(batch["targets"], weights)

    def training_view(self, batch: Batch) -> list[tuple[Image, Prediction]]:
        shown: list[tuple[Image, Prediction]] = []
        for tensor, target in zip(batch["images"], batch["targets"], strict=True):
            image = as_pixels(tensor)
            boxes = target["boxes"] / torch.tensor(image.shape[1::-1] * 2)
            labels = target["labels"] - self.first_label
            shown.append((image, as_detections(boxes, labels, image, target.get("masks"))))
        return shown

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[Sequence[dict[str, Tensor]], dict[str, Tensor]]:
        """Run backbone and heads once; a second stage runs for the losses, too."""
        with without_waits(batch["images"][0].device):
            seen = self._seen(self._limited(network, parameters), batch["images"])
            return seen.detections(), seen.losses(batch["targets"], None)

    def parts_to_compile(self, network: nn.Module) -> list[nn.Module]:
        """The backbone; the shapes of what follows differ from image to image."""
        return [network.get_submodule("backbone")]

    def sync_batch_norms(self, network: nn.Module) -> nn.Module:
        if not self.backbone:
            return super().sync_batch_norms(network)
        from trainer.models import timm_backbone

        return timm_backbone.sync_batch_norms(network)

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """A ResNet's conv1 with its norm, then layer1–4; another backbone's parts of the same strides."""
        body = network.get_submodule("backbone.body")
        if self.backbone:
            from trainer.models import timm_backbone

            return timm_backbone.freeze_groups(body)
        stem = [body.get_submodule("conv1"), body.get_submodule("bn1")]
        return [stem, *([body.get_submodule(f"layer{i}")] for i in range(1, 5))]


class _TrainingDataset(TrainingDataset):
    """Images with, at p = .5, a crop around the boxes or an expansion ×1–2, then a flip; then `resized`.

    Large-scale jitter replaces crop and expansion.
    """

    def __init__(self, family: RCNN, examples: Examples, settings: Settings) -> None:
        self.family, self.rcnn = family, family
        self.examples = examples
        self.jitters = settings.large_scale_jitter
        self.augments = settings.advanced_settings.apply_automl_train_augmentations
        classes = len(family.spec.classes)
        self.shared = {"class_weights": object_weights(examples.targets, classes, settings.weighted_loss)}

    def item(self, draw: Draw) -> Item:
        example = self.examples[draw.example]
        assert isinstance(example.target, Objects)
        image, objects = example.image, example.target
        if self.augments or self.jitters:
            generator = np.random.default_rng(int(torch.randint(2**62, ())))
            if self.jitters:
                size, _ = self.rcnn.tensor_size(*image.shape[:2])
                image, objects = jitter_scale(image, objects, size, generator)
            if self.augments:
                image, objects = (flip if self.jitters else augment)(image, objects, generator)
        tensor, geometry = self.rcnn.resized(image)
        return tensor, self.rcnn.target(objects, geometry)

    def collate(self, items: Sequence[Item]) -> Batch:
        return {**self.family.collate(items), "shared": self.shared}


FAMILY = RCNN
