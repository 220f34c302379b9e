"""Charts with axes: lines, histograms, bars, points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.report.charts.chart import WIDTH, Chart, bar, color, legend, line, text, width_of
from trainer.report.charts.scale import Scale, shown, tick_shown
from trainer.report.markup import Table, escape

_PLOT_HEIGHT = 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 14.0, 12.0, 40.0
_POINTS_WITH_MARKS = 60
_TABLE_ROWS = 100
_BINS = 24


@dataclass(frozen=True)
class Series:
    """A line: its name, and its points in order; what is not finite leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    x_scale: Scale | None = None,
    y_scale: Scale | None = None,
    best: float | None = None,
    diagonal: bool = False,
    marks: bool = True,
    description: str = "",
    remarks: Sequence[str] = (),
) -> Chart:
    """Lines over a common axis.

    Args:
        best: an x that is marked, of the best epoch.
        diagonal: draw it, as what chance or perfection would give.
        marks: a point at each value, which tells it when pointed at; left out where there are many.
    """
    x_scale = x_scale or Scale.over(value for each in series for value in each.x)
    y_scale = y_scale or Scale.over(value for each in series for value in each.y)
    plot = _Plot(x_scale, y_scale, x_label, y_label)
    drawn = [plot.axes()]
    if diagonal:
        drawn.append(
            line(
                plot.x(x_scale.low), plot.y(y_scale.low), plot.x(x_scale.high), plot.y(y_scale.high), "guide"
            )
        )
    if best is not None and x_scale.low <= best <= x_scale.high:
        at = plot.x(best)
        drawn.append(line(at, _TOP, at, _TOP + _PLOT_HEIGHT, "guide"))
        anchor = "end" if at > WIDTH * 0.75 else "start"
        drawn.append(
            text(at + (-4 if anchor == "end" else 4), _TOP + 9, f"best: {tick_shown(best)}", anchor=anchor)
        )
    for index, each in enumerate(series):
        points = list(zip(each.x, each.y, strict=True))
        drawn.append(plot.path(points, color(index)))
        known = [point for point in points if all(map(math.isfinite, point))]
        if marks and len(known) <= _POINTS_WITH_MARKS:
            drawn += [
                plot.mark(x, y, color(index), f"{each.name}: {shown(y)} at {x_label} {shown(x)}")
                for x, y in known
            ]
    key, height = legend([each.name for each in series], plot.height)
    return Chart(
        name, title, description or _described(series, x_label), "".join([*drawn, key]), WIDTH, height,
        _table_of(name, title, series, x_label), remarks=tuple(remarks),
    )  # fmt: skip


