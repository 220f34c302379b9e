"""ultralytics' augmentation of our examples: mosaic, affine, HSV, flip. For ultralytics_family.py only."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from ultralytics.data.augment import Albumentations, Compose, Format, RandomPerspective
from ultralytics.data.converter import merge_multi_segment
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import DEFAULT_CFG, patches
from ultralytics.utils.ops import resample_segments

from trainer.annotations import Example, Examples, FloatArray, Image, Objects, Target
from trainer.models.class_weights import object_weights
from trainer.models.family import Family, TrainingDataset
from trainer.models.masks import without_overlap
from trainer.models.training_items import AugmentedExamples, Batch, Draw
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

# ultralytics replaces these for the whole process, and its `open` would install packages for a file that is
# not an image. Put the originals back here, since all our code that needs ultralytics imports this module.
PIL.Image.open, torch.save = patches._image_open, patches._torch_save

STRIDE = 32
CLOSE_MOSAIC = 10  # epochs at the end of a run without mosaic, as in ultralytics
_GREY = 114  # ultralytics' padding colour
_OUTLINE_POINTS = 1000  # of each outline, as in ultralytics


def label_of(objects: Objects, *, masks: bool) -> dict[str, Any]:
    """An image's objects in ultralytics' form, without crowds, which it does not know.

    Returns:
        cls float32 [n, 1]; bboxes float32 [n, 4], normalised centre x and y, width, height; segments: with
        `masks`, one outline of each object, float32 [points, 2], normalised.
    """
    kept = np.flatnonzero(~objects.crowd)
    boxes = objects.boxes[kept]
    placed = np.empty(boxes.shape, dtype=np.float32)
    placed[:, :2], placed[:, 2:] = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    outlines: list[FloatArray] = []
    if masks:
        assert objects.polygons is not None, "segmentation data hold polygons"
        outlines = [_outline(objects.polygons[i]) for i in kept]
    labels = objects.labels[kept].astype(np.float32)[:, None]
    return {"cls": labels, "bboxes": placed, "segments": outlines}


def _outline(segments: Sequence[FloatArray]) -> FloatArray:
    """One outline through all segments of an object, joined by lines between their nearest points.

    ultralytics fills it by the even-odd rule, so that holes stay holes.
    """
    # Joining compares every point with every other, so limit their number.
    parts = [
        part if len(part) <= _OUTLINE_POINTS else resample_segments([part], _OUTLINE_POINTS)[0]
        for part in without_overlap(segments)
    ]
    outline = parts[0] if len(parts) == 1 else np.concatenate(merge_multi_segment(parts))
    return np.asarray(outline, dtype=np.float32)


class _Labels:
    """The labels as ultralytics reads them, made on demand: those of a large data set fill the memory."""

    def __init__(self, targets: Sequence[Target], *, masks: bool) -> None:
        self.targets, self.masks = targets, masks

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.of(index, self.targets[index])

    def of(self, index: int, target: Target) -> dict[str, Any]:
        """An image's label, made of this target."""
        assert isinstance(target, Objects)
        fixed = {"keypoints": None, "normalized": True, "bbox_format": "xywh"}
        return {"im_file": str(index), **label_of(target, masks=self.masks), **fixed}


def cache_bytes(settings: Settings) -> int:
    """Memory for resized images; 0 with tiling, where the decoder caches whole images instead."""
    return 0 if settings.tile_grid_size is not None else settings.image_cache_megabytes * 2**20


class _Format(Format):
    """ultralytics' last step for images that are RGB and keep their colours interleaved in memory.

    That saves two passes over the pixels and is the layout that the networks take. The only transform that
    expects BGR shifts the hue, by as much in either direction.
    """

    def _format_img(self, img: Image) -> Tensor:
        if img.strides[1] < 0:  # a flipped view, which NumPy would copy pixel by pixel
            img = np.asarray(cv2.flip(img[:, ::-1], 1), dtype=np.uint8)
        return torch.from_numpy(np.require(img, requirements=("C", "W"))).permute(2, 0, 1)


