"""What the families in yolo.py and rtdetr.py share: options, inference, batches, freeze groups.

ultralytics is licensed under the AGPL-3.0 and an extra, `pip install 'image-trainer[yolo]'`. Only these
files and ultralytics_data.py import it, when one of its models is used; this file comes first because
ultralytics reads its environment when it is imported.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

# No usage reports, no look-ups, no greeting, and its files in our cache. ultralytics reads these on import.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path.home() / ".cache" / "image-trainer"))

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import polygons2masks_overlap
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import DEFAULT_CFG

from trainer.annotations import Examples, FloatArray, Image, Objects, Prediction, Target
from trainer.models.card import SIZE_LETTERS
from trainer.models.catalog import find
from trainer.models.family import Family, TrainingDataset
from trainer.models.geometry import Geometry
from trainer.models.tensors import as_detections, as_pixels, rescaled, stacked
from trainer.models.training_items import Batch, Progress
from trainer.models.ultralytics_data import STRIDE, UltralyticsItems, cache_bytes, label_of
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

ASSETS = "https://github.com/ultralytics/assets/releases/download/v8.4.0/"
"""The release from which this version of ultralytics downloads its weights."""


@cache
def _plan(architecture: str) -> dict[str, Any]:
    """What `plan` returns, not to be changed. ultralytics looks for the file in all of its folders."""
    plan: dict[str, Any] = yaml_model_load(f"{architecture}.yaml")
    return plan


class UltralyticsFamily(Family):
    """A family of ultralytics' networks, trained by our own loop with ultralytics' losses and augmentation.

    "counts" in a batch holds each image's number of objects as integers, because reading a tensor on the GPU
    would wait. "targets" holds these objects, padded to the same number for each image: float32 [B, n, 5],
    class and normalised cx, cy, w, h. "shared" in a training batch holds `class_weights`, float32 [C] or
    None, and `size` for multi_scale: the side, in pixels, to which the batch is resized.
    """

    average_tau = 2000.0
    has_one_size = True
    stretches: ClassVar[bool]
    """Whether images are stretched to the square, instead of fitted into it."""

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        image_size = _whole_strides(settings.image_size)
        entry = find(model, task)
        name = entry.library_name
        if "model_size" in entry.settings:
            name += SIZE_LETTERS[settings.model_size]
        return {"image_size": image_size, "architecture": name}

    def options_at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        return {**super().options_at(sizes), **{name: _whole_strides(size) for name, size in sizes.items()}}

    @property
    def architecture(self) -> str:
        """ultralytics' name of the network, such as `yolo11n-seg`."""
        return str(self.spec.options["architecture"])

    def plan(self) -> dict[str, Any]:
        """ultralytics' description of the network: its layers under "backbone" and "head"."""
        return deepcopy(_plan(self.architecture))

    def last_layer(self) -> str:
        """The prefix of the detection head's tensors, such as `model.23.`."""
        plan = _plan(self.architecture)
        return f"model.{len(plan['backbone']) + len(plan['head']) - 1}."

    @staticmethod
    def prepared(network: Any) -> nn.Module:
        """Give the network what ultralytics' losses read from it."""
        network.nc = network.model[-1].nc
        network.args = copy(DEFAULT_CFG)  # the gains of the losses
        module: nn.Module = network
        return module

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> list[Any]:
        return self.outputs(self.limited(network, parameters)(torch.stack(list(tensors)))[0])

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """Run the network once: it returns its predictions with what the losses are computed from."""
        images = batch["images"]
        predictions = self.limited(network, parameters)(images)
        losses = self.library_losses(network, {**batch, "img": images}, None, predictions)
        return self.outputs(predictions[0]), losses

    def limited(self, network: nn.Module, parameters: ScoringParameters) -> nn.Module:
        """The network with those of a request's limits that it applies itself; by default none."""
        return network

    @abstractmethod
    def outputs(self, predictions: Any) -> list[Any]:
        """Split the predictions for a batch into one raw output for each image."""

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> TrainingDataset:
        return UltralyticsItems(self, examples, settings, stretches=self.stretches)

    def cached_images(self, settings: Settings) -> int:
        return cache_bytes(settings) // (3 * int(self.spec.options["image_size"]) ** 2)

    def short_side(self, settings: Settings) -> int:
        """Twice the side of the square, to which images are resized before the affine augmentation."""
        return int(2 * self.spec.options["image_size"])

    def validation_item(self, image: Tensor, target: Target, geometry: Geometry) -> dict[str, Tensor]:
        assert isinstance(target, Objects)
        height, width = geometry.tensor_size
        boxes = geometry.boxes_to_tensor(target.boxes) / np.array([width, height, width, height])
        polygons = target.polygons and tuple(
            tuple(_in_tensor(polygon, geometry) for polygon in segments) for segments in target.polygons
        )
        placed = Objects(boxes.astype(np.float32), target.labels, target.crowd, polygons)
        label = label_of(placed, masks=self.masks)
        masks: dict[str, Tensor] = {}
        if self.masks:
            order, masks = _masks(label, geometry.tensor_size)
            label["cls"], label["bboxes"] = label["cls"][order], label["bboxes"][order]
        objects = {name: torch.from_numpy(label[name]) for name in ("cls", "bboxes")}
        return {"img": image, **objects, **masks}

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch:
        keys = ("cls", "bboxes", *(("masks", "sem_masks") if self.masks else ()))
        parts = [{key: item[key] for key in keys} for item in items]
        for part in parts:
            part["batch_idx"] = torch.zeros(len(part["cls"]))  # ultralytics adds the image's number in place
        batch: dict[str, Any] = YOLODataset.collate_fn(parts)
        batch["images"] = stacked([item["img"] for item in items])
        batch["counts"] = [len(item["cls"]) for item in items]
        batch["targets"] = torch.zeros(len(items), max(batch["counts"]), 5)
        for targets, item in zip(batch["targets"], items, strict=True):
            targets[: len(item["cls"])] = torch.cat([item["cls"], item["bboxes"]], dim=1)
        return batch

    def training_view(self, batch: Batch) -> list[tuple[Image, Prediction]]:
        shown: list[tuple[Image, Prediction]] = []
        for index, tensor in enumerate(rescaled({**batch, "images": batch["images"].float() / 255})):
            own = batch["batch_idx"] == index
            boxes, labels = box_convert(batch["bboxes"][own], "cxcywh", "xyxy"), batch["cls"][own]
            masks = None
            if self.masks:  # one image of the objects' numbers from 1
                numbers = torch.arange(1, len(labels) + 1)
                masks = (
                    batch["masks"][index].reshape(-1, *batch["masks"].shape[-2:]) == numbers[:, None, None]
                )
            image = as_pixels(tensor)
            shown.append((image, as_detections(boxes, labels, image, masks)))
        return shown

    def part(self, batch: Batch, start: int, stop: int) -> Batch:
        """The micro-batch of images `start` … `stop` − 1; classes and boxes have an entry for each object."""
        chosen = (batch["batch_idx"] >= start) & (batch["batch_idx"] < stop)
        objects = {key: batch[key][chosen] for key in ("cls", "bboxes")}
        images = {key: batch[key][start:stop] for key in ("images", "masks", "sem_masks") if key in batch}
        counts = batch["counts"][start:stop]
        of_objects = {"counts": counts, "targets": batch["targets"][start:stop, : max(counts)]}
        return {**batch, **images, **objects, **of_objects, "batch_idx": batch["batch_idx"][chosen] - start}

    def losses(self, network: nn.Module, batch: Batch, progress: Progress | None = None) -> dict[str, Tensor]:
        if batch["images"].dtype == torch.uint8:
            batch = {**batch, "images": batch["images"].float() / 255}
        return self.library_losses(network, {**batch, "img": rescaled(batch)}, progress)

    @abstractmethod
    def library_losses(
        self, network: Any, batch: dict[str, Any], progress: Progress | None, predictions: Any = None
    ) -> dict[str, Tensor]:
        """Do what `losses` does for a batch in ultralytics' form: "img" is float32 [B, 3, h, w] in [0, 1].

        Args:
            predictions: the network's output for the batch; None runs the network.
        """

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The backbone's layers: model.0–9, or model.0–4 if the backbone is a ResNet."""
        groups = 10 if "resnet" not in self.architecture else 5
        return [[layer] for layer in list(network.get_submodule("model").children())[:groups]]


