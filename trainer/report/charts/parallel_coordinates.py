"""Parallel coordinates, which show the settings and the metric of many trials at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trainer.report.charts.chart import Chart
from trainer.report.charts.scale import Scale, needs_log
from trainer.report.charts.svg import line, shape, text
from trainer.report.markup import Html, joined
from trainer.report.number_format import format_tick, format_value

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
    notes: Sequence[str] = (),
) -> Chart:
    """Draw a vertical axis for each quantity and a line for each row.

    Args:
        axes: keys of the rows; the higher a row's value on the last axis, the stronger its line.
        rows: values by axis; a missing value leaves a gap.
        labels: name of each row, for its tooltip.
        best: index of the row to highlight.
    """
    scales = [_axis([row.get(axis) for row in rows]) for axis in axes]
    order = [index for index in range(len(rows)) if index != best] + ([best] if best is not None else [])
    parts = [_row_line(axes, scales, rows[index], labels[index], index == best) for index in order]
    for place, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        x = _LEFT + place * _AXIS_DISTANCE
        parts.append(line(x, _TOP, x, _TOP + _AXIS_HEIGHT, "axis"))
        # Names of neighbouring axes are at different heights, so that long ones do not overlap.
        label_y = 26 if place % 2 and len(axes) > 3 else 12
        parts.append(
            text(x, label_y, axis, anchor="middle", css_class="label", max_width=_AXIS_DISTANCE * 1.6)
        )
        for position, label in scale.ticks():
            y = _TOP + (1 - position) * _AXIS_HEIGHT
            parts.append(line(x - 3, y, x, y, "axis"))
            parts.append(text(x + 5, y + 3.5, label, max_width=_AXIS_DISTANCE - 30))
    best_named = "" if best is None else f" The best is {labels[best]}."
    description = f"{len(rows)} lines over the axes {', '.join(axes)}.{best_named}"
    width = _LEFT + max(1, len(axes) - 1) * _AXIS_DISTANCE + _RIGHT
    height = _TOP + _AXIS_HEIGHT + _BOTTOM
    return Chart(name, title, description, joined(parts), width, height, wide=True, notes=notes)


def _row_line(
    axes: Sequence[str],
    scales: Sequence[_NumberAxis | _NameAxis],
    row: Mapping[str, object],
    label: str,
    is_best: bool,
) -> Html:
    positions = [scale.position(row.get(axis)) for axis, scale in zip(axes, scales, strict=True)]
    commands = "".join(
        f"{'L' if place and positions[place - 1] is not None else 'M'}{_LEFT + place * _AXIS_DISTANCE:.1f} "
        f"{_TOP + (1 - position) * _AXIS_HEIGHT:.1f}"
        for place, position in enumerate(positions)
        if position is not None
    )
    opacity = 1.0 if is_best else 0.2 + 0.6 * (positions[-1] or 0.0)
    values = ", ".join(
        f"{axis} {format_value(row[axis])}" for axis in axes if row.get(axis) not in (None, "")
    )
    css_class = "line s1 key" if is_best else "line s0"
    return shape("path", f"{label}: {values}", d=commands, class_=css_class, stroke_opacity=f"{opacity:.2f}")


class _NumberAxis:
    """An axis of numbers, logarithmic if they span orders of magnitude."""

    def __init__(self, values: Sequence[float]) -> None:
        distinct = sorted(set(values))
        self._choices = distinct if 1 < len(distinct) <= _FEW_VALUES else []
        self._scale = Scale.over(values, log=needs_log(values))
        if self._choices and not self._scale.log:
            self._scale = Scale(self._choices[0], self._choices[-1])

    def position(self, value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return self._scale.position(value)

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and labels; a choice among few numbers has each of them as a tick."""
        values = self._choices or self._scale.ticks()
        return [(self._scale.position(value), format_tick(value)) for value in values]


class _NameAxis:
    """An axis of names in alphabetical order."""

    def __init__(self, values: Sequence[str]) -> None:
        self._names = sorted(set(values))

    def position(self, value: object) -> float | None:
        if value in (None, "") or str(value) not in self._names:
            return None
        if len(self._names) == 1:
            return 0.5
        return self._names.index(str(value)) / (len(self._names) - 1)

    def ticks(self) -> list[tuple[float, str]]:
        every = max(1, math.ceil(len(self._names) / _MAX_NAMES))
        return [(self.position(name) or 0.0, name) for name in self._names[::every]]


def _axis(values: Sequence[object]) -> _NumberAxis | _NameAxis:
    present = [value for value in values if value not in (None, "")]
    numbers = [value for value in present if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(present):
        return _NumberAxis([float(value) for value in numbers])
    return _NameAxis([str(value) for value in present])
