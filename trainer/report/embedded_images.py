"""Small copies of images, embedded in the page with outlines drawn over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image as Pillow

from trainer.data.image_sources import read_image
from trainer.data.images import ImageError, thumbnail
from trainer.data.reading.records import Records
from trainer.data.reading.urls import UrlError
from trainer.report.charts.svg import shape
from trainer.report.markup import Html, element, note
from trainer.report.outlines import Outline, draw_outlines

_LONGER_SIDE = 320
_MAX_TOTAL_BYTES = 3_000_000
_JPEG_QUALITY = 78


class EmbeddedImages:
    """Embeds each image once, however often it is shown, until the page's budget is used up."""

    def __init__(self) -> None:
        self._total_bytes = 0
        self._embedded: dict[str, tuple[str, float, float]] = {}
        self._omitted = 0
        self._unreadable = 0

    def pane(
        self, records: Records, index: int, outlines: Sequence[Outline] = (), *, title: object = "", alt: str
    ) -> Html | None:
        """Show an image with outlines; None if it cannot be read or the page's budget is used up.

        Args:
            title: text above the image.
            alt: what the image shows, for readers who cannot see it.
        """
        embedded = self._embed(records.source(index))
        if embedded is None:
            return None
        image, width, height = embedded
        svg = element(
            "svg",
            image,
            *draw_outlines(outlines, width, height),
            viewBox=f"0 0 {width:.0f} {height:.0f}",
            role="img",
            aria_label=alt,
        )
        heading = element("div", title, class_="pane-title") if title else ""
        return element("div", heading, svg)

    def _embed(self, source: str) -> tuple[Html, float, float] | None:
        """Return the image's markup and its (width, height) on the page."""
        if source in self._embedded:
            name, width, height = self._embedded[source]
            return element("use", href=f"#{name}"), width, height
        if self._total_bytes >= _MAX_TOTAL_BYTES:
            self._omitted += 1
            return None
        try:
            pixels = read_image(source, lambda path: thumbnail(path, _LONGER_SIDE))
        except (ImageError, UrlError):
            self._unreadable += 1
            return None
        file = io.BytesIO()
        Pillow.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        content = base64.b64encode(file.getvalue()).decode("ascii")
        self._total_bytes += len(content)
        factor = _LONGER_SIDE / max(pixels.shape[:2])
        width, height = pixels.shape[1] * factor, pixels.shape[0] * factor
        name = f"image-{len(self._embedded) + 1}"
        self._embedded[source] = name, width, height
        image = shape(
            "image", id=name, width=f"{width:.0f}", height=f"{height:.0f}", preserveAspectRatio="none",
            href=Html(f"data:image/jpeg;base64,{content}"),
        )  # fmt: skip
        return image, width, height

    def note(self) -> Html | None:
        """Say what is not shown and why; None if everything is."""
        sentences = []
        if self._omitted:
            sentences.append(f"{self._omitted} images are left out to keep this file small.")
        if self._unreadable:
            sentences.append(f"{self._unreadable} images could not be read.")
        return note(" ".join(sentences)) if sentences else None


def card(panes: Sequence[Html | None], *caption: object) -> Html | None:
    """Show images side by side above a line of text; None if there is no image."""
    shown = [pane for pane in panes if pane is not None]
    if not shown:
        return None
    panes_shown, text = element("div", *shown, class_="panes"), element("div", *caption, class_="caption")
    return element("div", panes_shown, text, class_="picture")


def gallery(cards: Sequence[Html | None], *, pairs: bool = False) -> Html | None:
    """Show cards in rows; None if there is no card."""
    shown = [each for each in cards if each is not None]
    return element("div", *shown, class_="pictures pairs" if pairs else "pictures") if shown else None
