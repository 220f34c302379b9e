"""A pipeline that Albumentations saved, as a file holds it.

Albumentations is an extra, `pip install 'image-trainer[albumentations]'`; only this file imports it, when a
file needs it. Its last release under the MIT licence is 2.0.8; its successor, under the AGPL, is not used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from trainer.annotations import FloatArray, Image, Objects, Target
from trainer.errors import JobError, Problem, did_you_mean, problem_of
from trainer.models.augmentation.file import REJECTED, SUMMARY, Augmentation, unknown
from trainer.models.augmentation.placing import place, points_of, polygons_of, traced
from trainer.models.geometry import Geometry
from trainer.models.masks import rasterise_all
from trainer.tasks import Task

NAME = "__class_fullname__"
_CONTAINERS = ("Compose", "ReplayCompose")
_NEED_MASKS = (
    *("ElasticTransform", "GridDistortion", "GridElasticDeform", "OpticalDistortion", "PiecewiseAffine"),
    *("RandomGridShuffle", "ThinPlateSpline", "Morphological", "CropNonEmptyMaskIfExists"),
)
"""Transforms after which straight edges are not straight or not joined, or that look at masks."""
_LIMITS = (
    *("min_area", "min_visibility", "min_width", "min_height", "max_accept_ratio"),
    "check_each_transform",
)
"""What `bbox_params` says beyond the form of the boxes, which is ours."""

_Path = tuple[str | int, ...]


def _library() -> Any:
    """The module `albumentations`.

    Raises:
        JobError: it is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # on import it would ask for newer versions
    try:
        import albumentations
    except ImportError as error:
        rule = "needs Albumentations, which is not installed"
        hint = "pip install 'image-trainer[albumentations]', or list torchvision's transforms instead"
        raise JobError(SUMMARY, [Problem("", "augmentation", rule, hint=hint)]) from error
    return albumentations


