"""ultralytics' augmentation over our examples: mosaic, affine, HSV, flip. For ultralytics_family.py alone."""

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
from ultralytics.data.augment import Compose, Format, RandomPerspective
from ultralytics.data.converter import merge_multi_segment
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import DEFAULT_CFG, patches
from ultralytics.utils.ops import resample_segments

from trainer.annotations import Examples, FloatArray, Image, Objects, Target
from trainer.models.spec import Spec
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

# ultralytics replaces these for the whole process, and its `open` would install packages for a file that is
# no image: put the originals back. Here, because whatever of ours needs ultralytics imports this module.
PIL.Image.open, torch.save = patches._image_open, patches._torch_save

STRIDE = 32
CLOSE_MOSAIC = 10  # the last epochs are trained without mosaic, as ultralytics does
_GREY = 114  # where no image is, as everywhere in ultralytics
_OUTLINE_POINTS = 1000  # as many as ultralytics gives every outline


def label_of(truth: Objects, *, masks: bool) -> dict[str, Any]:
    """What ultralytics calls an image's label; crowds are left out, since it has no notion of them.

    Returns:
        cls float32 [n, 1]; bboxes float32 [n, 4], normalised centre x and y, width, height; segments: with
        `masks`, of each object one outline float32 [points, 2], normalised.
    """
    kept = np.flatnonzero(~truth.crowd)
    boxes = truth.boxes[kept]
    placed = np.empty(boxes.shape, dtype=np.float32)
    placed[:, :2], placed[:, 2:] = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    outlines: list[FloatArray] = []
    if masks:
        assert truth.polygons is not None, "segmentation data hold polygons"
        outlines = [_outline(truth.polygons[i]) for i in kept]
    return {
        "cls": truth.labels[kept].astype(np.float32)[:, None],
        "bboxes": placed,
        "segments": outlines,
    }


def _outline(segments: Sequence[FloatArray]) -> FloatArray:
    """One outline through all segments of an object, joined by lines where they are nearest."""
    # Joining compares all points with all.
    parts = [
        part if len(part) <= _OUTLINE_POINTS else resample_segments([part], _OUTLINE_POINTS)[0]
        for part in segments
    ]
    outline = parts[0] if len(parts) == 1 else np.concatenate(merge_multi_segment(parts))
    return np.asarray(outline, dtype=np.float32)


class _Labels:
    """The labels as ultralytics reads them, made one by one: those of a large data set fill the memory."""

    def __init__(self, truths: Sequence[Target], *, masks: bool) -> None:
        self.targets, self.masks = truths, masks

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        truth = self.targets[index]
        assert isinstance(truth, Objects)
        fixed = {"keypoints": None, "normalized": True, "bbox_format": "xywh"}
        return {"im_file": str(index), **label_of(truth, masks=self.masks), **fixed}


def kept_bytes(settings: Settings) -> int:
    """For resized images; with tiles it is the whole images that are kept, by who decodes them."""
    return 0 if settings.tile_grid_size is not None else settings.image_cache_megabytes * 2**20


class _Format(Format):
    """ultralytics' last step, but that images come RGB and leave with their colours side by side in memory.

    That saves two passes over the pixels, and is the layout in which the networks take them. The one
    transform that would have images BGR moves their hue, by as much either way.
    """

    def _format_img(self, img: Image) -> Tensor:
        if img.strides[1] < 0:  # flipped, of which NumPy only takes note; it would copy pixel by pixel
            img = np.asarray(cv2.flip(img[:, ::-1], 1), dtype=np.uint8)
        return torch.from_numpy(np.require(img, requirements=("C", "W"))).permute(2, 0, 1)


