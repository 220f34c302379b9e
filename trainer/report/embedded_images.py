"""Pictures on the report: small copies of the images within the file, under outlines drawn as vectors."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image as Pillow

from trainer.annotations import Objects
from trainer.data.images import ImageError, thumbnail
from trainer.data.reading.records import Records
from trainer.data.reading.urls import UrlError, local_path
from trainer.report.charts.chart import shortened
from trainer.report.markup import Html, element, escape

SIDE = 320
"""Pixels of the longer side of an embedded copy."""
LARGEST_TOTAL = 3_000_000
"""Bytes that all pictures of a page may take; what comes after is left out, and the page says so."""
_QUALITY = 78
_LABELLED = 12
"""Outlines on one picture that are labelled; of more only a tooltip tells the class."""
_POLYGON_POINTS = 40

Kind = Literal["true", "hit", "wrong", "missed"]


@dataclass(frozen=True)
class Outline:
    """What is drawn around an object.

    Attributes:
        box: normalised xyxy.
        polygons: normalised x1, y1, x2, y2 …, in place of the box.
    """

    box: tuple[float, float, float, float]
    text: str
    kind: Kind = "true"
    polygons: tuple[tuple[float, ...], ...] = ()


class Pictures:
    """Embeds each image once, however often it is shown, and no more than fit into the page.

    Attributes:
        left_out: how many were not shown for want of room.
        unreadable: how many could not be read.
    """

    def __init__(self, largest_total: int = LARGEST_TOTAL) -> None:
        self._largest_total = largest_total
        self._total = 0
        self._known: dict[str, tuple[str, float, float]] = {}
        self.left_out = 0
        self.unreadable = 0

    def pane(
        self, records: Records, index: int, outlines: Sequence[Outline] = (), *, title: object = "", alt: str
    ) -> Html | None:
        """An image with outlines; None if it cannot be read, or there is no room for it.

        Args:
            title: stands above.
            alt: what the picture shows, for those who do not see it.
        """
        content = self._image(records, index)
        if content is None:
            return None
        reference, width, height = content
        drawn = [reference, *(_outline(each, width, height, len(outlines) <= _LABELLED) for each in outlines)]
        svg = Html(
            f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(alt)}">'
            f"{''.join(drawn)}</svg>"
        )
        heading = element("div", title, class_="pane-title") if title else ""
        return element("div", heading, svg)

    def _image(self, records: Records, index: int) -> tuple[str, float, float] | None:
        """Markup of the image, and its (width, height) on the page."""
        source = records.source(index)
        if source in self._known:
            name, width, height = self._known[source]
            return f'<use href="#{name}"/>', width, height
        if self._total >= self._largest_total:
            self.left_out += 1
            return None
        try:
            pixels = thumbnail(local_path(source), SIDE)
        except (ImageError, UrlError):
            self.unreadable += 1
            return None
        file = io.BytesIO()
        Pillow.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, optimize=True)
        content = base64.b64encode(file.getvalue()).decode("ascii")
        self._total += len(content)
        factor = SIDE / max(pixels.shape[:2])
        width, height = pixels.shape[1] * factor, pixels.shape[0] * factor
        name = f"picture-{len(self._known) + 1}"
        self._known[source] = name, width, height
        image = (
            f'<image id="{name}" width="{width:.0f}" height="{height:.0f}" preserveAspectRatio="none" '
            f'href="data:image/jpeg;base64,{content}"/>'
        )
        return image, width, height

    @property
    def remark(self) -> str | None:
        """What is not shown, in a sentence."""
        said = []
        if self.left_out:
            said.append(f"{self.left_out} pictures are left out, to keep this file small.")
        if self.unreadable:
            said.append(f"{self.unreadable} pictures could not be read.")
        return " ".join(said) or None


def card(panes: Sequence[Html | None], *said: object) -> Html | None:
    """Panes beside each other over a line of text; None without any picture."""
    shown = [pane for pane in panes if pane is not None]
    if not shown:
        return None
    return element(
        "div", element("div", *shown, class_="panes"), element("div", *said, class_="said"), class_="picture"
    )


def gallery(cards: Sequence[Html | None], *, pairs: bool = False) -> Html | None:
    """Cards in rows; None without any."""
    shown = [each for each in cards if each is not None]
    return element("div", *shown, class_="pictures pairs" if pairs else "pictures") if shown else None


def key(*kinds: Kind) -> Html:
    """What the outlines' colours and dashes mean."""
    said = {"true": "labelled", "hit": "found, rightly", "wrong": "found, wrongly", "missed": "missed"}
    items = [element("li", element("i", class_=f"v-{kind}"), said[kind]) for kind in kinds]
    return element("ul", *items, class_="key-list")


def outlines_of(
    target: Objects, classes: Sequence[str], kinds: Mapping[int, Kind] | None = None
) -> list[Outline]:
    """Outlines of what is labelled; `kinds` of single objects, by their index."""
    outlines = []
    for index, (box, label) in enumerate(zip(target.boxes.tolist(), target.labels.tolist(), strict=True)):
        polygons: tuple[tuple[float, ...], ...] = ()
        if target.polygons is not None:
            polygons = tuple(tuple(map(float, segment.ravel())) for segment in target.polygons[index])
        text = classes[label] + (" (crowd)" if target.crowd[index] else "")
        kind: Kind = (kinds or {}).get(index, "true")
        outlines.append(Outline((box[0], box[1], box[2], box[3]), text, kind, polygons))
    return outlines


def _outline(outline: Outline, width: float, height: float, labelled: bool) -> str:
    tooltip = f"<title>{escape(outline.text)}</title>"
    left, top, right, bottom = outline.box
    x, y = left * width, top * height
    if outline.polygons:
        shape = "".join(
            f'<polygon points="{_points(segment, width, height)}" class="outline o-{outline.kind}">'
            f"{tooltip}</polygon>"
            for segment in outline.polygons
        )
    else:
        shape = (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, (right - left) * width):.1f}" '
            f'height="{max(1.0, (bottom - top) * height):.1f}" class="outline o-{outline.kind}">'
            f"{tooltip}</rect>"
        )
    if not labelled:
        return shape
    said = shortened(outline.text, 170)
    # A label stays within the picture: below the upper edge, and left of the right one.
    at_x = max(2.0, min(x + 2, width - len(said) * 6.4))
    at_y = y - 4 if y > 14 else min(y + 12, height - 3)
    return f'{shape}<text x="{at_x:.1f}" y="{at_y:.1f}" class="o-label">{escape(said)}</text>'


def _points(segment: Sequence[float], width: float, height: float) -> str:
    pairs = list(zip(segment[::2], segment[1::2], strict=True))
    step = max(1, -(-len(pairs) // _POLYGON_POINTS))
    return " ".join(f"{x * width:.1f},{y * height:.1f}" for x, y in pairs[::step])