def build(augmentation: Augmentation, task: Task) -> AlbumentationsPipeline:
    """Build a saved pipeline's transforms.

    Raises:
        JobError: Albumentations is missing, a transform or argument is unknown, or a value is wrong.
    """
    library = _library()
    from albumentations.core.serialization import SERIALIZABLE_REGISTRY

    content: Mapping[str, Any] = augmentation.content
    root: _Path = () if (NAME,) in augmentation.lines else ("transform",)
    known = {
        name: kind
        for name, kind in SERIALIZABLE_REGISTRY.items()
        if name not in REJECTED and "3D" not in name and hasattr(library, name)
    }
    problems: list[Problem] = []
    is_container = _short(content) in _CONTAINERS
    entries = content.get("transforms") if is_container else [content]
    place_of: _Path = (*root, "transforms") if is_container else root
    transforms = _built(augmentation, place_of, entries, known, problems)
    if additional := content.get("additional_targets"):
        rule = "must be empty; an image has no targets but its own"
        problems.append(augmentation.problem((*root, "additional_targets"), rule, repr(additional)))
    if problems:
        raise JobError(SUMMARY, problems)
    options: dict[str, Any] = {"p": content.get("p", 1.0)} if is_container else {}
    if task.has_boxes:
        given = content.get("bbox_params") or {}
        limits = {name: given[name] for name in _LIMITS if given.get(name) is not None}
        options["bbox_params"] = library.BboxParams("albumentations", ["rows"], clip=True, **limits)
    names = set(_names(content))
    traces = bool(names.intersection(_NEED_MASKS))
    if task is Task.SEGMENTATION and not traces:
        options["keypoint_params"] = library.KeypointParams("xy", remove_invisible=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of boxes that no transform moves
        compose = library.Compose(transforms, **options)
    return AlbumentationsPipeline(compose, traces=traces)


def _short(entry: Mapping[str, Any]) -> str:
    """A transform's name without the package; a name in another package stays as it is."""
    name = str(entry.get(NAME, ""))
    return name.rpartition(".")[2] if name.startswith("albumentations.") else name


def _names(content: Any) -> list[str]:
    """The names of all transforms in a pipeline."""
    if isinstance(content, Mapping):
        own = [_short(content)] if NAME in content else []
        return own + [name for value in content.values() for name in _names(value)]
    return [name for value in content for name in _names(value)] if isinstance(content, list) else []


def _built(
    augmentation: Augmentation,
    path: _Path,
    entries: Any,
    known: Mapping[str, Any],
    problems: list[Problem],
) -> list[Any]:
    if not isinstance(entries, list) or not all(
        isinstance(each, Mapping) and NAME in each for each in entries
    ):
        rule = f"must be a list of transforms with {NAME}, as albumentations.save writes it"
        problems.append(augmentation.problem(path, rule))
        return []
    transforms = []
    for index, entry in enumerate(entries):
        place_of = (*path, index) if path and path[-1] == "transforms" else path
        name = _short(entry)
        if name not in known:
            problem = unknown(augmentation, place_of, name, "Albumentations 2.0", known)
            problems.append(problem)
            continue
        arguments = {key: value for key, value in entry.items() if key != NAME}
        count = len(problems)
        if "transforms" in arguments:
            nested = (*place_of, "transforms")
            arguments["transforms"] = _built(augmentation, nested, arguments["transforms"], known, problems)
        taken = signature(known[name].__init__).parameters
        # It saves arguments of the base classes, too, which the transform then does not take.
        saved = {key for base in known[name].__mro__ for key in signature(base.__init__).parameters}
        problems += [
            augmentation.problem((*place_of, key), f"is not an argument of {name}", "", _hint(key, taken))
            for key in arguments
            if key not in saved
        ]
        if "metadata_key" in taken or "reference_images" in taken:
            rule = f"needs other images, which {name} gets from nowhere here"
            problems.append(augmentation.problem(place_of, rule, hint="remove it"))
        if len(problems) > count:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it advises against transforms that are slow or renamed
                own = {key: value for key, value in arguments.items() if key in taken}
                transforms.append(known[name](**own))
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
            problems += _argument_problems(augmentation, place_of, name, error)
    return transforms


def _argument_problems(augmentation: Augmentation, path: _Path, name: str, error: Exception) -> list[Problem]:
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return [augmentation.problem(path, f"{name} must have arguments that it takes, but {error}")]
    return [
        augmentation.problem((*path, *item["loc"]), problem_of(item).rule, repr(item["input"]))
        for item in cause.errors()
    ]


def _hint(key: str, taken: Mapping[str, Any]) -> str:
    names = [name for name in taken if name != "self"]
    return did_you_mean(key, names, otherwise=f"it takes {', '.join(names)}")


class AlbumentationsPipeline:
    """A `trainer.models.augmentation.pipeline.Pipeline`.

    Args:
        traces: polygons are drawn as masks, moved, and traced again; otherwise their points are moved.
    """

    def __init__(self, compose: Any, *, traces: bool) -> None:
        self._compose = compose
        self._traces = traces

    def __call__(self, image: Image, target: Target) -> tuple[Image, Target]:
        # It has generators of its own.
        self._compose.set_random_seed(int(torch.randint(2**31, ())))
        image = image.copy()  # the image may be cached, and some transforms draw on what they get
        if not isinstance(target, Objects):
            return np.ascontiguousarray(self._compose(image=image)["image"]), target
        size = (image.shape[0], image.shape[1])
        indices = np.flatnonzero((target.boxes[:, 2:] > target.boxes[:, :2]).all(axis=1))
        sample: dict[str, Any] = {"bboxes": target.boxes[indices], "rows": np.arange(len(indices))}
        counts = None
        if target.polygons is not None and len(indices):
            if self._traces:
                sample["masks"] = rasterise_all(target, indices, Geometry(size, size, (1.0, 1.0)))
            else:
                points, counts = points_of(target, indices)
                sample["keypoints"] = points * size[::-1] - 0.5  # as indices of pixels
        sample = self._compose(image=image, **sample)
        augmented = np.ascontiguousarray(sample["image"])
        new_size = (augmented.shape[0], augmented.shape[1])
        rows = np.asarray(sample["rows"], dtype=np.int64)
        boxes = np.asarray(sample["bboxes"], dtype=np.float32).reshape(-1, 4)
        polygons: Sequence[Sequence[FloatArray]] | None = None
        if target.polygons is not None:
            every: Sequence[Sequence[FloatArray]] = []
            if "masks" in sample:
                every = [traced(np.ascontiguousarray(mask)) for mask in sample["masks"]]
            elif counts is not None:
                moved = (np.asarray(sample["keypoints"], dtype=np.float32) + 0.5) / new_size[::-1]
                every = polygons_of(moved.astype(np.float32), counts)
            polygons = [every[row] for row in rows.tolist()]
        return augmented, place(target, indices[rows], boxes, polygons, new_size)
