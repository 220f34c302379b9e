"""A plain loop around torchvision's detectors, as in its reference scripts: flip, SGD, warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from timm.layers import freeze_batch_norm_2d
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms import v2

from benchmarks import data
from benchmarks.contenders.common import Clock, Options, autocast, limit_regions, main, score
from benchmarks.measuring import Measurements
from trainer.annotations import Detections, Mask, Objects, Prediction
from trainer.data.reading.records import Records
from trainer.tasks import Task

_FALLS = (16 / 26, 22 / 26)
"""Fractions of the steps after which the reference scripts divide the learning rate by ten."""


class Images(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Pairs of a float image [3, H, W] and its target, both at the image's own size; the network resizes.

    With `flips`, half of the images are mirrored, which is the reference scripts' augmentation.
    """

    def __init__(self, found: Records, *, flips: bool) -> None:
        self.found = found
        flip = [v2.RandomHorizontalFlip(0.5)] if flips else []
        self.transform = v2.Compose(
            [v2.ToImage(), *flip, v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()]
        )

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image = ImageOps.exif_transpose(Image.open(self.found.source(index))).convert("RGB")
        objects = self.found.target(index)
        assert isinstance(objects, Objects)
        size = (image.height, image.width)
        boxes = torch.from_numpy(objects.boxes) * torch.tensor([size[1], size[0]] * 2)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes.reshape(-1, 4), format="XYXY", canvas_size=size),  # type: ignore[call-overload]
            "labels": torch.from_numpy(objects.labels + 1),
        }
        if objects.polygons is not None:
            masks = [_filled(polygons, size) for polygons in objects.polygons]
            target["masks"] = tv_tensors.Mask(np.stack(masks) if masks else np.zeros((0, *size), np.uint8))
        made: tuple[Tensor, dict[str, Any]] = self.transform(image, target)
        return made


def _filled(polygons: Any, size: tuple[int, int]) -> Any:
    canvas = np.zeros(size, dtype=np.uint8)
    points = [np.rint(polygon * (size[1], size[0])).astype(np.int32) for polygon in polygons]
    return cv2.fillPoly(canvas, points, (1,))


def build(options: Options) -> Any:
    """Build torchvision's network of this name with random weights, or with a published backbone of timm."""
    arguments: dict[str, Any] = {}
    if options.backbone:
        backbone: Any = TimmWithFPN(options.backbone.removeprefix("timm/"), options.weights)
        arguments = {"image_mean": backbone.config.mean, "image_std": backbone.config.std}
    else:
        backbone = resnet_fpn_backbone(
            backbone_name=options.model.split("_")[1],
            weights=None,
            norm_layer=torch.nn.BatchNorm2d,
            trainable_layers=5,
        )
    kind = MaskRCNN if options.of_task is Task.SEGMENTATION else FasterRCNN
    return kind(
        backbone, num_classes=len(options.classes) + 1, **arguments,
        min_size=options.image_size, max_size=2 * options.image_size, box_score_thresh=0.01,
    ).to(options.device)  # fmt: skip


class TimmWithFPN(torch.nn.Module):
    """A timm network with torchvision's feature pyramid, as torchvision's tutorials replace a backbone.

    As in torchvision's own fine-tuning, published batch norms are frozen, and so is all up to stride 4.
    """

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        self.config = timm.get_pretrained_cfg(name)
        pretrained = weights != "none"
        file = {"pretrained_cfg_overlay": {"file": f"{weights}/{name}.safetensors"}} if pretrained else {}
        self.body = timm.create_model(
            name, features_only=True, out_indices=(1, 2, 3, 4), pretrained=pretrained, **file
        )
        if pretrained:
            self.body = freeze_batch_norm_2d(self.body)
            for part in ("conv_stem", "blocks.0", "blocks.1"):  # of an EfficientNet
                self.body.get_submodule(part).requires_grad_(False)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 256, LastLevelMaxPool())
        self.out_channels = 256

    def forward(self, images: Tensor) -> Any:
        return self.fpn({str(index): level for index, level in enumerate(self.body(images))})


def _collate(items: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*items, strict=True))


def train(options: Options) -> Measurements:
    torch.manual_seed(options.seed)
    task, classes = options.of_task, options.classes
    # A run that is only timed has no augmentation, like ours.
    images = Images(data.records(Path(options.train), task, classes), flips=options.score)
    loader = DataLoader(
        images, options.batch, shuffle=True, num_workers=options.workers, collate_fn=_collate,
        pin_memory=options.device == "cuda", persistent_workers=options.workers > 0,
    )  # fmt: skip
    network = build(options)
    limit_regions(network, options)
    rate = 0.005 if options.learning_rate is None else options.learning_rate
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=1e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.001, total_iters=max(1, len(loader) - 1))
    falls = [round(part * options.epochs * len(loader)) for part in _FALLS]
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls)
    clock, best = Clock(options.device, options.counted), -1.0
    for _ in range(options.epochs):
        network.train()
        clock.start()
        for images, targets in loader:
            moved = [{name: value.to(options.device) for name, value in target.items()} for target in targets]
            with autocast(options):
                losses = network([image.to(options.device) for image in images], moved)
                loss = sum(losses.values())
            if not math.isfinite(loss.item()):
                raise RuntimeError(f"the loss is {loss.item()}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warm_up.step()
            steps.step()
            clock.step(len(images))
        clock.stop()
        if options.score:
            best = max(best, score(options, _predictions(network, options)))
    return {**clock.measurements(), **({"metric": best} if options.score else {})}


@torch.inference_mode()
def _predictions(network: Callable[..., Any], options: Options) -> Iterator[Prediction]:
    network.eval()  # type: ignore[attr-defined]
    found = data.records(Path(options.validation), options.of_task, options.classes)
    images = Images(found, flips=False)
    for index in range(len(found)):
        image, _ = images[index]
        size = (image.shape[1], image.shape[2])
        (output,) = network([image.to(options.device)])
        output = {name: value.cpu() for name, value in output.items()}
        masks = None
        if "masks" in output:
            masks = tuple(Mask(0, 0, mask[0].numpy() > 0.5) for mask in output["masks"])
        yield Detections(
            boxes=(output["boxes"] / torch.tensor([size[1], size[0]] * 2)).numpy(),
            labels=output["labels"].numpy() - 1,
            scores=output["scores"].numpy(),
            image_size=size,
            masks=masks,
        )


if __name__ == "__main__":
    main(train)
