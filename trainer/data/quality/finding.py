"""A suspicious fact about valid data, as reports show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """An image that a finding is about.

    Attributes:
        index: the image's index in ExaminedImages.
        where: file and line, `train.jsonl:17`.
        detail: what is suspicious here.
        other: index of the image that this one resembles.
        number: index of the object in its image; None if the finding is about the whole image.
    """

    index: int
    where: str
    detail: str
    other: int | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A suspicious fact about the data.

    Attributes:
        kind: a short identifier, such as "leakage".
        title: the fact in a few words.
        why: why it matters and what to do about it.
        places: the images concerned, in the data's order; empty if it is about the data as a whole.
        serious: it probably harms the model or its metrics; otherwise it may be intended.
    """

    kind: str
    title: str
    why: str
    places: list[Place]
    serious: bool = False


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun: `1 image`, `3 images`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def names_text(names: Sequence[str]) -> str:
    """The first eight names, and how many more there are."""
    rest = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest
