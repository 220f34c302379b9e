"""torchvision's transforms, made from an augmentation file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from trainer.annotations import FloatArray, Image, IntArray, Objects, Target
from trainer.errors import JobError, Problem, did_you_mean
from trainer.models.augmentation.file import SUMMARY, Augmentation, name_and_arguments
from trainer.models.augmentation.placing import place, points_of, polygons_of, traced
from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise_all
from trainer.tasks import Task

_NO_BOXES = ("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide")
_BENDING = ("ElasticTransform",)
"""Transforms after which straight edges are not straight."""
_HIDDEN = ("inplace", "labels_getter")
"""Arguments that would change cached images, or need a function."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)

_Path = tuple[str | int, ...]


class Outlines(tv_tensors.KeyPoints):
    """Points of polygons, in pixels from the image's corner.

    torchvision flips its own points as indices of pixels, a pixel off from boxes and images.
    """


def _flip_horizontally(points: Outlines) -> Outlines:
    return _mirrored(points, 0)


def _flip_vertically(points: Outlines) -> Outlines:
    return _mirrored(points, 1)


def _mirrored(points: Outlines, axis: int) -> Outlines:
    moved = points.as_subclass(torch.Tensor).clone()
    moved[:, axis] = points.canvas_size[1 - axis] - moved[:, axis]
    wrapped: Outlines = tv_tensors.wrap(moved, like=points)
    return wrapped


functional.register_kernel("horizontal_flip", Outlines)(_flip_horizontally)
functional.register_kernel("vertical_flip", Outlines)(_flip_vertically)


def build(augmentation: Augmentation, task: Task) -> TorchvisionPipeline:
    """Build a file's transforms.

    Raises:
        JobError: an argument is unknown or its value is wrong, or a transform does not suit the task.
    """
    problems: list[Problem] = []
    transforms = _built(augmentation, ("transforms",), augmentation.content, task, problems)
    if problems:
        raise JobError(SUMMARY, problems)
    bends = any(type(each).__name__ in _BENDING for each in v2.Compose(transforms).modules())
    return TorchvisionPipeline(transforms, traces=bends)


def _built(
    augmentation: Augmentation, path: _Path, entries: Sequence[Any], task: Task, problems: list[Problem]
) -> list[Any]:
    transforms = []
    for index, entry in enumerate(entries):
        named = name_and_arguments(entry)
        assert named is not None, "the file is checked"
        name, given = named
        place_of = (*path, index, name) if isinstance(entry, Mapping) else (*path, index)
        count = len(problems)
        if task.has_boxes and name in _NO_BOXES:
            rule = f"moves images without their boxes, so it cannot be used for {task}"
            problems.append(augmentation.problem(place_of, rule))
        kind = getattr(v2, name)
        arguments: dict[str, Any] = {}
        if isinstance(given.get("transforms"), list):
            nested = (*place_of, "transforms")
            arguments["transforms"] = _built(augmentation, nested, given["transforms"], task, problems)
        known = {key: each for key, each in signature(kind).parameters.items() if key not in _HIDDEN}
        listed = f"it takes {', '.join(known)}" if known else "it takes none"
        for key, value in given.items():
            if key not in known:
                hint = did_you_mean(key, known, otherwise=listed)
                problems.append(
                    augmentation.problem((*place_of, key), f"is not an argument of {name}", "", hint)
                )
            elif key not in arguments:
                arguments[key] = _argument(augmentation, (*place_of, key), value, problems)
        problems += [
            augmentation.problem((*place_of, key), "must be given", "", listed)
            for key, parameter in known.items()
            if parameter.default is Parameter.empty and key not in given
        ]
        if len(problems) > count:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                transforms.append(kind(**arguments))
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError, UserWarning) as error:
            shown = {key: value for key, value in given.items() if key != "transforms"}
            rule = f"must have arguments that torchvision takes, but {error}"
            problems.append(augmentation.problem(place_of, rule, repr(shown)))
    return transforms


