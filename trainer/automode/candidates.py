"""The models that AutoMode tries, by task and by what they are to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import default_settings, resolve, takes
from trainer.models.published import FACTS
from trainer.models.weights.choice import NONE, PRETRAINED, is_address
from trainer.settings import Settings, canonical
from trainer.tasks import Task

MANY_IMAGES = 1000
"""From so many training images on the larger models of a group come first, below they come last."""


@dataclass(frozen=True)
class Group:
    """Models that are searched together, in one sub-space.

    Attributes:
        models: by name, the strongest first.
        recipe: from which their settings start.
        larger: more models; see MANY_IMAGES.
        from_scratch: they learn enough without published weights.
    """

    models: tuple[str, ...]
    recipe: str = "reference"
    larger: tuple[str, ...] = ()
    from_scratch: bool = True


GPU, SCRATCH, CPU = "on a GPU", "on a GPU, from scratch", "on the CPU"

_CLASSIFIERS = {
    GPU: (
        Group(
            ("timm/convnext_tiny.in12k_ft_in1k", "vitb16r224", "vits16r224"),
            "modern",
            ("timm/convnext_small.in12k_ft_in1k",),
            from_scratch=False,
        ),
        Group(("seresnext", "resnet50"), "modern"),
        Group(("seresnext",)),
    ),
    SCRATCH: (Group(("resnet18", "resnet34"), "modern", ("seresnext", "resnet50")), Group(("resnet34",))),
    CPU: (Group(("resnet18", "mobilenetv2"), "modern"), Group(("resnet18",))),
}
GROUPS: Mapping[Task, Mapping[str, tuple[Group, ...]]] = {
    Task.CLASSIFICATION: _CLASSIFIERS,
    Task.MULTILABEL: _CLASSIFIERS,
    Task.DETECTION: {
        GPU: (
            Group(("rfdetr-small",), larger=("rfdetr-medium",), from_scratch=False),
            Group(("yolo26s", "yolo11s"), "modern", ("yolo26m", "yolo11m")),
            Group(("fasterrcnn_resnet50_fpn_v2",)),
            Group(("rtdetr-l",), from_scratch=False),
        ),
        SCRATCH: (
            Group(("yolo11s", "yolo26s"), larger=("yolo11m", "yolo26m")),
            Group(("yolo11s", "yolo26s"), "modern", ("yolo11m", "yolo26m")),
            Group(("fasterrcnn_resnet50_fpn_v2",)),
        ),
        CPU: (Group(("yolo11n", "yolo26n"), "modern"), Group(("fasterrcnn_resnet18_fpn",))),
    },
    Task.SEGMENTATION: {
        GPU: (
            Group(("rfdetr-seg-small",), larger=("rfdetr-seg-medium",), from_scratch=False),
            Group(("yolo26s-seg", "yolo11s-seg"), "modern", ("yolo26m-seg", "yolo11m-seg")),
            Group(("maskrcnn_resnet50_fpn_v2",)),
        ),
        SCRATCH: (
            Group(("yolo11s-seg", "yolo26s-seg"), larger=("yolo11m-seg", "yolo26m-seg")),
            Group(("yolo11s-seg", "yolo26s-seg"), "modern", ("yolo11m-seg", "yolo26m-seg")),
            Group(("maskrcnn_resnet50_fpn_v2",)),
        ),
        CPU: (Group(("yolo11n-seg", "yolo26n-seg"), "modern"), Group(("maskrcnn_resnet18_fpn",))),
    },
}


def groups(job: Job, images: int, *, on_gpu: bool, reasons: list[str]) -> list[Group]:
    """What to try for a job, the strongest group first.

    Args:
        images: for training.
        reasons: gets in words what the choice came from.

    Raises:
        JobError: no model takes the job's settings, or there are no weights for any.
    """
    scratch = job.weights_choice == NONE
    if (model := job.model or _model_of_weights(job.weights_choice, job)) is not None:
        chosen = of_model(catalog.find(model, job.task))
    else:
        tables = GROUPS[job.task]
        chosen = list(tables[CPU if not on_gpu else SCRATCH if scratch else GPU])
        if job.measures_latency and on_gpu:
            chosen += tables[CPU]
            reasons.append("the time for an answer counts, too: small models are tried beside the others")
        chosen = [_ordered(group, images) for group in chosen if group.from_scratch or not scratch]
        chosen = _published(job, _installed(chosen, job.task, reasons), reasons)
    if (recipe := _recipe(job)) is not None:
        chosen = [replace(group, recipe=recipe) for group in chosen]
    return _usable(job, _without_doubles(chosen), reasons)


def of_model(entry: ModelEntry) -> list[Group]:
    """What to search of one model: today's recipe and, where it is another, the reference's."""
    kinds = ("modern", "reference") if has_recipes(entry) else ("reference",)
    return [Group((entry.name,), kind) for kind in kinds]


def has_recipes(entry: ModelEntry) -> bool:
    """Whether the modern recipe is another one than the reference's."""
    return bool(entry.modern_for(entry.tasks[0]))


def own_settings(job: Job, entry: ModelEntry) -> dict[str, object]:
    """The job's settings without those that mean nothing to a model."""
    return {
        name: value
        for name, value in job.settings.items()
        if canonical(name) not in Settings.model_fields or takes(entry, canonical(name))
    }


