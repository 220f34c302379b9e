"""Suspicious boxes, by file and line: tiny, giant, very narrow or drawn twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray, IntArray
from trainer.data.quality.examined_images import ExaminedImages, object_sizes, with_offsets
from trainer.data.quality.finding import Finding, Place, counted
from trainer.data.reading.records import Records

MIN_SIDE, MIN_FRACTION = 8.0, 0.01
"""A box is tiny if a side is shorter than this many pixels or than this fraction of the image's side."""
GIANT_FRACTION = 0.95
"""A box is giant if it covers at least this fraction of the image."""
MAX_ASPECT = 20.0
"""A box is very narrow if one side is at least this many times the other."""
DOUBLE_BOX_IOU = 0.9
"""Two boxes of one class on one image with this IoU are likely the same object."""

DoubleArray: TypeAlias = npt.NDArray[np.float64]

_KINDS = {
    "tiny-boxes": (
        "tiny box",
        "tiny boxes",
        f"A side is shorter than {MIN_SIDE:.0f} pixels or {MIN_FRACTION:.0%} of the image, so little is "
        "left at the model's input size. Were they drawn by accident, or is tile_grid_size needed?",
    ),
    "giant-boxes": (
        "giant box",
        "giant boxes",
        f"They cover at least {GIANT_FRACTION:.0%} of the image. Is the whole image meant?",
    ),
    "narrow-boxes": (
        "very narrow box",
        "very narrow boxes",
        f"One side is at least {MAX_ASPECT:.0f} times the other; anchors rarely fit such boxes.",
    ),
    "double-boxes": (
        "object apparently labelled twice",
        "objects apparently labelled twice",
        f"Two boxes of one class overlap with an IoU of at least {DOUBLE_BOX_IOU}; remove one of them.",
    ),
}
"""Kind of finding → its noun, singular and plural, and why it matters."""


def find_suspicious_boxes(images: ExaminedImages) -> list[Finding]:
    """Find everything suspicious about boxes other than crowds."""
    found: dict[str, list[Place]] = {kind: [] for kind in _KINDS}
    for part, offset in with_offsets(images):
        fractions, pixels = object_sizes(part, images.sizes[offset : offset + len(part)])
        shortest_side = np.nan_to_num(pixels.min(axis=1, initial=np.inf), nan=np.inf)
        shortest_fraction = fractions.min(axis=1, initial=np.inf)
        sides = np.where(np.isnan(pixels), fractions, pixels)
        aspect = sides.max(axis=1, initial=0) / np.maximum(sides.min(axis=1, initial=np.inf), 1e-9)
        is_tiny = (shortest_side < MIN_SIDE) | (shortest_fraction < MIN_FRACTION)
        single = ~part.crowd if part.crowd is not None else np.ones(len(fractions), np.bool_)
        for kind, chosen in (
            ("tiny-boxes", is_tiny),
            ("giant-boxes", fractions.prod(axis=1) >= GIANT_FRACTION),
            ("narrow-boxes", (aspect >= MAX_ASPECT) & ~is_tiny),
        ):
            indices = np.flatnonzero(chosen & single)
            found[kind] += _places(part, offset, indices, fractions[indices], pixels[indices])
        found["double-boxes"] += [replace(each, index=each.index + offset) for each in _double_boxes(part)]
    return [
        Finding(kind, counted(len(found[kind]), one, several), why, found[kind])
        for kind, (one, several, why) in _KINDS.items()
        if found[kind]
    ]


def _places(
    part: Records, offset: int, indices: IntArray, fractions: FloatArray, pixels: FloatArray
) -> Iterator[Place]:
    """Yield the places of some objects, given with their sizes; `offset` is the index of the first image."""
    images = np.searchsorted(part.starts, indices, side="right") - 1
    for index, image, fraction, side in zip(
        indices.tolist(), images.tolist(), fractions, pixels, strict=True
    ):
        detail = f"{part.classes[part.labels[index]]}, {_size_text(fraction, side)}"
        number = index - int(part.starts[image])
        yield Place(offset + image, part.location(image), detail, number=number)


def _double_boxes(part: Records) -> list[Place]:
    """Objects in nearly the same place as an earlier one of their class and image."""
    assert part.boxes is not None, "tasks with boxes have them"
    places = []
    counts = np.diff(part.starts)
    for image in np.flatnonzero(counts > 1).tolist():
        start, end = int(part.starts[image]), int(part.starts[image + 1])
        boxes, labels = part.boxes[start:end].astype(np.float64), part.labels[start:end]
        # Sorted by left sides, so that only neighbours are compared in images with hundreds of objects.
        order = np.argsort(boxes[:, 0], kind="stable")
        sides = boxes[order]
        for offset in range(1, len(order)):
            near = np.abs(sides[offset:, 0] - sides[:-offset, 0]) <= 0.1 * (
                sides[:-offset, 2] - sides[:-offset, 0]
            )
            if not near.any():
                break
            near &= labels[order[offset:]] == labels[order[:-offset]]
            candidates = np.flatnonzero(near)
            is_double = _iou(sides[candidates], sides[candidates + offset]) >= DOUBLE_BOX_IOU
            for place in candidates[is_double].tolist():
                one, other = sorted((int(order[place]), int(order[place + offset])))
                detail = f"{part.classes[labels[other]]}: objects {one + 1} and {other + 1} of the line"
                places.append(Place(image, part.location(image), detail, number=other))
    return places


def _iou(boxes: DoubleArray, others: DoubleArray) -> DoubleArray:
    """IoU of each box with the other box of the same row; both xyxy [k, 4], of positive area."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, others)]
    return np.asarray(intersection / (areas[0] + areas[1] - intersection))


def _size_text(fraction: FloatArray, pixels: FloatArray) -> str:
    if np.isnan(pixels).any():
        return f"{fraction[0]:.1%} x {fraction[1]:.1%} of the image"
    return f"{pixels[0]:.0f} x {pixels[1]:.0f} pixels"
