"""Faster R-CNN and Mask R-CNN with a ResNet and a feature pyramid: torchvision's networks."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
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

from trainer.annotations import Detections, Examples, FloatArray, Image, Mask, Objects, Prediction
from trainer.models.catalog import find
from trainer.models.family import Batch, Family, Geometry, Spec
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


def rasterise(polygons: Sequence[FloatArray], geometry: Geometry) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Normalised polygons of one object → uint8 [h, w] of 0 and 1 in tensor pixels."""
    height, width = geometry.image_size
    factor = np.array([width * geometry.scale[0], height * geometry.scale[1]])
    canvas = np.zeros(geometry.tensor_size, dtype=np.uint8)
    # A pixel is filled where its centre lies inside: shift by half a pixel, with 4 fractional bits.
    points = [
        np.rint((polygon * factor + geometry.offset - 0.5) * 16).astype(np.int32) for polygon in polygons
    ]
    cv2.fillPoly(canvas, points, (1,), shift=4)
    return canvas


def paste(box: FloatArray, mask: FloatArray, image_size: tuple[int, int], threshold: float) -> Mask:
    """A mask head's probabilities [m, m] over a normalised box → the pixels of the image it covers.

    Sampled bilinearly at the pixel centres, as in He et al. 2017, with the border padded by zeros.
    """
    height, width = image_size
    x1, y1, x2, y2 = (float(v) for v in box * np.array([width, height, width, height], dtype=np.float32))
    left, top = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
    right, bottom = min(width, max(left + 1, int(np.ceil(x2)))), min(height, max(top + 1, int(np.ceil(y2))))
    size = mask.shape[0]
    columns = ((np.arange(left, right) + 0.5 - x1) / max(x2 - x1, 1e-6) * size - 0.5).astype(np.float32)
    rows = ((np.arange(top, bottom) + 0.5 - y1) / max(y2 - y1, 1e-6) * size - 0.5).astype(np.float32)
    grid_x, grid_y = np.meshgrid(columns, rows)
    sampled = cv2.remap(mask, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return Mask(left, top, sampled >= threshold)


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


def augment(image: Image, truth: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Crop or expand (p = .5), then flip (p = .5)."""
    if generator.random() < 0.5:
        change = _crop if generator.random() < 0.5 else _expand
        image, truth = change(image, truth, generator)
    if generator.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        truth = _moved(truth, np.array([-1.0, 1.0]), np.array([1.0, 0.0]))
    return image, truth


def _crop(image: Image, truth: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Cut away a random part of the margin around all the boxes, so that no object is cut."""
    if not len(truth.boxes):
        return image, truth
    height, width = image.shape[:2]
    left, top = generator.uniform(0, truth.boxes[:, :2].min(axis=0))
    right, bottom = generator.uniform(truth.boxes[:, 2:].max(axis=0), 1)
    x1, y1, x2, y2 = (
        int(left * width),
        int(top * height),
        math.ceil(right * width),
        math.ceil(bottom * height),
    )
    scale = np.array([width / (x2 - x1), height / (y2 - y1)])
    return image[y1:y2, x1:x2], _moved(truth, scale, np.array([-x1 / (x2 - x1), -y1 / (y2 - y1)]))


def _expand(image: Image, truth: Objects, generator: np.random.Generator) -> tuple[Image, Objects]:
    """Place the image at random on a canvas up to twice as large, in the ImageNet mean colour."""
    height, width = image.shape[:2]
    factor = generator.uniform(1, 2)
    size = (int(height * factor), int(width * factor))
    top, left = generator.integers(0, size[0] - height + 1), generator.integers(0, size[1] - width + 1)
    canvas = np.full((*size, 3), (124, 116, 104), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = image
    scale = np.array([width / size[1], height / size[0]])
    return canvas, _moved(truth, scale, np.array([left / size[1], top / size[0]]))


def _moved(truth: Objects, scale: npt.NDArray[np.float64], shift: npt.NDArray[np.float64]) -> Objects:
    """Objects under (x, y) → (x, y) · scale + shift, in normalised coordinates; a negative scale mirrors."""
    corners = truth.boxes.reshape(-1, 2, 2) * scale + shift
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).clip(0, 1).astype(np.float32)
    polygons = truth.polygons and tuple(
        tuple((polygon * scale + shift).astype(np.float32) for polygon in segments)
        for segments in truth.polygons
    )
    return Objects(boxes, truth.labels, truth.crowd, polygons)


FAMILY = RCNN
