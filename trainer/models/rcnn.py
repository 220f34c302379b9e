"""Faster R-CNN, Mask R-CNN, RetinaNet and FCOS on a ResNet with a feature pyramid: torchvision's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models import get_model_weights
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    RetinaNet,
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn_v2,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from trainer.annotations import Detections, Examples, Image, Objects, Prediction
from trainer.models.box_augmentation import augment, flip, jitter_scale
from trainer.models.catalog import find
from trainer.models.family import Batch, Family, Geometry, Preparation
from trainer.models.graphs import cut_to, filled, in_tensor, pasted, rounded_up, traceable_nms
from trainer.models.masks import paste, rasterise
from trainer.models.spec import Spec
from trainer.models.weights.loading import Published
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

_ONE_STAGE = ("retinanet", "retinanet_v2", "fcos")
_BUILDERS = {
    "fasterrcnn_v2": fasterrcnn_resnet50_fpn_v2,
    "maskrcnn_v2": maskrcnn_resnet50_fpn_v2,
    "retinanet_v2": retinanet_resnet50_fpn_v2,
}
_COCO_WEIGHTS: dict[str, Any] = {
    "fasterrcnn": FasterRCNN_ResNet50_FPN_Weights,
    "fasterrcnn_v2": FasterRCNN_ResNet50_FPN_V2_Weights,
    "maskrcnn": MaskRCNN_ResNet50_FPN_Weights,
    "maskrcnn_v2": MaskRCNN_ResNet50_FPN_V2_Weights,
    "retinanet": RetinaNet_ResNet50_FPN_Weights,
    "retinanet_v2": RetinaNet_ResNet50_FPN_V2_Weights,
    "fcos": FCOS_ResNet50_FPN_Weights,
}
_HEAD = (
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "head.classification_head.cls_logits.",
)

_MAKERS = ("backbone", "head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
"""The parts that compute in half precision in a mixed training; what they make is taken on in float32."""

Item = tuple[Tensor, dict[str, Tensor]]


class RCNN(Family):
    """Two-stage detectors, and RetinaNet and FCOS of one stage. Images keep their aspect ratio."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        entry = find(spec.model, spec.task)
        self.architecture = entry.library_name
        self.backbone = entry.name.split("_")[1]
        self.masks = spec.task is Task.SEGMENTATION
        # Two stages count the background as class 0; one stage knows no background.
        self.first_label = 0 if self.architecture in _ONE_STAGE else 1
        self._lock = threading.Lock()

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        return {
            "min_size": settings.min_size,
            "max_size": settings.max_size,
            # Frozen statistics suit small batches, but there are none to freeze in a network from scratch.
            "norm": "frozen" if pretrained else "batch",
            # Regions an image that the second stage looks at: torchvision's counts.
            "proposals": 1000,
            "sampled_proposals": 512,
        }

    def build(self) -> nn.Module:
        classes = len(self.spec.classes) + self.first_label
        if self.architecture in _BUILDERS:
            # The second versions have batch norms everywhere, trained along.
            build = _BUILDERS[self.architecture]
            sizes = {} if self.architecture in _ONE_STAGE else self._proposals()
            network = build(weights=None, weights_backbone=None, num_classes=classes, **sizes)
        elif self.architecture in _ONE_STAGE:
            levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
            one_stage = RetinaNet if self.architecture == "retinanet" else FCOS
            network = one_stage(self._backbone(**levels), num_classes=classes)
        else:
            two_stages = MaskRCNN if self.masks else FasterRCNN
            network = two_stages(self._backbone(), num_classes=classes, **self._proposals())
        network.transform = _NormaliseAndPad(1, 1, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
        built: nn.Module = network
        # Anchors and decoded boxes have the type of these; in bfloat16 they would be off by pixels.
        for name, module in built.named_modules():
            if name in _MAKERS:
                module.register_forward_hook(_in_float)
        return built

    def _backbone(self, **levels: Any) -> nn.Module:
        norm_layer = FrozenBatchNorm2d if self.spec.options["norm"] == "frozen" else nn.BatchNorm2d
        built: nn.Module = resnet_fpn_backbone(
            backbone_name=self.backbone, weights=None, norm_layer=norm_layer, trainable_layers=5, **levels
        )
        return built

    def _proposals(self) -> dict[str, int]:
        proposals = self.spec.options["proposals"]
        return {
            "rpn_pre_nms_top_n_train": 2 * proposals,
            "rpn_post_nms_top_n_train": 2 * proposals,
            "rpn_pre_nms_top_n_test": proposals,
            "rpn_post_nms_top_n_test": proposals,
            "box_batch_size_per_image": self.spec.options["sampled_proposals"],
        }

    def published(self) -> Published:
        if self.backbone == "resnet50":
            url = _COCO_WEIGHTS[self.architecture].COCO_V1.url
            return Published(files=(url.rsplit("/", 1)[1],), url=url, head=_HEAD)
        url = get_model_weights(self.backbone).IMAGENET1K_V1.url
        file = url.rsplit("/", 1)[1]
        return Published(files=(file,), url=url, head=_HEAD, prefix="backbone.body.", partial=True)

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Resize the short side to min_size unless the long side would pass max_size; values in [0, 1]."""
        pixels, geometry = self.resized(image)
        return pixels.contiguous().float() / 255, geometry

    def resized(self, image: Image) -> tuple[Tensor, Geometry]:
        """`preprocess` with values uint8 in [0, 255]; the colours of a pixel lie side by side in memory."""
        height, width = image.shape[:2]
        size, scale = self.tensor_size(height, width)
        shrinks = scale < 1
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        geometry = Geometry((height, width), size, (size[1] / width, size[0] / height))
        return torch.from_numpy(resized).permute(2, 0, 1), geometry

    def tensor_size(self, height: int, width: int) -> tuple[tuple[int, int], float]:
        """The (height, width) to which an image is resized, and the factor before they are rounded."""
        scale = min(
            self.spec.options["min_size"] / min(height, width),
            self.spec.options["max_size"] / max(height, width),
        )
        return (max(1, round(height * scale)), max(1, round(width * scale))), scale

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[dict[str, Tensor]]:
        """boxes [n, 4] in tensor pixels, labels [n], scores [n] and, with masks, masks [n, 1, 28, 28]."""
        # What is scored in a mixed training has the precision that is served.
        with torch.autocast(tensors[0].device.type, enabled=False), self._limits(network, parameters):
            if self.first_label == 0:
                found: list[dict[str, Tensor]] = network(list(tensors))
                return found
            # As torchvision's own forward, but leaves out the pasting of masks onto the resized image.
            stages: Any = network
            images, _ = stages.transform(list(tensors))
            features = stages.backbone(images.tensors)
            proposals, _ = stages.rpn(images, features)
            detections: list[dict[str, Tensor]]
            detections, _ = stages.roi_heads(features, proposals, images.image_sizes)
            return detections

    @contextmanager
    def _limits(self, network: nn.Module, parameters: ScoringParameters) -> Iterator[None]:
        """torchvision keeps the thresholds in the network; one request at a time may set them."""
        holder: Any = network if self.first_label == 0 else network.roi_heads
        with self._lock:
            holder.score_thresh = parameters.box_score_threshold
            holder.nms_thresh = parameters.nms_iou_threshold
            holder.detections_per_img = parameters.box_detections_per_image
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
            labels=output["labels"][order].cpu().numpy() - self.first_label,
            scores=output["scores"][order].float().cpu().numpy(),
            image_size=geometry.image_size,
            masks=masks,
        )

    def preparation(self) -> Preparation:
        sizes = {name: self.spec.options[name] for name in ("min_size", "max_size")}
        interpolation = {"interpolation": "area to shrink, bilinear to enlarge"}
        return Preparation({"rule": "keep the aspect ratio", **sizes, **interpolation}, None)

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        """The masks are the detections' own; ImageNet's mean and deviation are the network's matter."""
        with self._limits(network, parameters), traceable_nms():
            if self.first_label == 0:
                (found,) = network(list(images))
            else:
                found = self._second_stage(network, images)
        boxes = in_tensor(found["boxes"], images)
        labels = found["labels"] - self.first_label
        answer = {"boxes": boxes, "scores": found["scores"], "labels": labels}
        if self.masks:
            covered = pasted(found["boxes"], found["masks"], images) >= parameters.mask_pixel_score_threshold
            answer["masks"] = cut_to(boxes, covered)
        return answer

    def _second_stage(self, stages: Any, images: Tensor) -> dict[str, Tensor]:
        """As in `infer`, with a fixed number of regions: an empty one's box is too small to be found."""
        batch, _ = stages.transform(list(images))
        features = stages.backbone(batch.tensors)
        (proposals,), _ = stages.rpn(batch, features)
        regions, sizes = [filled(proposals, self.spec.options["proposals"])], batch.image_sizes
        heads = stages.roi_heads
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, regions, sizes)))
        (boxes,), (scores,), (labels,) = heads.postprocess_detections(logits, deltas, regions, sizes)
        found = {"boxes": boxes, "scores": scores, "labels": labels}
        if self.masks:
            regions = [filled(boxes, heads.detections_per_img)]
            count = boxes.shape[0]  # len() would ask for a number
            pooled = heads.mask_roi_pool(features, regions, sizes)[:count]
            probabilities = heads.mask_predictor(heads.mask_head(pooled)).sigmoid()
            found["masks"] = probabilities[torch.arange(count, device=labels.device), labels]
        return found

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> Dataset[Item]:
        return _TrainingDataset(self, examples, settings)

    def short_side(self, settings: Settings) -> int:
        """Crops around the boxes, and the jitter's scales, enlarge a part of the image up to twice."""
        return 2 * settings.min_size

    def validation_item(self, image: Tensor, truth: Objects, geometry: Geometry) -> Item:
        return image, self.target(truth, geometry)

    def target(self, truth: Objects, geometry: Geometry) -> dict[str, Tensor]:
        """torchvision's target: boxes in tensor pixels, labels, masks uint8 [n, h, w]. No crowds."""
        kept = np.flatnonzero(~truth.crowd)
        boxes = geometry.boxes_to_tensor(truth.boxes[kept])
        sized = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept, boxes = kept[sized], boxes[sized]
        target = {
            "boxes": torch.from_numpy(boxes).float().reshape(-1, 4),
            "labels": torch.from_numpy(truth.labels[kept] + self.first_label),
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
        # Training images are brought to the device as bytes, a quarter of floats.
        images = [image.float() / 255 if image.dtype == torch.uint8 else image for image in batch["images"]]
        if network.training:
            losses = network(images, batch["targets"])
            return losses
        with _giving_losses(network):
            losses = network(images, batch["targets"])
        return losses

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[Sequence[dict[str, Tensor]], dict[str, Tensor]]:
        """The backbone runs once, and so do the heads of a network of one stage."""
        stages: Any = network
        with torch.autocast(batch["images"][0].device.type, enabled=False), self._limits(network, parameters):
            images, targets = stages.transform(batch["images"], batch["targets"])
            features = stages.backbone(images.tensors)
            if self.first_label == 0:
                return _of_one_stage(stages, images, list(features.values()), targets)
            proposals, _ = stages.rpn(images, features)
            detections, _ = stages.roi_heads(features, proposals, images.image_sizes)
            with _giving_losses(network):
                proposals, of_proposals = stages.rpn(images, features, targets)
                _, of_detections = stages.roi_heads(features, proposals, images.image_sizes, targets)
        return detections, {**of_detections, **of_proposals}

    def parts_to_compile(self, network: nn.Module) -> list[nn.Module]:
        """The backbone; what follows has another shape for each image."""
        return [network.get_submodule("backbone")]

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """conv1 with its norm, then layer1–4 of the backbone."""
        body = network.get_submodule("backbone.body")
        stem = [body.get_submodule("conv1"), body.get_submodule("bn1")]
        return [stem, *([body.get_submodule(f"layer{i}")] for i in range(1, 5))]


def _in_float(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A forward hook: the same structure of dicts, lists and tuples with its tensors in float32."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return type(output)((key, _in_float(_module, (), value)) for key, value in output.items())
    return type(output)(_in_float(_module, (), value) for value in output)


@contextmanager
def _giving_losses(network: nn.Module) -> Iterator[None]:
    """In eval mode torchvision gives detections. These decide it, and batch norms stay in eval mode."""
    heads = [module for name, module in network.named_children() if name in ("rpn", "roi_heads")]
    try:
        for module in (network, *heads):
            module.training = True
        yield
    finally:
        for module in (network, *heads):
            module.training = False


def _of_one_stage(
    network: Any, images: Any, features: list[Tensor], targets: list[dict[str, Tensor]]
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Detections and losses from the feature maps; torchvision's own forward gives one of them."""
    found = network.head(features)
    anchors = network.anchor_generator(images, features)
    cells = [level.shape[2] * level.shape[3] for level in features]
    counts = [count * (len(anchors[0]) // sum(cells)) for count in cells]
    fcos = {"num_anchors_per_level": counts} if isinstance(network, FCOS) else {}
    losses: dict[str, Tensor] = network.compute_loss(targets, found, anchors, **fcos)
    levels = {name: list(value.split(counts, dim=1)) for name, value in found.items()}
    detections: list[dict[str, Tensor]] = network.postprocess_detections(
        levels, [list(each.split(counts)) for each in anchors], images.image_sizes
    )
    return detections, losses


class _NormaliseAndPad(GeneralizedRCNNTransform):
    """torchvision's transform without its resizing: `preprocess` has done that, in the loader's workers."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """A single image of any size is padded in one operation, which torch.export can trace."""
        if len(images) > 1:
            batch: Tensor = super().batch_images(images, size_divisible)
            return batch
        height, width = images[0].shape[-2:]
        right, bottom = (rounded_up(side, size_divisible) - side for side in (width, height))
        return F.pad(images[0], (0, right, 0, bottom))[None]


class _TrainingDataset(Dataset[Item]):
    """With p = .5 a crop around the boxes or an expansion ×1–2, then a flip; then as in `resized`.

    Large-scale jitter stands in place of crop and expansion.
    """

    def __init__(self, family: RCNN, examples: Examples, settings: Settings) -> None:
        self.family = family
        self.examples = examples
        self.jitters = settings.large_scale_jitter
        self.augments = settings.advanced_settings.apply_automl_train_augmentations

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        example = self.examples[index]
        assert isinstance(example.target, Objects)
        image, truth = example.image, example.target
        if self.augments or self.jitters:
            # The loader seeds torch's generator for each item.
            generator = np.random.default_rng(int(torch.randint(2**62, ())))
            if self.jitters:
                size, _ = self.family.tensor_size(*image.shape[:2])
                image, truth = jitter_scale(image, truth, size, generator)
            if self.augments:
                image, truth = (flip if self.jitters else augment)(image, truth, generator)
        tensor, geometry = self.family.resized(image)
        return tensor, self.family.target(truth, geometry)


FAMILY = RCNN
