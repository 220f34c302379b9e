"""What the segments of an object enclose, and the segments that enclose given pixels.

In data and answers an object is a list of segments, and nothing says which of them are holes. Everything that
makes masks of segments reads them by the rule of `regions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.annotations import BoolArray, IntArray

Points: TypeAlias = npt.NDArray[np.floating]
"""A closed outline, [n, 2] of (x, y)."""

_PointsT = TypeVar("_PointsT", bound=Points)

_TOLERANCE = 1e-3
"""A segment lies inside another one if no more than this fraction of its width and height sticks out."""
_ROUNDING = 1e-6
"""Rounding of coordinates, in fractions of the image, by which any segment may stick out."""
_MARGIN = 1e-9
"""Outlines that touch meet, despite rounding."""
_PAIRS_AT_ONCE = 1_000_000  # so that two outlines of many points never fill the memory


class Region(NamedTuple):
    """A part of an object: the area in `outline` that is in none of the `holes`."""

    outline: Points
    holes: tuple[Points, ...]


def regions(segments: Sequence[Points]) -> list[Region]:
    """Read an object's segments: its area is the union of the regions.

    A segment inside another one is a hole, a segment inside a hole is solid again, and so on. Segments beside
    or across each other, and equal ones, are united. A hole may touch the outline around it. One that leaves
    only a thin line of it is a hole if it runs the other way round, as in answers, and else as good as equal.

    Args:
        segments: normalised; their order and, but for such lines, their direction do not matter.
    """
    if len(segments) == 1:
        return [Region(segments[0], ())]
    inside = _containment(segments)
    is_hole = _odd_depth(inside)
    holes: dict[int, list[Points]] = {}
    for hole in np.flatnonzero(is_hole).tolist():
        around = np.flatnonzero(inside[hole])
        innermost = around[~inside[np.ix_(around, around)].any(axis=0)]
        for outline in innermost[~is_hole[innermost]].tolist():
            holes.setdefault(outline, []).append(segments[hole])
    return [Region(segments[i], tuple(holes.get(i, ()))) for i in np.flatnonzero(~is_hole).tolist()]


def are_holes(segments: Sequence[Points]) -> BoolArray:
    """Which of an object's segments are holes, bool [n]."""
    return _odd_depth(_containment(segments))


def overlap(segments: Sequence[Points]) -> bool:
    """Whether two of an object's segments are equal or lie across each other.

    If none do, the even-odd rule over all segments encloses the same area as the object.
    """
    if len(segments) == 1:
        return False
    within = _within(segments)
    if (within & within.T).any():
        return True
    low, high = _boxes(segments)
    touch = np.tri(len(segments), k=-1, dtype=np.bool_) & ~within & ~within.T
    for axis in (0, 1):
        touch &= low[:, None, axis] < high[:, axis]
        touch &= high[:, None, axis] > low[:, axis]
    pairs = ((segments[i], segments[j]) for i, j in np.argwhere(touch).tolist())
    return any(depth > 1 for pair in pairs for depth in _depths(*pair))


def without_equal_pairs(segments: Sequence[_PointsT]) -> list[_PointsT]:
    """Leave out pairs of equal segments: the even-odd rule cancels them out, `regions` unites them."""
    if len(segments) < 2:
        return list(segments)
    within = _within(segments)
    equal = within & within.T
    kept: list[int] = []
    for index in range(len(segments)):
        partner = next((other for other in kept if equal[index, other]), None)
        if partner is None:
            kept.append(index)
        else:
            kept.remove(partner)
    return [segments[index] for index in kept]


def _odd_depth(inside: BoolArray) -> BoolArray:
    """Whether segments lie inside an odd number of others that lie inside each other."""
    depth = np.zeros(len(inside), dtype=np.int64)
    for _ in depth:
        deeper = np.where(inside, depth + 1, 0).max(axis=1)
        if (deeper == depth).all():
            break
        depth = deeper
    is_odd: BoolArray = depth % 2 == 1
    return is_odd


def _containment(segments: Sequence[Points]) -> BoolArray:
    """Which segment (row) lies inside which other one (column), bool [n, n]; equal ones in neither."""
    within = _within(segments)
    return within & ~within.T


