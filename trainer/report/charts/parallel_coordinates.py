"""Parallel coordinates, which show the settings and the metric of many trials at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.report.charts.chart import Chart
from trainer.report.charts.scale import Scale, needs_log
from trainer.report.charts.svg import line, shape, text
from trainer.report.markup import Html, joined
from trainer.report.number_format import format_tick, format_value, is_number

_LEFT, _TOP, _RIGHT, _BOTTOM = 46.0, 40.0, 84.0, 14.0
_AXIS_HEIGHT = 230.0
_AXIS_DISTANCE = 118.0
_FEW_VALUES = 5
_MAX_NAMES = 12


def parallel_coordinates(
    name: str,
    title: str,
    axes: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    *,
    labels: Sequence[str],
    best: int | None = None,
    is_minimised: bool = False,
    notes: Sequence[str] = (),
) -> Chart:
    """Draw a vertical axis for each quantity and a line for each row.

    Args:
        axes: keys of the rows; the better a row's value on the last axis, the stronger its line.
        rows: values by axis; a missing value leaves a gap.
        labels: name of each row, for its tooltip.
        best: index of the row to highlight.
        is_minimised: lower values on the last axis are better.
    """
    drawn_axes = [_axis([row.get(axis) for row in rows]) for axis in axes]
    parts = []
    for index in sorted(range(len(rows)), key=lambda index: index == best):  # draw the best last, on top
        heights = [axis.heights[index] for axis in drawn_axes]
        values = {axis: rows[index][axis] for axis in axes if rows[index].get(axis) not in (None, "")}
        height = heights[-1] or 0.0
        strength = 1.0 if index == best else 0.2 + 0.6 * (1 - height if is_minimised else height)
        parts.append(_row_line(labels[index], values, heights, strength, index == best))
    for place, (axis, drawn_axis) in enumerate(zip(axes, drawn_axes, strict=True)):
        x = _LEFT + place * _AXIS_DISTANCE
        parts.append(line(x, _TOP, x, _TOP + _AXIS_HEIGHT, "axis"))
        # Names of neighbouring axes are at different heights, so that long ones do not overlap.
        label_y = 26 if place % 2 and len(axes) > 3 else 12
        parts.append(
            text(x, label_y, axis, anchor="middle", css_class="label", max_width=_AXIS_DISTANCE * 1.6)
        )
        for height, label in drawn_axis.ticks:
            y = _TOP + (1 - height) * _AXIS_HEIGHT
            parts.append(line(x - 3, y, x, y, "axis"))
            parts.append(text(x + 5, y + 3.5, label, max_width=_AXIS_DISTANCE - 30))
    best_named = "" if best is None else f" The best is {labels[best]}."
    description = f"{len(rows)} lines over the axes {', '.join(axes)}.{best_named}"
    width = _LEFT + max(1, len(axes) - 1) * _AXIS_DISTANCE + _RIGHT
    total_height = _TOP + _AXIS_HEIGHT + _BOTTOM
    return Chart(name, title, description, joined(parts), width, total_height, wide=True, notes=notes)


def _row_line(
    label: str,
    values: Mapping[str, object],
    heights: Sequence[float | None],
    strength: float,
    is_best: bool,
) -> Html:
    commands = "".join(
        f"{'L' if place and heights[place - 1] is not None else 'M'}{_LEFT + place * _AXIS_DISTANCE:.1f} "
        f"{_TOP + (1 - height) * _AXIS_HEIGHT:.1f}"
        for place, height in enumerate(heights)
        if height is not None
    )
    tooltip = f"{label}: " + ", ".join(f"{axis} {format_value(value)}" for axis, value in values.items())
    css_class = "line s1 key" if is_best else "line s0"
    return shape("path", tooltip, d=commands, class_=css_class, stroke_opacity=f"{strength:.2f}")


@dataclass(frozen=True)
class _Axis:
    """A vertical axis; heights on it are 0 at its lower end and 1 at its upper end.

    Attributes:
        heights: the height of each row's value; None leaves a gap in the row's line.
        ticks: (height, label) of each tick.
    """

    heights: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]


def _axis(values: Sequence[object]) -> _Axis:
    present = [value for value in values if value not in (None, "")]
    if present and all(map(is_number, present)):
        return _number_axis([value if is_number(value) else math.nan for value in values])
    names = sorted({str(value) for value in present})
    last = len(names) - 1
    height_of = {name: index / last if last else 0.5 for index, name in enumerate(names)}
    every = max(1, math.ceil(len(names) / _MAX_NAMES))
    heights = [None if value in (None, "") else height_of[str(value)] for value in values]
    return _Axis(heights, [(height_of[name], name) for name in names[::every]])


def _number_axis(values: Sequence[float]) -> _Axis:
    """Make an axis of numbers, logarithmic if they span orders of magnitude, with a tick at each if few."""
    finite = [value for value in values if math.isfinite(value)]
    choices = sorted(set(finite))
    scale = Scale.over(finite, log=needs_log(finite))
    has_tick_for_each = 1 < len(choices) <= _FEW_VALUES
    if has_tick_for_each and not scale.log:
        scale = Scale(choices[0], choices[-1])
    ticks = choices if has_tick_for_each else scale.ticks()
    heights = [scale.position(value) if math.isfinite(value) else None for value in values]
    return _Axis(heights, [(scale.position(tick), format_tick(tick)) for tick in ticks])
