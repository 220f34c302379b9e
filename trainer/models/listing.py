"""The content of `trainer models` and `trainer weights`: sizes, licences, published and local files.

The table of models needs no model library: published.json holds what only the libraries know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from trainer.models import catalog
from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.cards import classifiers
from trainer.models.cards.shared import CLASSIFICATION, HUB_PREFIX
from trainer.models.defaults import default_settings, resolve, takes
from trainer.models.libraries import install_command
from trainer.models.published import PublishedModel, library_versions, published_models
from trainer.models.weights.choice import NONE, PRETRAINED
from trainer.models.weights.hub import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILES,
    download_command,
    has_cached_weights,
    has_weights,
    in_cache,
    parse,
)
from trainer.settings import Settings
from trainer.tasks import Task

_SPDX = {"apache-2.0": "Apache-2.0", "cc-by-nc-4.0": "CC-BY-NC-4.0", "mit": "MIT"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of models.

    Attributes:
        model: the model's flags after `fit --model`; the task's default is marked.
        parameters: their number, with the classes of the published weights; 0 if unknown.
        image_size: default side of the square that the network sees, or "short–long" limits, in pixels.
        here: where published weights are on this machine, or "no"; "" if unknown.
    """

    model: str
    tasks: tuple[Task, ...]
    parameters: int
    image_size: str
    library: str
    weights: str
    here: str


def rows(task: Task | None) -> Iterator[Row]:
    """A row for each model and size, for one task or for all."""
    for entry in catalog.MODELS.values():
        if task is not None and task not in entry.tasks:
            continue
        default = " (default)" if task and entry.name == task.default_model else ""
        card = entry.card
        for size in sizes(entry):
            facts = published_models().get(with_size(entry, size), PublishedModel(0, (), "", ""))
            licence = _SPDX.get(facts.licence, facts.licence) or card.weights_licence
            yield Row(
                flags(entry, size) + default,
                entry.tasks,
                facts.parameters,
                image_size(entry),
                f"{card.library}, {card.licence}",
                f"{entry.published}; {licence}",
                _here(facts.files, facts.hub) or "no",
            )
    if task is None or task in CLASSIFICATION:
        card = classifiers.CARD
        any_name, library = f"{card.library_prefix}NAME", f"{card.library}, {card.licence}"
        yield Row(any_name, CLASSIFICATION, 0, "", library, "each its own", "")
    for card in catalog.CARDS.values():
        tasks = card.hub_tasks
        if tasks and (task is None or task in tasks):
            any_name, library = f"{card.library_prefix}ORG/NAME", f"{card.library}, {card.licence}"
            yield Row(any_name, tasks, 0, "", library, card.weights_licence, "")
    for card in catalog.CARDS.values():
        tasks = tuple(other for other in Task if any(e.card is card for e in catalog.models_for(other)))
        if card.backbones and (task is None or task in tasks):
            backbones = catalog.CARDS[card.backbones]
            any_name = f"{card.words} --backbone {backbones.library_prefix}NAME"
            libraries = f"{card.library}, {card.licence}; {backbones.library}, {backbones.licence}"
            yield Row(any_name, tasks, 0, "", libraries, "each backbone its own", "")


def other_versions() -> list[str]:
    """Notes about the libraries that are missing or installed in another version than published.json's."""
    notes = []
    for name, version in library_versions().items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            cards = [card for card in catalog.CARDS.values() if card.library == name]
            words = " and ".join(card.words for card in cards)
            command = install_command(cards[0])
            notes.append(f"{name} is not installed: {command} for {words} ({cards[0].licence})")
            continue
        if installed != version:
            notes.append(f"{name} {installed} is installed, the table describes {version}")
    return notes


def sizes(entry: ModelEntry) -> tuple[str, ...]:
    """The values of model_size that a model supports; a single "" if it has no sizes."""
    if not takes(entry, "model_size"):
        return ("",)
    return tuple(map(str, get_args(Settings.model_fields["model_size"].annotation)))


def with_size(entry: ModelEntry, size: str) -> str:
    """The name of a model in one size: `yolov5 medium`."""
    return f"{entry.name} {size}".rstrip()


def flags(entry: ModelEntry, size: str, backbone: str | None = None) -> str:
    """The arguments of `fit --model` for a model in one size: `yolov5 --model-size medium`."""
    sized = f"{entry.name} --model-size {size}" if size else entry.name
    return f"{sized} --backbone {backbone}" if backbone else sized


def image_size(entry: ModelEntry) -> str:
    """The default size of the images that a model sees, in pixels."""
    defaults, name = default_settings(entry.tasks[0], entry.name), entry.card.size_setting
    longest = f"–{defaults['max_size']}" if name == "min_size" else ""
    return f"{defaults[name]}{longest}"