def _within(segments: Sequence[Points]) -> BoolArray:
    """Which segment (row) is in the area of which other one (column), bool [n, n]; equal ones in both."""
    low, high = _boxes(segments)
    slack = np.maximum(_TOLERANCE * (high - low), _ROUNDING)
    possible = ~np.eye(len(segments), dtype=np.bool_)
    for axis in (0, 1):
        possible &= (low + slack)[:, None, axis] >= low[:, axis]
        possible &= (high - slack)[:, None, axis] <= high[:, axis]
    within = np.zeros_like(possible)
    for inner, outer in np.argwhere(possible).tolist():
        within[inner, outer] = all(depth >= -1 for depth in _depths(segments[inner], segments[outer]))
    for one, other in np.argwhere(np.triu(within & within.T)).tolist():
        areas = [_signed_area(segments[index]) for index in (one, other)]
        inner, outer = (one, other) if abs(areas[0]) < abs(areas[1]) else (other, one)
        is_opposite = areas[0] * areas[1] < 0
        within[outer, inner] = not (is_opposite and _is_exactly_within(segments[inner], segments[outer]))
    return within


def _is_exactly_within(inner: Points, outer: Points) -> bool:
    """Whether a segment sticks out of a larger one by no more than rounding."""
    between = abs(_signed_area(outer)) - abs(_signed_area(inner))
    if between < 10 * _ROUNDING * float(np.ptp(outer, axis=0).sum()):
        return False  # rounding alone may be as much
    rounding = min(1.0, _ROUNDING / (_TOLERANCE * max(_ROUNDING, float(np.ptp(inner, axis=0).min()))))
    return all(depth >= -rounding for depth in _depths(inner, outer))


def _signed_area(segment: Points) -> float:
    """The area of a segment, negative if it runs the other way round."""
    x, y = segment.astype(np.float64).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def _boxes(segments: Sequence[Points]) -> tuple[Points, Points]:
    """The lowest and highest (x, y) of each segment, [n, 2]."""
    return (
        np.array([segment.min(axis=0) for segment in segments]),
        np.array([segment.max(axis=0) for segment in segments]),
    )


def _depths(inner: Points, outer: Points) -> Iterator[float]:
    """Yield how deep points of one outline lie inside another one; outside they are negative.

    The unit is what counts as touching. The points are such that the outline is inside, or outside, if all of
    them are.
    """
    import cv2  # may be missing where a packaged classifier is served

    low = inner.min(axis=0)
    size = np.maximum(np.ptp(inner, axis=0), _ROUNDING).astype(np.float64)
    tolerance = max(_TOLERANCE, _ROUNDING / float(size.min()))
    # In units of the inner segment's box, in which the tolerance is the same in both directions.
    contour = (outer - low) / size
    points = _probes((inner - low) / size, contour)
    contour = contour.astype(np.float32)
    for x, y in points.tolist():
        yield cv2.pointPolygonTest(contour, (x, y), True) / tolerance


