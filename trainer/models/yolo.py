"""YOLO detectors: ultralytics' networks, losses and augmentation, trained by our own loop.

ultralytics is licensed under the AGPL-3.0. It is imported in this file alone, when a YOLO model is used.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

# ultralytics reads these at its import: no usage reports, no look-ups, no greeting, its files in our cache.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path.home() / ".cache" / "image-trainer"))

import cv2
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.ops import batched_nms
from ultralytics.data.dataset import YOLODataset
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, patches

from trainer.annotations import Detections, Examples, Image, Objects, Prediction, Truth
from trainer.models.catalog import find
from trainer.models.family import Batch, Family, Geometry, Spec
from trainer.models.weights import Published
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

# ultralytics replaces these for the whole process, and its `open` would install packages for a file that is
# no image: put the originals back.
PIL.Image.open, torch.save = patches._image_open, patches._torch_save

GREY = 114  # the colour of ultralytics' padding
STRIDE = 32
CLOSE_MOSAIC = 10  # the last epochs are trained without mosaic, as ultralytics does
ASSETS = "https://github.com/ultralytics/assets/releases/download/v8.3.0/"


class YOLO(Family):
    """One-stage detectors. Images keep their aspect ratio inside a grey square."""

    requirements = ("ultralytics", "torchvision", "opencv-python")
    averages_weights = True
    sums_losses = True

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        # Whole strides only; an odd size is rounded up rather than refused.
        image_size = -(-settings.image_size // STRIDE) * STRIDE
        name = find(model, task).library_name
        if name == "yolov5":
            name += {"small": "s", "medium": "m", "large": "l", "extra_large": "x"}[settings.model_size]
        return {"image_size": image_size, "architecture": name}

    def build(self) -> nn.Module:
        architecture = self.spec.options["architecture"]
        network = DetectionModel(f"{architecture}.yaml", nc=len(self.spec.classes), verbose=False)
        network.args = copy(DEFAULT_CFG)  # where ultralytics' loss looks for its gains
        built: nn.Module = network
        return built

    def published(self) -> Published:
        architecture = self.spec.options["architecture"]
        file = f"{architecture}u.pt" if architecture.startswith("yolov5") else f"{architecture}.pt"
        last = 24 if architecture.startswith("yolov5") else 23
        return Published(files=(file,), url=ASSETS + file, head=(f"model.{last}.cv3.",))

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Fit into the square, keeping the aspect ratio, centred on grey; values in [0, 1]."""
        side = self.spec.options["image_size"]
        height, width = image.shape[:2]
        scale = side / max(height, width)
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
        if scale != 1:
            resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
            image = np.asarray(resized, dtype=np.uint8)
        top, left = (side - new_height) // 2, (side - new_width) // 2
        canvas = np.full((side, side, 3), GREY, dtype=np.uint8)
        canvas[top : top + new_height, left : left + new_width] = image
        geometry = Geometry(
            (height, width), (side, side), (new_width / width, new_height / height), (float(left), float(top))
        )
        return torch.from_numpy(canvas).permute(2, 0, 1).contiguous().float() / 255, geometry

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Tensor]:
        """float32 [anchors, 4 + C] an image: centre x and y, width, height in tensor pixels; class scores."""
        output = network(torch.stack(list(tensors)))[0]
        return list(output.float().transpose(1, 2))

    def postprocess(self, output: Tensor, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        """Each anchor's best class, thresholded, then NMS in each class."""
        scores, labels = output[:, 4:].max(dim=1)
        kept = scores >= parameters.box_score_threshold
        scores, labels = scores[kept], labels[kept]
        centre, half = output[kept, :2], output[kept, 2:4] / 2
        boxes = torch.cat([centre - half, centre + half], dim=1)
        # By falling score.
        chosen = batched_nms(boxes, scores, labels, parameters.nms_iou_threshold)
        chosen = chosen[: parameters.box_detections_per_image]
        return Detections(
            boxes=geometry.boxes_to_image(boxes[chosen].cpu().numpy()),
            labels=labels[chosen].cpu().numpy(),
            scores=scores[chosen].cpu().numpy(),
            image_size=geometry.image_size,
        )

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> Dataset[Any]:
        return _TrainingDataset(self.spec, examples, settings)

    def validation_item(self, image: Tensor, truth: Truth, geometry: Geometry) -> dict[str, Tensor]:
        assert isinstance(truth, Objects)
        height, width = geometry.tensor_size
        boxes = geometry.boxes_to_tensor(truth.boxes) / np.array([width, height, width, height])
        labels = _ultralytics_label(Objects(boxes.astype(np.float32), truth.labels, truth.crowd))
        return {
            "img": image,
            "cls": torch.from_numpy(labels["cls"]),
            "bboxes": torch.from_numpy(labels["bboxes"]),
        }

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch:
        keys = ("img", "cls", "bboxes")
        # ultralytics numbers the images in place: give it numbers of its own.
        parts = [
            {**{key: item[key] for key in keys}, "batch_idx": torch.zeros(len(item["cls"]))} for item in items
        ]
        batch: dict[str, Any] = YOLODataset.collate_fn(parts)
        batch["images"] = batch.pop("img")
        if "size" in items[0]:
            batch["size"] = items[0]["size"]
        return batch

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images = batch["images"]
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if "size" in batch:
            images = F.interpolate(images, size=(batch["size"],) * 2, mode="bilinear", align_corners=False)
        criterion = getattr(network, "criterion", None)
        if criterion is not None and criterion.device != images.device:
            del network.criterion  # it keeps tensors of its own on the device it was made for
        losses, names = network({**batch, "img": images})
        return {name: loss / len(images) for name, loss in zip(names, losses, strict=True)}

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The backbone's layers, model.0–9."""
        return [[layer] for layer in list(network.get_submodule("model").children())[:10]]


def _ultralytics_label(truth: Objects) -> dict[str, Any]:
    """cls float32 [n, 1]; bboxes float32 [n, 4], normalised centre x and y, width, height; no crowds."""
    boxes = truth.boxes[~truth.crowd]
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return {
        "cls": truth.labels[~truth.crowd].astype(np.float32)[:, None],
        "bboxes": np.concatenate([centres, sizes], axis=1).astype(np.float32),
    }


class _TrainingDataset(YOLODataset):
    """ultralytics' augmentation over our examples: mosaic, affine, HSV, flip.

    ultralytics draws from the global generators of random and numpy; the loader seeds both for each item.
    """

    def __init__(self, spec: Spec, examples: Examples, settings: Settings) -> None:
        self.examples = examples
        self.hyperparameters = copy(DEFAULT_CFG)
        self.multi_scale = settings.multi_scale
        self.last_epochs = settings.number_of_epochs - CLOSE_MOSAIC
        advanced = settings.advanced_settings
        if not (advanced.apply_mosaic_for_yolo and advanced.apply_automl_train_augmentations):
            self.hyperparameters.mosaic = 0.0
        if not advanced.apply_automl_train_augmentations:
            for name in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"):
                setattr(self.hyperparameters, name, 0.0)
        super().__init__(
            img_path="",
            imgsz=spec.options["image_size"],
            hyp=self.hyperparameters,
            data={"names": dict(enumerate(spec.classes)), "channels": 3},
            cache="ram",
        )

    def check_cache_ram(self, safety_margin: float = 1.0) -> bool:
        """Cache nothing, though "ram" was asked for.

        Only with "ram" does mosaic draw its partners from all images rather than from those that a worker
        happened to load last; an item then depends on its seed alone.
        """
        return False

    def at_epoch(self, epoch: int) -> None:
        """Close the mosaic for the last epochs; in a run shorter than twice that, for the last half."""
        closing = max(self.last_epochs, (self.last_epochs + CLOSE_MOSAIC) // 2)
        if epoch >= closing and self.hyperparameters.mosaic:
            self.close_mosaic(self.hyperparameters)

    def get_img_files(self, img_path: Any) -> list[str]:
        return [str(index) for index in range(len(self.examples))]

    def get_labels(self) -> list[dict[str, Any]]:
        fixed: dict[str, Any] = {"segments": [], "keypoints": None, "normalized": True, "bbox_format": "xywh"}
        truths = (truth for truth in self.examples.truths if isinstance(truth, Objects))
        return [{"im_file": str(i), **_ultralytics_label(truth), **fixed} for i, truth in enumerate(truths)]

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[Image, tuple[int, int], tuple[int, int]]:
        """BGR, as ultralytics' augmentation expects, its long side resized to the image size."""
        image = self.examples[i].image[..., ::-1]
        height, width = image.shape[:2]
        scale = self.imgsz / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        return resized, (height, width), (size[1], size[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = super().__getitem__(index)
        if self.multi_scale:
            side = self.imgsz * random.uniform(0.5, 1.5)
            item["size"] = max(STRIDE, round(side / STRIDE) * STRIDE)
        return item


FAMILY = YOLO