def _whole_strides(size: int) -> int:
    """An image's side, rounded up to what the network takes."""
    return -(-size // STRIDE) * STRIDE


def _in_tensor(points: FloatArray, geometry: Geometry) -> FloatArray:
    """(x, y) normalised in the image [n, 2] → normalised in the tensor [n, 2]."""
    height, width = geometry.tensor_size
    pixels = geometry.boxes_to_tensor(np.tile(points, 2))[:, :2]
    placed: FloatArray = (pixels / np.array([width, height])).astype(np.float32)
    return placed


def _masks(label: dict[str, Any], size: tuple[int, int]) -> tuple[Any, dict[str, Tensor]]:
    """The objects' order by descending area, and ultralytics' two mask targets at a quarter of `size`.

    masks: [1, h/4, w/4], for each pixel the position in that order, from 1, of the smallest object there,
    or 0; sem_masks: float32 [h/4, w/4], that object's class.
    """
    height, width = size
    ratio = DEFAULT_CFG.mask_ratio
    outlines = [outline * (width, height) for outline in label["segments"]]
    if not outlines:
        empty = torch.zeros(height // ratio, width // ratio)
        return np.zeros(0, dtype=np.int64), {"masks": empty[None], "sem_masks": empty}
    indices, order = polygons2masks_overlap(size, outlines, downsample_ratio=ratio)
    classes = label["cls"][order, 0]
    return order, {
        "masks": torch.from_numpy(indices[None]),
        "sem_masks": torch.from_numpy(classes[indices.astype(np.int64) - 1]),
    }
