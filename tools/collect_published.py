"""Writes facts.py: `python -m tools.collect_published` asks the model libraries what they publish.

Run it when a model is added or a library is upgraded; tests/models/test_listing.py says so when it is due.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from rich.progress import track

from trainer.models import catalog, listing
from trainer.models.card import ModelEntry
from trainer.models.published import Facts
from trainer.models.weights.sources import published_names


def measure(entry: ModelEntry, size: str) -> Facts:
    """Build a model as it was published, without memory where its library can, and count its parameters."""
    family = listing.family_of(entry, entry.tasks[0], size)
    published = family.published()
    try:
        with torch.device("meta"):
            network = family.build()
    except RuntimeError:  # ultralytics runs its networks once to learn their strides
        network = family.build()
    count = sum(parameter.numel() for parameter in network.parameters())
    return Facts(count, published_names(published), published.hub, published.licence)


def models() -> Iterator[tuple[ModelEntry, str]]:
    """Every model in each of its sizes."""
    for entry in catalog.MODELS.values():
        for size in listing.sizes(entry):
            yield entry, size


def write() -> None:
    """Write facts.py anew, beside this file."""
    path = Path(__file__).resolve().parents[1] / "trainer" / "models" / "published.py"
    head, marker, _ = path.read_text(encoding="utf-8").partition("VERSIONS")
    names = sorted({card.library for card in catalog.CARDS.values()})
    versions = ", ".join(f'"{name}": "{metadata.version(name)}"' for name in names)
    text = f'{head}{marker} = {{{versions}}}\n"""Of the libraries that were asked."""\n\nFACTS = {{\n'
    for entry, size in track(list(models()), description="measuring"):
        text += _line(listing.with_size(entry, size), measure(entry, size))
    text += '}\n"""By the name of the model, with its size where it comes in several."""\n'
    path.write_text(text, encoding="utf-8")


def _line(name: str, facts: Facts) -> str:
    one = len(facts.files) == 1
    files = f'("{facts.files[0]}",)' if one else json.dumps(facts.files)[1:-1].join("()")
    line = f'    "{name}": Facts({facts.parameters:_}, {files}, "{facts.hub}", "{facts.licence}"),\n'
    if len(line) <= 111 and (one or "\n" not in files):
        return line
    values = (f"{facts.parameters:_}", files, f'"{facts.hub}"', f'"{facts.licence}"')
    if len(files) > 100:
        lines = "".join(f"            {json.dumps(file)},\n" for file in facts.files)
        values = (values[0], f"(\n{lines}        )", *values[2:])
    return f'    "{name}": Facts(\n' + "".join(f"        {value},\n" for value in values) + "    ),\n"


if __name__ == "__main__":
    write()
