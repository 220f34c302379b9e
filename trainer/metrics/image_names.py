"""How the entries of an analysis name their image."""

from __future__ import annotations

from typing import Any, Protocol


class ImageNames(Protocol):
    """The names of images; `trainer.data.reading.records.Records` provides them."""

    def location(self, index: int) -> str:
        """File and line that name the image, such as `test.jsonl:17`."""

    def image_url(self, index: int) -> str:
        """The image_url as the data file has it."""


def name_fields(index: int, image_names: ImageNames | None) -> dict[str, Any]:
    """The fields by which an entry names its image."""
    if image_names is None:
        return {"image": index}
    return {
        "image": index,
        "location": image_names.location(index),
        "image_url": image_names.image_url(index),
    }