def histogram(
    name: str,
    title: str,
    values: Iterable[float],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    counts_things: bool = False,
    remarks: Sequence[str] = (),
) -> Chart:
    """How often values fall into ranges of equal width, on a logarithmic axis of equal ratio.

    Args:
        counts_things: the values are whole numbers; each has a bar of its own while there are few.
    """
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    scale, bins = Scale.over(known, log=log), _BINS
    span = max(known, default=0.0) - min(known, default=0.0)
    each_its_own = counts_things and span < _BINS
    if each_its_own:
        scale, bins = Scale(min(known, default=0.0) - 0.5, max(known, default=0.0) + 0.5), int(span) + 1
    counts = [0] * bins
    for value in known:
        counts[min(bins - 1, int(scale.position(value) * bins))] += 1
    edges = [_value_at(scale, place / bins) for place in range(bins + 1)]
    plot = _Plot(scale, Scale.over(counts, low=0), x_label, y_label)
    drawn = [plot.axes()]
    rows = []
    for place, count in enumerate(counts):
        span_shown = f"{shown(edges[place])} to {shown(edges[place + 1])}"
        if each_its_own:
            span_shown = shown(edges[place] + 0.5)
        rows.append((span_shown, count))
        if count:
            left = _LEFT + plot.width * place / bins
            drawn.append(
                bar(
                    left + 0.5,
                    plot.y(count),
                    plot.width / bins - 1,
                    plot.y(0) - plot.y(count),
                    "s0",
                    f"{span_shown}: {count:,}",
                )
            )
    middle = sorted(known)[len(known) // 2] if known else math.nan
    lowest, highest = min(known, default=math.nan), max(known, default=math.nan)
    described = f"{len(known):,} values from {shown(lowest)} to {shown(highest)}, median {shown(middle)}."
    table = Table(name, title, (x_label, y_label), [row for row in rows if row[1]])
    return Chart(name, title, described, "".join(drawn), WIDTH, plot.height, table, remarks=tuple(remarks))


def bars(
    name: str,
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    label_heading: str,
    limit: int = 30,
    high: float | None = None,
    remarks: Sequence[str] = (),
) -> Chart:
    """Horizontal bars, one for each label and series; beyond `limit` labels the rest is left out and said."""
    shown_labels = labels[:limit]
    thick = 18.0 if len(series) == 1 else 11.0
    step = thick * len(series) + 8
    room = min(150.0, max([width_of(label) for label in shown_labels], default=0.0) + 10)
    values = [value for _, numbers in series for value in numbers if math.isfinite(value)]
    scale = Scale.over(values, low=min(0.0, *values, 0.0), high=high)
    extent = WIDTH - room - _RIGHT - 50
    drawn = []
    for row, label in enumerate(shown_labels):
        top = _TOP + row * step
        drawn.append(text(room - 6, top + step / 2, label, anchor="end", room=room - 8))
        for index, (series_name, numbers) in enumerate(series):
            value = numbers[row]
            y = top + index * thick
            if math.isfinite(value):
                start, end = sorted((scale.position(0.0), scale.position(value)))
                told = f"{label}, {series_name}: {shown(value)}"
                drawn.append(
                    bar(
                        room + start * extent,
                        y,
                        max(1.0, (end - start) * extent),
                        thick - 1,
                        color(index),
                        told,
                    )
                )
            place = room + (scale.position(value) * extent if math.isfinite(value) else 0) + 5
            drawn.append(text(place, y + thick / 2 + 3.5, shown(value)))
    height = _TOP + len(shown_labels) * step + 4
    if len(series) > 1:
        key, height = legend([each for each, _ in series], height)
        drawn.append(key)
    left_out = len(labels) - len(shown_labels)
    more = (f"{left_out:,} more are in the numbers.",) if left_out else ()
    described = "; ".join(
        f"{label}: " + ", ".join(f"{each} {shown(numbers[row])}" for each, numbers in series)
        for row, label in enumerate(shown_labels[:10])
    )
    rows = [(label, *(numbers[row] for _, numbers in series)) for row, label in enumerate(labels)]
    table = Table(name, title, (label_heading, *(each for each, _ in series)), rows)
    return Chart(
        name, title, described, "".join(drawn), WIDTH, max(height, 40.0), table, remarks=(*remarks, *more)
    )


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart; `stressed` ones stand out."""

    x: float
    y: float
    label: str
    stressed: bool = False


def scatter(
    name: str,
    title: str,
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    front: bool = False,
    remarks: Sequence[str] = (),
) -> Chart:
    """Points; with `front` the stressed ones are joined by a line."""
    plot = _Plot(
        Scale.over(point.x for point in points), Scale.over(point.y for point in points), x_label, y_label
    )
    drawn = [plot.axes()]
    stressed = sorted((point for point in points if point.stressed), key=lambda point: point.x)
    if front:
        drawn.append(plot.path([(point.x, point.y) for point in stressed], "s1"))
    for point in points:
        told = f"{point.label}: {y_label} {shown(point.y)}, {x_label} {shown(point.x)}"
        drawn.append(
            plot.mark(point.x, point.y, "s1" if point.stressed else "s0", told, 5 if point.stressed else 3.5)
        )
    rows = [(point.label, point.x, point.y, "yes" if point.stressed else "") for point in points]
    described = f"{len(points)} points; stressed: {', '.join(point.label for point in stressed) or 'none'}."
    table = Table(name, title, ("point", x_label, y_label, "stressed"), rows)
    return Chart(name, title, described, "".join(drawn), WIDTH, plot.height, table, remarks=tuple(remarks))


class _Plot:
    """The area between two axes."""

    def __init__(self, x_scale: Scale, y_scale: Scale, x_label: str, y_label: str) -> None:
        self.x_scale, self.y_scale, self.x_label, self.y_label = x_scale, y_scale, x_label, y_label
        self.width = WIDTH - _LEFT - _RIGHT
        self.height = _TOP + _PLOT_HEIGHT + _BOTTOM

    def x(self, value: float) -> float:
        return _LEFT + self.x_scale.position(value) * self.width

    def y(self, value: float) -> float:
        return _TOP + (1 - self.y_scale.position(value)) * _PLOT_HEIGHT

    def axes(self) -> str:
        """Grid lines, the numbers at them, and the axes' names."""
        drawn = []
        for value in self.y_scale.ticks():
            drawn.append(line(_LEFT, self.y(value), _LEFT + self.width, self.y(value), "grid"))
            drawn.append(text(_LEFT - 6, self.y(value) + 3.5, tick_shown(value), anchor="end"))
        base = _TOP + _PLOT_HEIGHT
        last_end = -math.inf
        for value in self.x_scale.ticks():
            said = tick_shown(value)
            half = width_of(said) / 2
            drawn.append(line(self.x(value), base, self.x(value), base + 4, "axis"))
            if self.x(value) - half > last_end:
                drawn.append(text(self.x(value), base + 16, said, anchor="middle"))
                last_end = self.x(value) + half + 4
        drawn.append(line(_LEFT, base, _LEFT + self.width, base, "axis"))
        drawn.append(text(_LEFT + self.width / 2, base + 33, self.x_label, anchor="middle", kind="label"))
        if self.y_label:
            middle = _TOP + _PLOT_HEIGHT / 2
            drawn.append(
                f'<text transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle" '
                f'class="label">{escape(self.y_label)}</text>'
            )
        return "".join(drawn)

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        """A line through points; those closer together than a pixel are one."""
        commands: list[str] = []
        pen_down, last = False, (math.inf, math.inf)
        for place, (x, y) in enumerate(points):
            if not (math.isfinite(x) and math.isfinite(y)):
                pen_down = False
                continue
            at = (self.x(x), self.y(y))
            is_last = place == len(points) - 1
            if pen_down and not is_last and abs(at[0] - last[0]) + abs(at[1] - last[1]) < 0.8:
                continue
            commands.append(f"{'L' if pen_down else 'M'}{at[0]:.1f} {at[1]:.1f}")
            pen_down, last = True, at
        return f'<path d="{"".join(commands)}" class="line {kind}"/>' if commands else ""

    def mark(self, x: float, y: float, kind: str, told: str, radius: float = 2.2) -> str:
        return (
            f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}" class="mark {kind}">'
            f"<title>{escape(told)}</title></circle>"
        )