def _probes(inner: npt.NDArray[np.float64], outer: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Points of an outline that are all in another one's area only if all of the outline is.

    Args:
        inner: in units of its own box.
    """
    steps, outer_steps = np.roll(inner, -1, axis=0) - inner, np.roll(outer, -1, axis=0) - outer
    edge, other = _close_edges(inner, outer)
    between = outer[other] - inner[edge]
    cross = _cross(steps[edge], outer_steps[other])
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction, along = _cross(between, outer_steps[other]) / cross, _cross(between, steps[edge]) / cross
    meet = (np.abs(fraction - 0.5) <= 0.5 + _MARGIN) & (np.abs(along - 0.5) <= 0.5 + _MARGIN)
    if not meet.any():
        return inner[:1]
    # Between two points where it meets the other outline, an edge is on one side, which its middle shows. Its
    # ends show it for the edges next to it.
    edge, fraction = edge[meet], fraction[meet].clip(0, 1)
    meeting = np.unique(edge)
    edge = np.concatenate([edge, meeting, meeting])
    fraction = np.concatenate([fraction, np.zeros(len(meeting)), np.ones(len(meeting))])
    order = np.lexsort((fraction, edge))
    edge, fraction = edge[order], fraction[order]
    is_part = edge[1:] == edge[:-1]
    middle, edge = ((fraction[1:] + fraction[:-1]) / 2)[is_part], edge[1:][is_part]
    ends = np.concatenate([meeting, (meeting + 1) % len(inner)])
    return np.concatenate([inner[ends], inner[edge] + middle[:, None] * steps[edge]])


def _close_edges(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> tuple[IntArray, IntArray]:
    """The pairs of two outlines' edges whose boxes touch: their indices in each."""
    (low, high), (other_low, other_high) = _edge_boxes(one), _edge_boxes(other)
    low, high = low - _MARGIN, high + _MARGIN
    near = np.flatnonzero(((other_low <= high.max(axis=0)) & (other_high >= low.min(axis=0))).all(axis=1))
    rows = max(1, _PAIRS_AT_ONCE // (len(near) + 1))
    found = []
    for first in range(0, len(one), rows):
        part = slice(first, first + rows)
        touch = np.ones((len(low[part]), len(near)), dtype=np.bool_)
        for axis in (0, 1):
            touch &= low[part, None, axis] <= other_high[near, axis]
            touch &= high[part, None, axis] >= other_low[near, axis]
        found.append(np.stack(np.nonzero(touch)) + np.array([[first], [0]]))
    edges, others = np.concatenate(found, axis=1)
    return edges, near[others]


def _edge_boxes(outline: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    following = np.roll(outline, -1, axis=0)
    return np.minimum(outline, following), np.maximum(outline, following)


def _cross(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    product: npt.NDArray[np.float64] = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return product


class Outline(NamedTuple):
    """A closed outline of a mask.

    Attributes:
        points: int64 [n, 2] of the (x, y) of pixel corners; a hole's run the other way round.
        is_hole: whether the pixels along its inner side are not set.
    """

    points: IntArray
    is_hole: bool


def trace(pixels: BoolArray) -> list[Outline]:
    """Trace a mask's outlines along the edges of its pixels; pixel i spans [i, i + 1].

    Pixels that touch by a corner belong together. No point lies on the line between its neighbours.
    `regions` reads the outlines as exactly these pixels.

    Args:
        pixels: bool [h, w].
    """
    padded = np.pad(pixels, 1).view(np.uint8)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    # An outline turns where one or three of the four pixels around a corner are set, and two outlines, or one
    # twice, where they are set as on a chessboard.
    turns_twice = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    y, x = np.nonzero((above_left ^ above_right ^ below_left ^ below_right).view(np.bool_) | turns_twice)
    is_double, descends = turns_twice[y, x], above_left[y, x].view(np.bool_)
    corner = np.repeat(np.arange(len(x)), 1 + is_double)
    is_second = np.concatenate([[False], corner[1:] == corner[:-1]])[: len(corner)]
    # Outlines leave corner 2k horizontally to 2k + 1 and back: these are neighbours in a row. In a column the
    # two turns of a double corner are so ordered that set pixels stay together.
    column_order = np.lexsort((is_second ^ (descends & is_double)[corner], y[corner], x[corner]))
    vertical = np.empty_like(column_order)
    vertical[column_order] = column_order.reshape(-1, 2)[:, ::-1].ravel()
    points, starts_hole = np.stack([x, y], axis=1)[corner], below_right[y, x][corner] == 0
    outlines = [(points[loop], bool(starts_hole[loop[0]])) for loop in _loops(vertical.tolist())]
    return [Outline(each[::-1] if is_hole else each, is_hole) for each, is_hole in outlines]


def _loops(vertical: list[int]) -> list[list[int]]:
    """Follow turns alternately to their neighbour in the row (2k ↔ 2k + 1) and in the column."""
    loops = []
    seen = bytearray(len(vertical))
    for first in range(0, len(vertical), 2):
        loop: list[int] = []
        turn = first
        while not seen[turn]:
            seen[turn] = seen[turn ^ 1] = 1
            loop += (turn, turn ^ 1)
            turn = vertical[turn ^ 1]
        if loop:
            loops.append(loop)
    return loops