class _Placing(RandomPerspective):
    """ultralytics' scaling and translation by a resize, which takes a third of the time of a warp.

    The visible part of the image and its position in the target are rounded to whole pixels. The matrix that
    moves boxes and outlines is adjusted accordingly; in that part it is within a pixel of the one drawn.
    """

    def get_params(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Add "spans": for x and y the start and end of the visible part, in the image and in the target."""
        params: dict[str, Any] = super().get_params(labels)
        matrix = params["M"]
        if matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1]:
            return params  # rotated or sheared
        spans = []
        for axis, (length, target) in enumerate(zip(params["orig_shape"][::-1], params["size"], strict=True)):
            scale, shift = float(matrix[axis, axis]), float(matrix[axis, 2])
            first, last = (_whole((edge - shift) / scale, length) for edge in (0, target))
            # Where the image extends beyond the target, fill the target to its border despite rounding.
            start = 0 if shift < 0 else _whole(shift, target)
            end = target if scale * length + shift > target else _whole(scale * length + shift, target)
            if first >= last or start >= end:
                return params  # nothing is visible
            spans.append((first, last, start, end))
        for axis, (first, last, start, end) in enumerate(spans):
            scale = (end - start) / (last - first)
            matrix[axis, axis], matrix[axis, 2] = scale, start - scale * first
        params["spans"] = spans
        return params

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        assert params is not None
        if "spans" not in params:
            placed: dict[str, Any] = super().apply_image(labels, params)
            return placed
        (x1, x2, left, right), (y1, y2, top, bottom) = params["spans"]
        width, height = params["size"]
        image = np.full((height, width, 3), _GREY, dtype=np.uint8)
        seen, target = labels["img"][y1:y2, x1:x2], image[top:bottom, left:right]
        if seen.shape == target.shape:
            target[:] = seen
        else:
            cv2.resize(seen, (right - left, bottom - top), dst=target, interpolation=cv2.INTER_LINEAR)
        return {**labels, "img": image, "resized_shape": (height, width)}


def _whole(value: float, most: int) -> int:
    """The nearest integer in 0 … `most`; halves are always rounded up, so that equal lengths stay equal."""
    return min(max(math.floor(value + 0.5), 0), most)


def _each(transforms: Compose) -> Iterator[Any]:
    for transform in transforms.transforms:
        if isinstance(transform, Compose):
            yield from _each(transform)
        else:
            yield transform


class UltralyticsItems(YOLODataset, TrainingDataset):
    """Items with "img", uint8 [3, s, s], and ultralytics' form of the label.

    With multi_scale an item also has a "size"; the first one's applies to the whole batch.

    Images are cached as the mosaic takes them, or as they are before a user's transforms, up to
    `image_cache_megabytes`. The least recently used ones are dropped first.
    """

    format_class = _Format

    def __init__(self, family: Family, examples: Examples, settings: Settings, *, stretches: bool) -> None:
        spec = family.spec
        self.family = family
        # The cache holds images before a user's transforms, which change them differently each time.
        self.user_augment = examples.augment if isinstance(examples, AugmentedExamples) else None
        self.examples = examples.originals if isinstance(examples, AugmentedExamples) else examples
        self.stretches = stretches
        self.hyperparameters = copy(DEFAULT_CFG)
        self._room = cache_bytes(settings)
        self._cached: dict[int, tuple[Image, tuple[int, int]]] = {}
        self.multi_scale = settings.multi_scale
        self.class_weights = object_weights(examples.targets, len(spec.classes), settings.weighted_loss)
        self._epochs = settings.number_of_epochs
        advanced = settings.advanced_settings
        if not (advanced.apply_mosaic_for_yolo and advanced.apply_automl_train_augmentations):
            self.hyperparameters.mosaic = 0.0
        self._mosaic = self.hyperparameters.mosaic
        if not advanced.apply_automl_train_augmentations:
            for name in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"):
                setattr(self.hyperparameters, name, 0.0)
        super().__init__(
            img_path="",
            imgsz=spec.options["image_size"],
            hyp=self.hyperparameters,
            task="segment" if spec.task is Task.SEGMENTATION else "detect",
            data={"names": dict(enumerate(spec.classes)), "channels": 3},
        )
        self.buffer: Sequence[int] = range(len(examples))
        self.largest_size = self._size(1.5) if self.multi_scale else None

    def item(self, draw: Draw) -> dict[str, Any]:
        """Make an item; without mosaic in the last 10 epochs, or in the last half of a run of up to 20."""
        # ultralytics draws a mosaic's other images from its `buffer`.
        self.buffer = draw.pool or range(len(self.examples))
        epochs = draw.epochs or self._epochs
        mosaic = 0.0 if draw.epoch >= max(epochs - CLOSE_MOSAIC, epochs // 2) else self._mosaic
        if mosaic != self.hyperparameters.mosaic:
            # Mosaic also comes back if a shortened run turns out to have more time.
            self.hyperparameters.mosaic = mosaic
            self.transforms = self.build_transforms(self.hyperparameters)
        item: dict[str, Any] = self[draw.example]
        if self.multi_scale:
            item["size"] = self._size(random.uniform(0.5, 1.5))
        return item

    def _size(self, scale: float) -> int:
        return max(int(STRIDE), round(int(self.imgsz) * scale / STRIDE) * int(STRIDE))

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch:
        shared = {"size": items[0]["size"]} if self.multi_scale else {}
        shared["class_weights"] = self.class_weights
        return {**self.family.collate(items), "shared": shared}

    def build_transforms(self, hyp: Any = None) -> Compose:
        transforms = super().build_transforms(hyp)
        # ultralytics adds blur, grey and contrast where Albumentations happens to be installed; a model must
        # not depend on that.
        transforms.transforms = [each for each in transforms.transforms if type(each) is not Albumentations]
        if self.use_segments:
            # Masks of nuclei were worse with a resize, possibly by chance: benchmarks/RESULTS.md.
            return transforms
        for transform in _each(transforms):
            if type(transform) is RandomPerspective:
                transform.__class__ = _Placing  # which adds no state; several transforms hold this one
        return transforms

    def get_img_files(self, img_path: Any) -> list[str]:
        return [str(index) for index in range(len(self.examples))]

    def get_labels(self) -> _Labels:
        return _Labels(self.examples.targets, masks=self.use_segments)

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Do the same as ultralytics, without copying the label first, since it is made on demand."""
        image, before, after = self.load_image(index)
        if self.user_augment is None:
            label = self.labels[index]
        else:
            example = self.user_augment(Example(image, self.examples.targets[index]))
            label = self.labels.of(index, example.target)
            image, before = self._resized(example.image)
            after = (image.shape[0], image.shape[1])
        ratio = (after[0] / before[0], after[1] / before[1])
        described = {"img": image, "ori_shape": before, "resized_shape": after, "ratio_pad": ratio}
        found: dict[str, Any] = self.update_labels_info({**label, **described})
        return found

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[Image, tuple[int, int], tuple[int, int]]:
        """Load an image, RGB, stretched to the square or with its long side resized to it.

        An image that a user's transforms will change is not resized yet.

        Returns:
            The read-only image, uint8 [h, w, 3]; its (height, width) before resizing, and (h, w).
        """
        loaded = self._cached.pop(i, None)
        if loaded is None:
            loaded = self._loaded(i)
            self._room -= loaded[0].nbytes
        self._cached[i] = loaded  # as the most recently used
        while self._room < 0:
            oldest, _ = self._cached.pop(next(iter(self._cached)))
            self._room += oldest.nbytes
        image, original = loaded
        return image, original, (image.shape[0], image.shape[1])

    def _loaded(self, i: int) -> tuple[Image, tuple[int, int]]:
        image = self.examples[i].image
        if self.user_augment is None:
            return self._resized(image)
        image = image.view()
        image.flags.writeable = False
        return image, (image.shape[0], image.shape[1])

    def _resized(self, image: Image) -> tuple[Image, tuple[int, int]]:
        height, width = image.shape[:2]
        scale = self.imgsz / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if self.stretches:
            size = (self.imgsz, self.imgsz)
        if size != (width, height):
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        image.flags.writeable = False
        return image, (height, width)
