"""Faster R-CNN and Mask R-CNN with a ResNet and a feature pyramid: torchvision's networks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models import get_model_weights
from torchvision.models.detection import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_Weights,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.misc import FrozenBatchNorm2d

from trainer.annotations import Detections, Examples, Image, Objects, Prediction
from trainer.models.box_augmentation import augment
from trainer.models.catalog import find
from trainer.models.family import Batch, Family, Geometry, Spec
from trainer.models.masks import paste, rasterise
from trainer.models.weights import Published
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

Item = tuple[Tensor, dict[str, Tensor]]


class RCNN(Family):
    """Two-stage detectors. Images keep their aspect ratio; labels inside the network start at 1."""

    requirements = ("torchvision", "opencv-python")

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.backbone = find(spec.model, spec.task).library_name
        self.masks = spec.task is Task.SEGMENTATION
        self._lock = threading.Lock()

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        # Frozen statistics suit small batches, but there are none to freeze in a network from scratch.
        norm = "frozen" if pretrained else "batch"
        return {
            "min_size": settings.min_size,
            "max_size": settings.max_size,
            "norm": norm,
            # Regions an image that the second stage looks at: torchvision's counts.
            "proposals": 1000,
            "sampled_proposals": 512,
        }

    def build(self) -> nn.Module:
        norm_layer = FrozenBatchNorm2d if self.spec.options["norm"] == "frozen" else nn.BatchNorm2d
        backbone = resnet_fpn_backbone(
            backbone_name=self.backbone, weights=None, norm_layer=norm_layer, trainable_layers=5
        )
        network = MaskRCNN if self.masks else FasterRCNN
        proposals = self.spec.options["proposals"]
        built: nn.Module = network(
            backbone,
            num_classes=len(self.spec.classes) + 1,
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_post_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_batch_size_per_image=self.spec.options["sampled_proposals"],
        )
        built.transform = _NormaliseAndPad(1, 1, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
        return built

    def published(self) -> Published:
        head = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
        if self.backbone == "resnet50":
            weights = MaskRCNN_ResNet50_FPN_Weights if self.masks else FasterRCNN_ResNet50_FPN_Weights
            url = weights.COCO_V1.url
            return Published(files=(url.rsplit("/", 1)[1],), url=url, head=head)
        url = get_model_weights(self.backbone).IMAGENET1K_V1.url
        file = url.rsplit("/", 1)[1]
        return Published(files=(file,), url=url, head=head, prefix="backbone.body.", partial=True)

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Resize the short side to min_size unless the long side would pass max_size; values in [0, 1]."""
        height, width = image.shape[:2]
        scale = min(
            self.spec.options["min_size"] / min(height, width),
            self.spec.options["max_size"] / max(height, width),
        )
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        shrinks = scale < 1
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        geometry = Geometry((height, width), size, (size[1] / width, size[0] / height))
        return torch.from_numpy(resized).permute(2, 0, 1).contiguous().float() / 255, geometry

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[dict[str, Tensor]]:
        """boxes [n, 4] in tensor pixels, labels [n], scores [n] and, with masks, masks [n, 1, 28, 28]."""
        roi_heads: Any = network.roi_heads
        transform: Any = network.transform
        images, _ = transform(list(tensors))
        with self._limits(roi_heads, parameters):
            features = network.backbone(images.tensors)  # type: ignore[operator]
            proposals, _ = network.rpn(images, features)  # type: ignore[operator]
            detections: list[dict[str, Tensor]]
            detections, _ = roi_heads(features, proposals, images.image_sizes)
        return detections

    @contextmanager
    def _limits(self, roi_heads: Any, parameters: ScoringParameters) -> Iterator[None]:
        """torchvision keeps the thresholds in the network; one request at a time may set them."""
        with self._lock:
            roi_heads.score_thresh = parameters.box_score_threshold
            roi_heads.nms_thresh = parameters.nms_iou_threshold
            roi_heads.detections_per_img = parameters.box_detections_per_image
            yield

    def postprocess(
        self, output: dict[str, Tensor], geometry: Geometry, parameters: ScoringParameters
    ) -> Prediction:
        order = output["scores"].argsort(descending=True, stable=True)
        boxes = geometry.boxes_to_image(output["boxes"][order].float().cpu().numpy())
        masks = None
        if self.masks:
            probabilities = output["masks"][order, 0].float().cpu().numpy()
            threshold = parameters.mask_pixel_score_threshold
            masks = tuple(
                paste(box, mask, geometry.image_size, threshold)
                for box, mask in zip(boxes, probabilities, strict=True)
            )
        return Detections(
            boxes=boxes,
            labels=output["labels"][order].cpu().numpy() - 1,
            scores=output["scores"][order].float().cpu().numpy(),
            image_size=geometry.image_size,
            masks=masks,
        )

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> Dataset[Item]:
        return _TrainingDataset(self, examples, settings)

    def validation_item(self, image: Tensor, truth: Objects, geometry: Geometry) -> Item:
        return image, self.target(truth, geometry)

    def target(self, truth: Objects, geometry: Geometry) -> dict[str, Tensor]:
        """torchvision's target: boxes in tensor pixels, labels from 1, masks uint8 [n, h, w]. No crowds."""
        kept = np.flatnonzero(~truth.crowd)
        boxes = geometry.boxes_to_tensor(truth.boxes[kept])
        sized = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept, boxes = kept[sized], boxes[sized]
        target = {
            "boxes": torch.from_numpy(boxes).float().reshape(-1, 4),
            "labels": torch.from_numpy(truth.labels[kept] + 1),
        }
        if self.masks:
            assert truth.polygons is not None, "segmentation data hold polygons"
            masks = [rasterise(truth.polygons[i], geometry) for i in kept]
            size = (0, *geometry.tensor_size)
            target["masks"] = (
                torch.from_numpy(np.stack(masks)) if masks else torch.zeros(size, dtype=torch.uint8)
            )
        return target

    def collate(self, items: Sequence[Item]) -> Batch:
        return {"images": [image for image, _ in items], "targets": [target for _, target in items]}

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor]
        if network.training:
            losses = network(list(batch["images"]), batch["targets"])
            return losses
        # In eval mode torchvision gives detections. These three decide it, and batch norms stay in eval mode.
        heads = [network, network.get_submodule("rpn"), network.get_submodule("roi_heads")]
        try:
            for head in heads:
                head.training = True
            losses = network(list(batch["images"]), batch["targets"])
        finally:
            for head in heads:
                head.training = False
        return losses

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """conv1 with its norm, then layer1–4 of the backbone."""
        body = network.get_submodule("backbone.body")
        stem = [body.get_submodule("conv1"), body.get_submodule("bn1")]
        return [stem, *([body.get_submodule(f"layer{i}")] for i in range(1, 5))]


class _NormaliseAndPad(GeneralizedRCNNTransform):
    """torchvision's transform without its resizing: `preprocess` has done that, in the loader's workers."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class _TrainingDataset(Dataset[Item]):
    """With p = .5 a crop around the boxes or an expansion ×1–2, then a flip; then as in `preprocess`."""

    def __init__(self, family: RCNN, examples: Examples, settings: Settings) -> None:
        self.family = family
        self.examples = examples
        self.augments = settings.advanced_settings.apply_automl_train_augmentations

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        example = self.examples[index]
        assert isinstance(example.truth, Objects)
        image, truth = example.image, example.truth
        if self.augments:
            # The loader seeds torch's generator for each item.
            generator = np.random.default_rng(int(torch.randint(2**62, ())))
            image, truth = augment(image, truth, generator)
        tensor, geometry = self.family.preprocess(image)
        return tensor, self.family.target(truth, geometry)


FAMILY = RCNN
