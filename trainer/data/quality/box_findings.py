"""What is odd about boxes: tiny, giant, very narrow, or drawn twice; by file and line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from trainer.annotations import FloatArray, IntArray
from trainer.data.quality.examined_images import Finding, Images, Place, counted, object_sizes, with_offsets
from trainer.data.reading.records import Records

SMALLEST_SIDE, SMALLEST_SHARE = 8.0, 0.01
"""A box is tiny if a side is shorter than so many pixels, or than this share of the image's side."""
GIANT_SHARE = 0.95
"""A box is giant if it covers this share of the image."""
NARROWEST = 20.0
"""A box is odd whose one side is so many times the other."""
SAME_BOX = 0.9
"""Two boxes of one class on one image with this IoU are likely the same object."""


def find(images: Images) -> list[Finding]:
    """All that is odd about the boxes, crowds aside."""
    tiny: list[Place] = []
    giant: list[Place] = []
    narrow: list[Place] = []
    same: list[Place] = []
    for part, offset in with_offsets(images):
        sizes = images.sizes[offset : offset + len(part)]
        shares, pixels = object_sizes(part, sizes)
        image_of = np.repeat(np.arange(len(part)), np.diff(part.starts))
        shortest = np.nan_to_num(pixels.min(axis=1, initial=np.inf), nan=np.inf)
        least = shares.min(axis=1, initial=np.inf)
        sides = np.where(np.isnan(pixels), shares, pixels)
        ratio = sides.max(axis=1, initial=0) / np.maximum(sides.min(axis=1, initial=np.inf), 1e-9)
        crowd = part.crowd if part.crowd is not None else np.zeros(len(shares), np.bool_)

        def places(
            chosen: npt.NDArray[np.bool_], *, part: Records = part, offset: int = offset,
            shares: FloatArray = shares, pixels: FloatArray = pixels, image_of: IntArray = image_of,
        ) -> Iterable[Place]:  # fmt: skip
            for index in np.flatnonzero(chosen).tolist():
                image = int(image_of[index])
                said = f"{part.classes[part.labels[index]]}, {_sides_shown(shares[index], pixels[index])}"
                number = index - int(part.starts[image])
                yield Place(offset + image, part.location(image), said, None, number)

        is_tiny = (shortest < SMALLEST_SIDE) | (least < SMALLEST_SHARE)
        tiny += places(is_tiny & ~crowd)
        giant += places((shares.prod(axis=1) >= GIANT_SHARE) & ~crowd)
        narrow += places((ratio >= NARROWEST) & ~is_tiny & ~crowd)
        same += [replace(place, index=place.index + offset) for place in _same_boxes(part)]
    found = []
    if tiny:
        title = f"{counted(len(tiny), 'tiny box', 'tiny boxes')}"
        why = (
            f"A side is shorter than {SMALLEST_SIDE:.0f} pixels or {SMALLEST_SHARE:.0%} of the image: little "
            "is left of it at the model's input size. A slip of the hand, or a case for tile_grid_size?"
        )
        found.append(Finding("tiny-boxes", title, why, tiny))
    if giant:
        title = f"{counted(len(giant), 'giant box', 'giant boxes')}"
        why = f"They cover at least {GIANT_SHARE:.0%} of the image: is the whole picture meant?"
        found.append(Finding("giant-boxes", title, why, giant))
    if narrow:
        title = f"{counted(len(narrow), 'very narrow box', 'very narrow boxes')}"
        why = f"One side is at least {NARROWEST:.0f} times the other; detectors' anchors seldom fit these."
        found.append(Finding("narrow-boxes", title, why, narrow))
    if same:
        title = f"{counted(len(same), 'object')} that seem to be labelled twice"
        why = f"Two boxes of one class overlap by an IoU of {SAME_BOX} or more; the second misleads."
        found.append(Finding("double-boxes", title, why, same))
    return found


def _same_boxes(part: Records) -> list[Place]:
    """Objects with an earlier one of their class and image in nearly the same place."""
    assert part.boxes is not None, "tasks with boxes have them"
    places = []
    counts = np.diff(part.starts)
    for image in np.flatnonzero(counts > 1).tolist():
        begin, end = int(part.starts[image]), int(part.starts[image + 1])
        boxes, labels = part.boxes[begin:end].astype(np.float64), part.labels[begin:end]
        # By their left sides, so that of an image with hundreds of objects only neighbours are compared.
        order = np.argsort(boxes[:, 0], kind="stable")
        sides = boxes[order]
        for offset in range(1, len(order)):
            near = np.abs(sides[offset:, 0] - sides[:-offset, 0]) <= 0.1 * (
                sides[:-offset, 2] - sides[:-offset, 0]
            )
            if not near.any():
                break
            for place in np.flatnonzero(near & (labels[order[offset:]] == labels[order[:-offset]])).tolist():
                if _overlap(sides[place], sides[place + offset]) >= SAME_BOX:
                    one, other = sorted((int(order[place]), int(order[place + offset])))
                    detail = f"{part.classes[labels[other]]}: objects {one + 1} and {other + 1} of the line"
                    places.append(Place(image, part.location(image), detail, None, other))
    return places


def _overlap(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(both / (sum(areas) - both))


def _sides_shown(share: FloatArray, pixels: FloatArray) -> str:
    if np.isnan(pixels).any():
        return f"{share[0]:.1%} x {share[1]:.1%} of the image"
    return f"{pixels[0]:.0f} x {pixels[1]:.0f} pixels"
