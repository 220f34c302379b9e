"""Draws outlines of labelled and predicted objects as SVG over an image, and describes labels in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.annotations import Objects
from trainer.data.reading.records import Records
from trainer.drawing.labels import Rectangle, place_label
from trainer.drawing.style import STYLE
from trainer.report.charts.svg import shape, shorten
from trainer.report.markup import Html, element

_LABEL_LENGTH = 170.0
_CHARACTER_WIDTH, _LABEL_HEIGHT = 6.4, 14.0
_MAX_POLYGON_POINTS = 40
_MAX_CLASSES_NAMED = 6

Verdict = Literal["labelled", "correct", "wrong", "missed"]


@dataclass(frozen=True)
class Outline:
    """What is drawn around an object.

    Attributes:
        box: normalised xyxy.
        text: the label.
        verdict: decides colour and dashes.
        polygons: normalised x1, y1, x2, y2 …; drawn instead of the box if there are any.
    """

    box: tuple[float, float, float, float]
    text: str
    verdict: Verdict = "labelled"
    polygons: tuple[tuple[float, ...], ...] = ()


def outlines_of(
    objects: Objects, classes: Sequence[str], verdicts: Mapping[int, Verdict] | None = None
) -> list[Outline]:
    """Make the outlines of labelled objects; `verdicts` has those other than "labelled", by object index."""
    outlines = []
    for index, (box, label) in enumerate(zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True)):
        polygons: tuple[tuple[float, ...], ...] = ()
        if objects.polygons is not None:
            polygons = tuple(tuple(map(float, polygon.ravel())) for polygon in objects.polygons[index])
        text = classes[label] + (" (crowd)" if objects.crowd[index] else "")
        verdict: Verdict = (verdicts or {}).get(index, "labelled")
        outlines.append(Outline((box[0], box[1], box[2], box[3]), text, verdict, polygons))
    return outlines


def labelled_outlines(records: Records, index: int, only: int | None = None) -> list[Outline]:
    """Make the outlines of an image's labelled objects, or of the object `only`; none in classification."""
    target = records.target(index)
    if not isinstance(target, Objects):
        return []
    outlines = outlines_of(target, records.classes)
    return outlines if only is None else outlines[only : only + 1]


def describe_labels(records: Records, index: int) -> str:
    """Describe what is labelled in an image: `dog`, `3 can, 1 carton`, `no label`."""
    labels = records.labels[records.starts[index] : records.starts[index + 1]].tolist()
    counts = {records.classes[label]: labels.count(label) for label in sorted(set(labels))}
    if not counts:
        return "no label"
    if not records.task.has_boxes:
        return ", ".join(counts)
    parts = [f"{count} {name}" for name, count in list(counts.items())[:_MAX_CLASSES_NAMED]]
    return ", ".join(parts) + (" …" if len(counts) > _MAX_CLASSES_NAMED else "")


def draw_outlines(outlines: Sequence[Outline], width: float, height: float) -> list[Html]:
    """Draw outlines over an image of `width` × `height`; in a crowd only tooltips name the classes."""
    parts = [part for outline in outlines for part in _shapes(outline, width, height)]
    if len(outlines) > STYLE.crowd:
        return parts
    taken: list[Rectangle] = []
    for outline in outlines:
        label = shorten(outline.text, _LABEL_LENGTH)
        size = (len(label) * _CHARACTER_WIDTH, _LABEL_HEIGHT)
        place = place_label(_pixel_box(outline, width, height), size, (width, height), taken)
        taken.append(place)
        parts.append(shape("text", None, label, x=place.x + 2, y=place.y + 11, class_="o-label"))
    return parts


def legend(*verdicts: Verdict) -> Html:
    """Explain the outlines' colours and dashes."""
    items = [element("li", element("i", class_=f"v-{verdict}"), verdict) for verdict in verdicts]
    return element("ul", *items, class_="key-list")


def _shapes(outline: Outline, width: float, height: float) -> list[Html]:
    css_class = f"outline o-{outline.verdict}"
    if outline.polygons:
        return [
            shape("polygon", outline.text, points=_points(polygon, width, height), class_=css_class)
            for polygon in outline.polygons
        ]
    box = _pixel_box(outline, width, height)
    width, height = max(1.0, box.width), max(1.0, box.height)
    return [shape("rect", outline.text, x=box.x, y=box.y, width=width, height=height, class_=css_class)]


def _pixel_box(outline: Outline, width: float, height: float) -> Rectangle:
    left, top, right, bottom = outline.box
    return Rectangle(left * width, top * height, (right - left) * width, (bottom - top) * height)


def _points(polygon: Sequence[float], width: float, height: float) -> str:
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    step = max(1, -(-len(points) // _MAX_POLYGON_POINTS))
    return " ".join(f"{x * width:.1f},{y * height:.1f}" for x, y in points[::step])