def instructions(model: str, task: Task | None, backbone: str | None = None) -> Iterator[str]:
    """Lines that say what to download for a model, where to put it, and how to use it.

    Args:
        backbone: the setting `backbone`.

    Raises:
        JobError: no model has this name, or it cannot have this backbone.
    """
    entry = catalog.find_for_any_task(model, "--model") if task is None else catalog.find(model, task)
    card = entry.card
    if card.described_by_files is not None and entry.name not in catalog.MODELS:
        yield from _instructions_of_hub(entry, task or entry.tasks[0])
        return
    from trainer.models.weights.sources import published_names

    for size in sizes(entry):
        published = family_of(entry, task or entry.tasks[0], size, backbone).published()
        publisher = catalog.CARDS[card.backbones] if backbone else card
        yield f"{flags(entry, size, backbone)}  ({', '.join(entry.tasks)})"
        address, name = published.url, published.files[0]
        if published.comes_from_hub:
            address = f"https://huggingface.co/{published.hub}/resolve/main/model.safetensors"
        if not address:
            yield f"  {publisher.library} publishes no weights for it: --weights none trains from scratch"
            continue
        licence = _SPDX.get(published.licence, published.licence) or publisher.weights_licence
        is_timms = (backbone or model.removeprefix(HUB_PREFIX)).startswith(catalog.TIMM)
        page = f"see https://huggingface.co/{published.hub}" if is_timms else ""
        yield f"  trained on   {page or entry.published}"
        cards = (publisher, card) if backbone else (card,)
        libraries = "; ".join(f"of {each.library}: {each.licence}" for each in cards)
        yield f"  licence      of the weights: {licence}; {libraries}"
        if backbone:
            yield "  holds        the backbone; the rest of the network starts from random values"
        yield f"  download     {address}"
        yield f"  save as      {name}"
        names = published_names(published)
        if len(names) > 1:
            yield f"               (or {', '.join(names[1:])})"
        yield f"  checked by   {_check(published, publisher)}"
        yield f"  is here      {_here(names, published.hub) or 'no'}"
        yield "  to use it    mkdir -p weights"
        yield f"               curl -L -o weights/{name} {address}"
        yield (
            f"               trainer fit --task {task or entry.tasks[0]} --model "
            f"{flags(entry, size, backbone)} --weights weights ..."
        )
        yield "               (TRAINER_WEIGHTS=weights applies to all commands; no network is used then)"
        if not published.hub and card.pickled_weights:
            yield "  beware       It is a pickle of a whole network, and reading one can run code. From a"
            yield "               directory, only the network's own classes are loaded; if you trust a file"
            yield f"               that holds more, name the file itself: --weights weights/{name}"


def _instructions_of_hub(entry: ModelEntry, task: Task) -> Iterator[str]:
    """The lines for a model of the Hub, of which only its name is known."""
    card, (repository, revision) = entry.card, parse(entry.library_name)
    cached = in_cache(entry.library_name)
    yield f"{entry.name}  ({', '.join(catalog.tasks_of(entry))})"
    yield f"  trained on   see https://huggingface.co/{repository}"
    yield f"  licence      of the weights: {card.weights_licence}; of {card.library}: {card.licence}"
    yield f"  files        {CONFIG_FILE}, {PREPROCESSOR_FILE} if there is one,"
    yield f"               and {' or '.join(WEIGHTS_FILES)}"
    pin = f"@{cached.revision}" if cached is not None else "@COMMIT"
    if not revision:
        yield f"  revision     the newest when it is first downloaded; {entry.name}{pin} pins it"
    yield "  checked by   their SHA-256 at the Hub when trainer downloads them; not in a directory"
    yield f"  is here      {_here((f'{repository}/{WEIGHTS_FILES[0]}',), entry.library_name) or 'no'}"
    yield f"  to use it    {download_command(entry.library_name)}"
    yield f"               trainer fit --task {task} --model {entry.name} --weights weights ..."
    yield "               (TRAINER_WEIGHTS=weights applies to all commands; no network is used then)"


def family_of(entry: ModelEntry, task: Task, size: str, backbone: str | None = None) -> Any:
    """A family bound to a model with the published number of classes. Imports the model's library."""
    from trainer.models import create, specify

    chosen = {"model_size": size, "backbone": backbone}
    resolved = resolve(task, entry.name, {name: value for name, value in chosen.items() if value})
    classes = tuple(map(str, range(entry.card.published_classes)))
    return create(specify(task, entry.name, resolved, classes, pretrained=True))


def _check(published: Any, card: FamilyCard) -> str:
    from trainer.models.weights.sources import hash_in_name

    if found := hash_in_name(published.files[0]):
        return f"its SHA-256, which must begin with {found}, whenever it is used"
    if published.md5:
        return f"its MD5, which must be {published.md5}, whenever it is used"
    if published.hub:
        return "its SHA-256 at the hub when trainer downloads it; in a directory it is not checked"
    return f"nothing: {card.library} publishes no hash"


def _here(files: tuple[str, ...], hub: str) -> str:
    """Where on this machine a run would find one of the files; "" if nowhere."""
    choice = os.environ.get("TRAINER_WEIGHTS", "")
    if choice not in ("", PRETRAINED, NONE):
        path = Path(os.path.expanduser(choice))
        if any((path / name).is_file() for name in files) or has_weights(path, hub):
            return "TRAINER_WEIGHTS"
    cached = has_cached_weights(hub) or (files and (_torch_cache() / files[0]).is_file())
    return "cache" if cached else ""


def _torch_cache() -> Path:
    """torch.hub's download directory, by torch's own rules but without importing torch."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{caches}/torch")).expanduser() / "hub/checkpoints"