def _recipe(job: Job) -> str | None:
    """The recipe that the job names, or the one with the optimizer that it names."""
    given = {canonical(name): str(value).lower() for name, value in job.settings.items()}
    if "recipe" not in given and "optimizer" in given:
        return "reference" if given["optimizer"] == "sgd" else "modern"
    return given.get("recipe")


def _ordered(group: Group, images: int) -> Group:
    parts = (group.larger, group.models) if images >= MANY_IMAGES else (group.models, group.larger)
    return replace(group, models=(*parts[0], *parts[1]), larger=())


def _only(chosen: Sequence[Group], kept: set[str]) -> list[Group]:
    """The groups with those of their models that are kept; a group of none is left out."""
    parts = [replace(group, models=tuple(name for name in group.models if name in kept)) for group in chosen]
    return [group for group in parts if group.models]


def _without_doubles(chosen: Sequence[Group]) -> list[Group]:
    seen: set[tuple[str, str]] = set()
    parts = []
    for group in chosen:
        names = tuple(name for name in group.models if (name, group.recipe) not in seen)
        seen |= {(name, group.recipe) for name in names}
        parts.append(replace(group, models=names))
    return [group for group in parts if group.models]


def _entries(chosen: Sequence[Group], task: Task) -> Iterator[ModelEntry]:
    for name in dict.fromkeys(name for group in chosen for name in group.models):
        yield catalog.find(name, task)


def _installed(chosen: Sequence[Group], task: Task, reasons: list[str]) -> list[Group]:
    entries = list(_entries(chosen, task))
    libraries = {entry.card.library for entry in entries}
    missing = {library for library in libraries if find_spec(library) is None}
    for library in sorted(missing):
        names = [entry.name for entry in entries if entry.card.library == library]
        reasons.append(f"{library} is not installed: without {', '.join(names)}")
    return _only(chosen, {entry.name for entry in entries if entry.card.library not in missing})


def _model_of_weights(choice: str, job: Job) -> str | None:
    """The model that the weights are of, where they are an earlier run's or one file; None: of several."""
    if choice in (PRETRAINED, NONE):
        return None
    path = Path(choice).expanduser()
    for place in ("model/artifacts", "artifacts", "."):
        with suppress(OSError, ValueError, KeyError):
            return str(json.loads((path / place / "spec.json").read_text("utf-8"))["model"])
    if is_address(choice) or path.is_file() or (path / "checkpoints").is_dir():
        return job.model_name
    return None


def _published(job: Job, chosen: list[Group], reasons: list[str]) -> list[Group]:
    """Of a directory of published weights, the models whose files are there.

    Raises:
        JobError: there is none.
    """
    directory = Path(job.weights_choice).expanduser()
    if job.weights_choice in (PRETRAINED, NONE):
        return chosen
    here = {entry.name for entry in _entries(chosen, job.task) if _is_in(directory, entry)}
    if here:
        reasons.append(f"{directory} holds the weights of {', '.join(sorted(here))}")
        return _only(chosen, here)
    others = [entry for entry in catalog.models_for(job.task) if _is_in(directory, entry)]
    if not others:
        names = ", ".join(entry.name for entry in _entries(chosen, job.task))
        hint = f"`trainer weights --model NAME` says what to put there, for {names} or another model"
        rule = f"must hold the published weights of a model for {job.task}"
        raise JobError("the sweep cannot be run:", [Problem("--weights", "", rule, str(directory), hint)])
    reasons.append(f"{directory} holds the weights of {', '.join(entry.name for entry in others)} alone")
    return [group for entry in others for group in of_model(entry)]


def _is_in(directory: Path, entry: ModelEntry) -> bool:
    if entry.name in FACTS:
        files: tuple[str, ...] = FACTS[entry.name].files
    elif entry.name.startswith(catalog.TIMM):
        name = entry.library_name
        files = (f"{name}.safetensors", f"{name}/model.safetensors", f"{name}.pth")
    else:  # it comes in several sizes
        files = tuple(f for name in FACTS if name.split(" ")[0] == entry.name for f in FACTS[name].files)
    return any((directory / file).is_file() for file in files)


def _check_size(job: Job, entry: ModelEntry) -> None:
    """
    Raises:
        JobError: a model that takes few image sizes may not take the job's; which ones, its library knows.
    """
    given = {canonical(name): value for name, value in job.settings.items()}.get("image_size")
    usual = default_settings(job.task, entry.name)["image_size"]
    takes_few_sizes = takes(entry, "image_size") and not entry.card.searched_sides
    if takes_few_sizes and job.model is None and given not in (None, usual):
        problem = Problem("", "image_size", f"must be {usual}, unless --model names it", repr(given))
        raise JobError("the settings cannot be used:", [problem])


def _usable(job: Job, chosen: list[Group], reasons: list[str]) -> list[Group]:
    """Without the models that do not take the job's settings.

    Raises:
        JobError: none does; says why the first does not.
    """
    refusals: dict[str, JobError] = {}
    names = [entry.name for entry in _entries(chosen, job.task)]
    for entry in _entries(chosen, job.task):
        try:
            resolve(job.task, entry.name, own_settings(job, entry))
            _check_size(job, entry)
        except JobError as error:
            refusals[entry.name] = error
    if len(refusals) == len(names):
        if refusals:
            raise refusals[names[0]]
        rule = f"finds no model for {job.task} whose library is installed"
        raise JobError("the sweep cannot be run:", [Problem("", "", rule, hint="name one by --model")])
    reasons += [f"without {name}: {error.problems[0]}" for name, error in refusals.items()]
    return _only(chosen, set(names) - refusals.keys())
