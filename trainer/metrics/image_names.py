"""How messages and lists name an image of the data."""

from __future__ import annotations

from typing import Any, Protocol


class Sources(Protocol):
    """Where the images come from; `trainer.data.reading.records.Records` is one."""

    def location(self, index: int) -> str:
        """Where the image was named, such as `test.jsonl:17`."""

    def image_url(self, index: int) -> str:
        """Its image_url as the data file has it."""


def place(index: int, sources: Sources | None) -> dict[str, Any]:
    """The fields by which an entry names its image."""
    if sources is None:
        return {"image": index}
    return {"image": index, "location": sources.location(index), "image_url": sources.image_url(index)}