class _Placing(RandomPerspective):
    """ultralytics' scaling and moving by a resize, which takes a third of the time of a warp.

    For that the seen part of the image and where it goes to are rounded to whole pixels, and the matrix, by
    which boxes and outlines go along, is made to say so: in that part it is within a pixel of the one drawn.
    """

    def get_params(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Also "spans": of x and y the start and end of the seen part, in the image and in the target."""
        params: dict[str, Any] = super().get_params(labels)
        matrix = params["M"]
        if matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1]:
            return params  # turned or sheared
        spans = []
        for axis, (length, target) in enumerate(zip(params["orig_shape"][::-1], params["size"], strict=True)):
            scale, shift = float(matrix[axis, axis]), float(matrix[axis, 2])
            first, last = (_whole((edge - shift) / scale, length) for edge in (0, target))
            # What the image goes beyond is filled to its border, whatever a rounded edge comes to.
            start = 0 if shift < 0 else _whole(shift, target)
            end = target if scale * length + shift > target else _whole(scale * length + shift, target)
            if first >= last or start >= end:
                return params  # nothing is seen
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
    """The nearest of 0 to `most`; halves are rounded up, all alike, so that equal lengths stay equal."""
    return min(max(math.floor(value + 0.5), 0), most)


def _each(transforms: Compose) -> Iterator[Any]:
    for transform in transforms.transforms:
        if isinstance(transform, Compose):
            yield from _each(transform)
        else:
            yield transform


class TrainingDataset(YOLODataset):
    """Items for the family's `collate`: "img" uint8 [3, s, s] and what ultralytics makes of the label.

    Also "epoch" and "epochs", how far the training is, and with multi_scale "size", the batch's.

    ultralytics draws from the global generators of random and numpy; the loader seeds both for each item.

    Images are kept as the mosaic takes them, within `image_cache_megabytes`; those that were not asked for
    longest make room.
    """

    format_class = _Format

    def __init__(self, spec: Spec, examples: Examples, settings: Settings, *, stretches: bool) -> None:
        self.examples = examples
        self.stretches = stretches
        self.hyperparameters = copy(DEFAULT_CFG)
        self._room = kept_bytes(settings)
        self._kept: dict[int, tuple[Image, tuple[int, int]]] = {}
        self.multi_scale = settings.multi_scale
        self.epoch, self.epochs = 0, settings.number_of_epochs
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
            task="segment" if spec.task is Task.SEGMENTATION else "detect",
            data={"names": dict(enumerate(spec.classes)), "channels": 3},
        )
        self.buffer: Sequence[int] = range(len(examples))

    def at_epoch(self, epoch: int, pool: Sequence[int] = ()) -> None:
        """Close the mosaic for the last epochs; in a run shorter than twice that, for the last half.

        Args:
            pool: examples from which a mosaic's other images are taken; none: from all.
        """
        self.epoch = epoch
        # ultralytics draws from its `buffer`.
        self.buffer = pool or range(len(self.examples))
        closing = max(self.epochs - CLOSE_MOSAIC, self.epochs // 2)
        if epoch >= closing and self.hyperparameters.mosaic:
            self.close_mosaic(self.hyperparameters)

    def build_transforms(self, hyp: Any = None) -> Compose:
        transforms = super().build_transforms(hyp)
        if self.use_segments:
            return transforms  # nuclei came out worse with a resize, by chance or not: benchmarks/RESULTS.md
        for transform in _each(transforms):
            if type(transform) is RandomPerspective:
                transform.__class__ = _Placing  # it has no state of its own, and several hold this one
        return transforms

    def get_img_files(self, img_path: Any) -> list[str]:
        return [str(index) for index in range(len(self.examples))]

    def get_labels(self) -> _Labels:
        return _Labels(self.examples.targets, masks=self.use_segments)

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """As ultralytics' own, but that the label, which is made anew each time, is not copied first."""
        label = self.labels[index]
        image, before, after = self.load_image(index)
        ratio = (after[0] / before[0], after[1] / before[1])
        described = {"img": image, "ori_shape": before, "resized_shape": after, "ratio_pad": ratio}
        found: dict[str, Any] = self.update_labels_info({**label, **described})
        return found

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[Image, tuple[int, int], tuple[int, int]]:
        """RGB, stretched to the square, or its long side resized.

        Returns:
            uint8 [h, w, 3], not to be written into; (height, width) before, and (h, w).
        """
        kept = self._kept.pop(i, None)
        if kept is None:
            kept = self._loaded(i)
            self._room -= kept[0].nbytes
        self._kept[i] = kept  # the latest
        while self._room < 0:
            oldest, _ = self._kept.pop(next(iter(self._kept)))
            self._room += oldest.nbytes
        image, original = kept
        return image, original, (image.shape[0], image.shape[1])

    def _loaded(self, i: int) -> tuple[Image, tuple[int, int]]:
        image = self.examples[i].image
        height, width = image.shape[:2]
        scale = self.imgsz / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if self.stretches:
            size = (self.imgsz, self.imgsz)
        if size != (width, height):
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        image.flags.writeable = False
        return image, (height, width)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = super().__getitem__(index)
        item["epoch"], item["epochs"] = self.epoch, self.epochs
        if self.multi_scale:
            side = self.imgsz * random.uniform(0.5, 1.5)
            item["size"] = max(STRIDE, round(side / STRIDE) * STRIDE)
        return item
