"""Writes trainer/models/published.json: `python -m tools.collect_published` asks the model libraries.

Run it when a model is added or a library is upgraded; tests/models/test_listing.py says when that is due.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch
from rich.progress import track

from trainer.models import catalog, listing
from trainer.models.card import ModelEntry
from trainer.models.published import PublishedModel
from trainer.models.weights.sources import published_names

FILE = Path(__file__).resolve().parents[1] / "trainer" / "models" / "published.json"


def measure(entry: ModelEntry, size: str) -> PublishedModel:
    """Build a model as it is published, without memory where its library can, and count its parameters."""
    family = listing.family_of(entry, entry.tasks[0], size)
    published = family.published()
    try:
        with torch.device("meta"):
            network = family.build()
    except RuntimeError:  # ultralytics runs its networks once to learn their strides
        network = family.build()
    count = sum(parameter.numel() for parameter in network.parameters())
    return PublishedModel(count, published_names(published), published.hub, published.licence)


def models() -> Iterator[tuple[ModelEntry, str]]:
    """Every model in each of its sizes."""
    for entry in catalog.MODELS.values():
        for size in listing.sizes(entry):
            yield entry, size


def write(file: Path = FILE) -> None:
    """Collect the facts about all models into a file."""
    libraries = sorted({card.library for card in catalog.CARDS.values()})
    content = {
        "libraries": {name: metadata.version(name) for name in libraries},
        "models": {
            listing.with_size(entry, size): asdict(measure(entry, size))
            for entry, size in track(list(models()), description="measuring")
        },
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
