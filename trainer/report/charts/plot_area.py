"""The area between two axes, on which lines, points and histograms are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.report.charts.scale import Scale
from trainer.report.charts.svg import WIDTH, line, rotated_text, shape, text, text_width
from trainer.report.markup import Html, joined
from trainer.report.number_format import format_tick

LEFT, RIGHT, TOP, BOTTOM = 56.0, 14.0, 12.0, 40.0
HEIGHT = 210.0


class PlotArea:
    """Places values between a horizontal and a vertical axis.

    Attributes:
        width: width of the area between the axes, in viewBox units.
        total_height: height of the area, the axes and their labels, in viewBox units.
    """

    width = WIDTH - LEFT - RIGHT
    total_height = TOP + HEIGHT + BOTTOM

    def __init__(self, x_scale: Scale, y_scale: Scale, x_label: str, y_label: str) -> None:
        self._x_scale, self._y_scale, self._x_label, self._y_label = x_scale, y_scale, x_label, y_label

    def x(self, value: float) -> float:
        """Return the x coordinate of a value on the horizontal axis."""
        return LEFT + self._x_scale.position(value) * self.width

    def y(self, value: float) -> float:
        """Return the y coordinate, counted from the top, of a value on the vertical axis."""
        return TOP + (1 - self._y_scale.position(value)) * HEIGHT

    def axes(self) -> Html:
        """Draw grid lines, tick labels and the names of the axes."""
        right, base = LEFT + self.width, TOP + HEIGHT
        parts = []
        for value in self._y_scale.ticks():
            parts.append(line(LEFT, self.y(value), right, self.y(value), "grid"))
            parts.append(text(LEFT - 6, self.y(value) + 3.5, format_tick(value), anchor="end"))
        label_end = -math.inf
        for value in self._x_scale.ticks():
            label = format_tick(value)
            half = text_width(label) / 2
            parts.append(line(self.x(value), base, self.x(value), base + 4, "axis"))
            if self.x(value) - half > label_end:
                parts.append(text(self.x(value), base + 16, label, anchor="middle"))
                label_end = self.x(value) + half + 4
        parts.append(line(LEFT, base, right, base, "axis"))
        parts.append(text((LEFT + right) / 2, base + 33, self._x_label, anchor="middle", css_class="label"))
        if self._y_label:
            middle = TOP + HEIGHT / 2
            parts.append(rotated_text(12, middle, -90, self._y_label, text_anchor="middle", class_="label"))
        return joined(parts)

    def path(self, points: Sequence[tuple[float, float]], css_class: str) -> Html:
        """Draw a line through points; values that are not finite leave a gap.

        Points less than a pixel from the last one are skipped, so that long series stay small.
        """
        commands: list[str] = []
        is_drawing, last = False, (math.inf, math.inf)
        for index, (x, y) in enumerate(points):
            if not (math.isfinite(x) and math.isfinite(y)):
                is_drawing = False
                continue
            point = (self.x(x), self.y(y))
            is_last = index == len(points) - 1
            if is_drawing and not is_last and abs(point[0] - last[0]) + abs(point[1] - last[1]) < 0.8:
                continue
            commands.append(f"{'L' if is_drawing else 'M'}{point[0]:.1f} {point[1]:.1f}")
            is_drawing, last = True, point
        return shape("path", d="".join(commands), class_=f"line {css_class}") if commands else Html()

    def mark(self, x: float, y: float, css_class: str, tooltip: str, radius: float = 2.2) -> Html:
        """Draw a point that shows its tooltip on hover."""
        return shape("circle", tooltip, cx=self.x(x), cy=self.y(y), r=radius, class_=f"mark {css_class}")
