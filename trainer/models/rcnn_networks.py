"""torchvision's detectors as rcnn.py uses them: built without weights, and run in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from trainer.models.graphs import filled, rounded_up
from trainer.models.tensors import as_float32
from trainer.models.weights.published import PublishedWeights

ONE_STAGE = ("retinanet", "fcos")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_VERSION_1 = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "retinanet": RetinaNet, "fcos": FCOS}
_HEAD = (
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "head.classification_head.cls_logits.",
)
_HALF_PRECISION = ("backbone", "head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
"""The modules that compute in half precision in a mixed-precision run; their outputs continue in float32."""


def build(
    name: str,
    classes: int,
    *,
    frozen_norms: bool,
    proposals: int,
    sampled: int,
    backbone: str = "",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> nn.Module:
    """A network with random weights.

    Args:
        name: as torchvision names its networks, with any ResNet: `fasterrcnn_resnet18_fpn`, or for version 2,
            which always has a ResNet-50, `maskrcnn_resnet50_fpn_v2`.
        classes: as the network counts them; with two stages the background included.
        frozen_norms: batch norms keep their statistics; those of version 2 are always trained.
        backbone: timm/NAME, instead of the ResNet in the network's name.
        mean: by channel, of pixels in [0, 1], by which images are normalised.
        std: the standard deviation, likewise.
        proposals: regions of an image that the second stage classifies; twice as many in training.
        sampled: regions of an image that the second stage's losses use.
    """
    architecture, resnet, *_ = name.split("_")
    stage_two: dict[str, int] = {}
    if architecture not in ONE_STAGE:
        stage_two = {
            "rpn_pre_nms_top_n_train": 2 * proposals,
            "rpn_post_nms_top_n_train": 2 * proposals,
            "rpn_pre_nms_top_n_test": proposals,
            "rpn_post_nms_top_n_test": proposals,
            "box_batch_size_per_image": sampled,
        }
    version_2 = name.endswith("_v2")
    pyramid: nn.Module | None = None
    if backbone:
        from trainer.models.timm_backbone import TimmPyramid  # with it, models would need timm

        pyramid = TimmPyramid(
            backbone,
            one_stage=architecture in ONE_STAGE,
            version_2=version_2,
            frozen_norms=frozen_norms and not version_2,
        )
    if version_2:
        network: nn.Module = get_model(name, weights_backbone=None, num_classes=classes, **stage_two)
        if pyramid is not None:
            network.backbone = pyramid
    elif pyramid is not None:
        network = _VERSION_1[architecture](pyramid, num_classes=classes, **stage_two)
    else:
        levels: dict[str, Any] = {}
        if architecture in ONE_STAGE:
            levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        body = resnet_fpn_backbone(
            backbone_name=resnet,
            weights=None,
            norm_layer=FrozenBatchNorm2d if frozen_norms else nn.BatchNorm2d,
            trainable_layers=5,
            **levels,
        )
        network = _VERSION_1[architecture](body, num_classes=classes, **stage_two)
    network.transform = _NormaliseAndPad(1, 1, image_mean=list(mean), image_std=list(std))
    # Anchors and decoded boxes take the type of these outputs; in bfloat16 they would be off by pixels.
    for path, module in network.named_modules():
        if path in _HALF_PRECISION:
            module.register_forward_hook(_in_float)
    return network


def published(name: str, backbone: str = "") -> PublishedWeights:
    """COCO's weights for a network with a ResNet-50; for the others, ImageNet's for the backbone.

    Args:
        backbone: timm/NAME, instead of the ResNet in the network's name.
    """
    if backbone:
        from trainer.models import timm_backbone

        return timm_backbone.published(backbone, _HEAD)
    resnet = name.split("_")[1]
    if resnet == "resnet50":
        url = get_model_weights(name).COCO_V1.url
        return PublishedWeights(files=(url.rsplit("/", 1)[1],), url=url, head=_HEAD)
    url = get_model_weights(resnet).IMAGENET1K_V1.url
    file = url.rsplit("/", 1)[1]
    return PublishedWeights(files=(file,), url=url, head=_HEAD, prefix="backbone.body.", partial=True)


def traceable_detections(network: Any, images: Tensor, proposals: int) -> dict[str, Tensor]:
    """The detections of a two-stage network in one image [1, 3, h, w], in a form that torch.export can trace.

    The number of regions is fixed; empty ones have a box that is too small to be detected.
    """
    batch, _ = network.transform(list(images))
    features = network.backbone(batch.tensors)
    (proposed,), _ = network.rpn(batch, features)
    regions, sizes = [filled(proposed, proposals)], batch.image_sizes
    heads = network.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, regions, sizes)))
    (boxes,), (scores,), (labels,) = heads.postprocess_detections(logits, deltas, regions, sizes)
    detections = {"boxes": boxes, "scores": scores, "labels": labels}
    if heads.has_mask():
        regions = [filled(boxes, heads.detections_per_img)]
        count = boxes.shape[0]  # len() would ask for a number
        pooled = heads.mask_roi_pool(features, regions, sizes)[:count]
        probabilities = heads.mask_predictor(heads.mask_head(pooled)).sigmoid()
        detections["masks"] = probabilities[torch.arange(count, device=labels.device), labels]
    return detections


def _in_float(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A forward hook that returns a module's output in float32."""
    return as_float32(output)


class _NormaliseAndPad(GeneralizedRCNNTransform):
    """torchvision's transform without its resizing, which `preprocess` has done in the loader's workers."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Pad a single image of any size in one operation, which torch.export can trace."""
        if len(images) > 1:
            batch: Tensor = super().batch_images(images, size_divisible)
            return batch
        height, width = images[0].shape[-2:]
        right, bottom = (rounded_up(side, size_divisible) - side for side in (width, height))
        return F.pad(images[0], (0, right, 0, bottom))[None]
