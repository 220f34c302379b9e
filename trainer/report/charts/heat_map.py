"""Charts without two number axes: the heat map of a confusion matrix, and parallel coordinates of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trainer.report.charts.chart import Chart, text, width_of
from trainer.report.charts.scale import Scale, shown, tick_shown, wants_log
from trainer.report.markup import Table, escape

_LARGEST_MATRIX = 40
_WITH_NUMBERS = 16
"""More rows or columns than this leave no room for the numbers in the cells."""
_SQUARE = 30.0
_AXIS_HEIGHT = 230.0
_AXIS_DISTANCE = 118.0
_FEW_VALUES = 5


def heat_map(
    name: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    row_heading: str,
    column_heading: str,
    remarks: Sequence[str] = (),
) -> Chart:
    """A matrix of counts, each row shaded by its share: a row's full colour is all of that row.

    Of a matrix with more than 40 rows those with the most off their diagonal are drawn, with the columns
    where these are; the file has all.
    """
    table = Table(name, title, (f"{row_heading} \\ {column_heading}", *columns), [
        (label, *values) for label, values in zip(rows, counts, strict=True)
    ])  # fmt: skip
    chosen_rows, chosen_columns = _chosen(rows, columns, counts)
    if len(chosen_rows) < len(rows) or len(chosen_columns) < len(columns):
        remarks = (
            *remarks,
            f"The {len(chosen_rows)} of {len(rows)} classes with the most confusions are drawn; "
            f"{name}.csv has all.",
        )
    size = _SQUARE if len(chosen_columns) <= _WITH_NUMBERS else 16.0
    left = min(140.0, max(width_of(rows[index]) for index in chosen_rows) + 30) if chosen_rows else 60.0
    top = min(120.0, max((width_of(columns[index]) for index in chosen_columns), default=0.0) * 0.75 + 44)
    drawn = [
        text(left, 14, f"{column_heading} →", kind="label"),
        text(6, top - 8, f"{row_heading} ↓", kind="label"),
    ]
    for place, index in enumerate(chosen_columns):
        x = left + (place + 0.6) * size
        said = columns[index]
        short = said if width_of(said) * 0.75 <= 76 else said[:15] + "…"
        drawn.append(
            f'<text transform="translate({x:.1f} {top - 6:.1f}) rotate(-48)">{escape(short)}'
            f"<title>{escape(said)}</title></text>"
        )
    for place, index in enumerate(chosen_rows):
        y = top + place * size
        drawn.append(text(left - 6, y + size / 2 + 4, rows[index], anchor="end", room=left - 10))
        total = sum(counts[index])
        for column_place, column in enumerate(chosen_columns):
            count = counts[index][column]
            x = left + column_place * size
            share = count / total if total else 0.0
            told = f"{row_heading} {rows[index]}, {column_heading} {columns[column]}: {count:,}"
            if total:
                told += f" of {total:,} ({share:.0%})"
            drawn.append(
                f'<rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{size - 1:g}" height="{size - 1:g}" '
                f'class="cell" fill-opacity="{0.04 + 0.96 * share:.2f}"><title>{escape(told)}</title></rect>'
            )
            if count and size >= _SQUARE:
                said = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
                ink = "on" if share > 0.5 else "off"
                drawn.append(text(x + size / 2, y + size / 2 + 4, said, anchor="middle", kind=ink))
    # The last names lean over the right edge of the cells.
    lean = max((min(76.0, width_of(columns[index]) * 0.75) for index in chosen_columns), default=0.0)
    width, height = left + len(chosen_columns) * size + lean, top + len(chosen_rows) * size + 8
    described = _confusions(rows, columns, counts)
    return Chart(name, title, described, "".join(drawn), max(width, 300.0), height, table,
                 wide=width > 520, remarks=tuple(remarks))  # fmt: skip


def _chosen(
    rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    if max(len(rows), len(columns)) <= _LARGEST_MATRIX:
        return list(range(len(rows))), list(range(len(columns)))
    wrong = [
        sum(count for column, count in enumerate(values) if columns[column] != label)
        for label, values in zip(rows, counts, strict=True)
    ]
    worst = sorted(sorted(range(len(rows)), key=lambda row: -wrong[row])[:_LARGEST_MATRIX])
    labels = {rows[row] for row in worst}
    return worst, [index for index, label in enumerate(columns) if label in labels or label not in rows]


def _confusions(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The confusions that occur most, in words."""
    pairs = sorted(
        (
            (-count, f"{label} taken for {columns[column]} {count:,} times")
            for label, values in zip(rows, counts, strict=True)
            for column, count in enumerate(values)
            if count and columns[column] != label
        ),
        key=lambda pair: pair[0],
    )
    right = sum(
        count
        for label, values in zip(rows, counts, strict=True)
        for column, count in enumerate(values)
        if columns[column] == label
    )
    told = f"{right:,} of {sum(map(sum, counts)):,} on the diagonal. "
    return told + (
        "Most often: " + "; ".join(said for _, said in pairs[:5]) + "." if pairs else "None is off it."
    )