def _value_at(scale: Scale, share: float) -> float:
    if scale.log:
        return float(scale.low * (scale.high / scale.low) ** share)
    return scale.low + share * (scale.high - scale.low)


def _described(series: Sequence[Series], x_label: str) -> str:
    told = []
    for each in series[:12]:
        known = [(x, y) for x, y in zip(each.x, each.y, strict=True) if math.isfinite(y)]
        if known:
            (first_x, first), (last_x, last) = known[0], known[-1]
            lowest, highest = min(y for _, y in known), max(y for _, y in known)
            told.append(
                f"{each.name}: {shown(first)} at {x_label} {shown(first_x)}, {shown(last)} at "
                f"{shown(last_x)}, between {shown(lowest)} and {shown(highest)}"
            )
    return "; ".join(told) + "." if told else "No values."


def _table_of(name: str, title: str, series: Sequence[Series], x_label: str) -> Table:
    """The points of lines: side by side where they share their x, else one below the other; thinned."""
    if all(list(each.x) == list(series[0].x) for each in series):
        rows: list[Sequence[object]] = [
            (x, *(each.y[row] for each in series)) for row, x in enumerate(series[0].x if series else ())
        ]
        return Table(name, title, (x_label, *(each.name for each in series)), _thinned(rows))
    most = max(2, _TABLE_ROWS // len(series))
    rows = [
        (each.name, x, y)
        for each in series
        for x, y in _thinned(list(zip(each.x, each.y, strict=True)), most)
    ]
    return Table(name, title, ("line", x_label, "value"), rows)


def _thinned(rows: list[Sequence[object]], most: int = _TABLE_ROWS) -> list[Sequence[object]]:
    """Every so many rows, the last one always."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]