def _argument(augmentation: Augmentation, path: _Path, value: Any, problems: list[Problem]) -> Any:
    """An argument's value: names of interpolations and policies become torchvision's own."""
    enumerations = {"interpolation": v2.InterpolationMode, "policy": v2.AutoAugmentPolicy}
    kind = enumerations.get(str(path[-1]))
    if kind is not None:
        try:
            return kind(str(value).lower())
        except ValueError:
            rule = f"must be one of {', '.join(member.value for member in kind)}"
            problems.append(augmentation.problem(path, rule, repr(value)))
            return value
    if isinstance(value, str) and _NUMBER.fullmatch(value):  # YAML reads 1e-3 as text
        return float(value)
    return value


class TorchvisionPipeline:
    """A `trainer.models.augmentation.pipeline.Pipeline`.

    Args:
        traces: polygons are drawn as masks, moved, and traced again, since their edges do not stay straight;
            otherwise their points are moved, exactly.
    """

    def __init__(self, transforms: Sequence[Any], *, traces: bool) -> None:
        self._transform = v2.Compose(transforms) if transforms else v2.Identity()
        self._traces = traces

    def __call__(self, image: Image, target: Target) -> tuple[Image, Target]:
        # Not a copy of an image that may be written to: colours stay interleaved, which is faster to resize.
        pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
        sample: dict[str, Any] = {"image": tv_tensors.Image(pixels.permute(2, 0, 1))}
        indices, counts = np.zeros(0, dtype=np.int64), None
        if isinstance(target, Objects):
            size = (image.shape[0], image.shape[1])
            indices = np.flatnonzero((target.boxes[:, 2:] > target.boxes[:, :2]).all(axis=1))
            sample |= _moving(target, indices, size)
            if target.polygons is not None and len(indices):
                if self._traces:
                    masks = rasterise_all(target, indices, Geometry(size, size, (1.0, 1.0)))
                    sample["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
                else:
                    points, counts = points_of(target, indices)
                    scaled = torch.from_numpy(points) * torch.tensor(size[::-1])
                    sample["points"] = Outlines(scaled, canvas_size=size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # RandomErasing says that boxes stay as they are
            sample = self._transform(sample)
        augmented = sample["image"].permute(1, 2, 0).contiguous().numpy()
        if not isinstance(target, Objects):
            return augmented, target
        return augmented, _moved(target, indices, sample, counts, (augmented.shape[0], augmented.shape[1]))


def _moving(objects: Objects, indices: IntArray, size: tuple[int, int]) -> dict[str, Any]:
    """Boxes in pixels; and the objects' indices as labels, so that the boxes that are dropped are known."""
    boxes = torch.from_numpy(objects.boxes[indices]) * torch.tensor(size[::-1] * 2)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.arange(len(indices)),
    }


def _moved(
    objects: Objects,
    indices: IntArray,
    sample: Mapping[str, Any],
    counts: list[list[int]] | None,
    size: tuple[int, int],
) -> Objects:
    rows = sample["labels"].numpy()
    boxes = sample["boxes"].as_subclass(torch.Tensor).numpy() / np.array(size[::-1] * 2, dtype=np.float32)
    # RandomIoUCrop makes the boxes that it drops empty.
    filled = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    rows, boxes = rows[filled], boxes[filled]
    polygons: list[list[FloatArray]] | None = None
    if objects.polygons is not None:
        if "masks" in sample:
            masks = sample["masks"].as_subclass(torch.Tensor).numpy()  # SanitizeBoundingBoxes drops them, too
            polygons = [traced(mask) for mask in masks[filled]]
        elif counts is not None:
            points = sample["points"].as_subclass(torch.Tensor).numpy() / np.array(size[::-1])
            every = polygons_of(points.astype(np.float32), counts)
            polygons = [every[row] for row in rows.tolist()]
        else:
            polygons = []
    return place(objects, indices[rows], boxes, polygons, size)