def parallel(
    name: str,
    title: str,
    axes: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    *,
    labels: Sequence[str],
    best: int | None = None,
    remarks: Sequence[str] = (),
) -> Chart:
    """A vertical axis for each quantity and a line for each row; the last axis colours the lines.

    Args:
        rows: what is missing on an axis leaves a gap.
        labels: what each line is, for its tooltip.
        best: the row that stands out.
    """
    scales = [_axis([row.get(axis) for row in rows]) for axis in axes]
    left, top = 46.0, 40.0
    width = left + max(1, len(axes) - 1) * _AXIS_DISTANCE + 84
    drawn: list[str] = []
    order = [index for index in range(len(rows)) if index != best] + ([best] if best is not None else [])
    for index in order:
        points = [
            None if (at := scale.position(rows[index].get(axis))) is None
            else (left + place * _AXIS_DISTANCE, top + (1 - at) * _AXIS_HEIGHT)
            for place, (axis, scale) in enumerate(zip(axes, scales, strict=True))
        ]  # fmt: skip
        last = scales[-1].position(rows[index].get(axes[-1]))
        stressed = index == best
        opacity = 1.0 if stressed else 0.2 + 0.6 * (last or 0.0)
        told = f"{labels[index]}: " + ", ".join(
            f"{axis} {shown(rows[index][axis])}" for axis in axes if rows[index].get(axis) not in (None, "")
        )
        path = "".join(
            f"{'L' if place and points[place - 1] is not None else 'M'}{point[0]:.1f} {point[1]:.1f}"
            for place, point in enumerate(points)
            if point is not None
        )
        kind = "line s1 key" if stressed else "line s0"
        drawn.append(
            f'<path d="{path}" class="{kind}" stroke-opacity="{opacity:.2f}">'
            f"<title>{escape(told)}</title></path>"
        )
    for place, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        x = left + place * _AXIS_DISTANCE
        drawn.append(
            f'<line x1="{x:.1f}" y1="{top:g}" x2="{x:.1f}" y2="{top + _AXIS_HEIGHT:g}" class="axis"/>'
        )
        high = place % 2 and len(axes) > 3  # long names of neighbours stand at different heights
        drawn.append(
            text(x, 26 if high else 12, axis, anchor="middle", kind="label", room=_AXIS_DISTANCE * 1.6)
        )
        for at, said in scale.ticks():
            y = top + (1 - at) * _AXIS_HEIGHT
            drawn.append(f'<line x1="{x - 3:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y:.1f}" class="axis"/>')
            drawn.append(text(x + 5, y + 3.5, said, room=_AXIS_DISTANCE - 30))
    chosen = "" if best is None else f" The best is {labels[best]}."
    described = f"{len(rows)} lines over the axes {', '.join(axes)}.{chosen}"
    return Chart(name, title, described, "".join(drawn), width, top + _AXIS_HEIGHT + 14, wide=True,
                 remarks=tuple(remarks))  # fmt: skip


class _Numbers:
    """An axis of numbers."""

    def __init__(self, values: Sequence[float]) -> None:
        self._few = sorted(set(values)) if 1 < len(set(values)) <= _FEW_VALUES else []
        self._scale = Scale.over(values, log=wants_log(values))
        if self._few and not self._scale.log:
            self._scale = Scale(self._few[0], self._few[-1])

    def position(self, value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return self._scale.position(value)

    def ticks(self) -> list[tuple[float, str]]:
        # Of a choice of a few numbers each stands at its axis.
        return [
            (self._scale.position(value), tick_shown(value)) for value in self._few or self._scale.ticks()
        ]


class _Words:
    """An axis of names, in their order."""

    def __init__(self, values: Sequence[str]) -> None:
        self._names = sorted(set(values))

    def position(self, value: object) -> float | None:
        if value in (None, "") or str(value) not in self._names:
            return None
        if len(self._names) == 1:
            return 0.5
        return self._names.index(str(value)) / (len(self._names) - 1)

    def ticks(self) -> list[tuple[float, str]]:
        every = max(1, math.ceil(len(self._names) / 12))
        return [(self.position(name) or 0.0, name) for name in self._names[::every]]


def _axis(values: Sequence[object]) -> _Numbers | _Words:
    known = [value for value in values if value not in (None, "")]
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(known):
        return _Numbers([float(value) for value in numbers])
    return _Words([str(value) for value in known])
