"""The models that AutoMode tries, by task, hardware and weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path

from trainer.errors import JobError, Problem
from trainer.job.job import Job
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.models.defaults import default_settings, models_taking, resolve, takes
from trainer.models.effects import asks_for_sgd
from trainer.models.libraries import install_command, is_installed, require_library
from trainer.models.published import published_models
from trainer.models.weights.choice import NONE, PRETRAINED, is_address
from trainer.models.weights.hub import has_weights, in_directory
from trainer.settings import canonical
from trainer.tasks import Task

MANY_IMAGES = 1000
"""With at least this many training images, the larger models of a group come first, otherwise last."""


@dataclass(frozen=True)
class Group:
    """Models that are searched together, in one sub-space.

    Attributes:
        models: names, the strongest first.
        larger: more models; see MANY_IMAGES.
        from_scratch: whether they learn enough without published weights.
    """

    models: tuple[str, ...]
    larger: tuple[str, ...] = ()
    from_scratch: bool = True


GPU, SCRATCH, CPU = "on a GPU", "on a GPU, from scratch", "on the CPU"

_CLASSIFIERS = {
    GPU: (
        Group(
            ("timm/convnext_tiny.in12k_ft_in1k", "vitb16r224", "vits16r224"),
            ("timm/convnext_small.in12k_ft_in1k",),
            from_scratch=False,
        ),
        Group(("seresnext", "resnet50")),
    ),
    SCRATCH: (Group(("resnet18", "resnet34"), ("seresnext", "resnet50")),),
    CPU: (Group(("resnet18", "mobilenetv2")),),
}
GROUPS: Mapping[Task, Mapping[str, tuple[Group, ...]]] = {
    Task.CLASSIFICATION: _CLASSIFIERS,
    Task.MULTILABEL: _CLASSIFIERS,
    Task.DETECTION: {
        GPU: (
            Group(("rfdetr-small", "dfine-m"), ("rfdetr-medium", "dfine-l"), from_scratch=False),
            Group(("yolo26s", "yolo11s"), ("yolo26m", "yolo11m")),
            Group(("fasterrcnn_resnet50_fpn_v2",)),
            Group(("rtdetrv2-r50",), from_scratch=False),
        ),
        SCRATCH: (
            Group(("yolo11s", "yolo26s"), ("yolo11m", "yolo26m")),
            Group(("fasterrcnn_resnet50_fpn_v2",)),
        ),
        CPU: (Group(("yolo11n", "yolo26n")), Group(("fasterrcnn_resnet18_fpn",))),
    },
    Task.SEGMENTATION: {
        GPU: (
            Group(("rfdetr-seg-small",), ("rfdetr-seg-medium",), from_scratch=False),
            Group(("yolo26s-seg", "yolo11s-seg"), ("yolo26m-seg", "yolo11m-seg")),
            Group(("maskrcnn_resnet50_fpn_v2",)),
            Group(("eomt-base",), ("eomt-large",), from_scratch=False),
        ),
        SCRATCH: (
            Group(("yolo11s-seg", "yolo26s-seg"), ("yolo11m-seg", "yolo26m-seg")),
            Group(("maskrcnn_resnet50_fpn_v2",)),
        ),
        CPU: (Group(("yolo11n-seg", "yolo26n-seg")), Group(("maskrcnn_resnet18_fpn",))),
    },
}


def choose_groups(job: Job, images: int, *, on_gpu: bool) -> tuple[list[Group], list[str]]:
    """Choose the groups to try for a job.

    Args:
        images: number of training images.

    Returns:
        The groups, the strongest first, and sentences on the choice.

    Raises:
        JobError: no model accepts the job's settings, or there are no weights for any.
    """
    reasons: list[str] = []
    from_scratch = job.weights_choice == NONE
    model = job.model or _model_of_weights(job)
    if model is not None:
        entry = catalog.find(model, job.task)
        require_library(entry, job.task)
        groups = [Group((entry.name,))]
    else:
        table = GROUPS[job.task]
        groups = list(table[CPU if not on_gpu else SCRATCH if from_scratch else GPU])
        if job.measures_latency and on_gpu:
            groups += table[CPU]
            reasons.append("latency is an objective, so small models are tried as well")
        groups = [_ordered(group, images) for group in groups if group.from_scratch or not from_scratch]
        groups = _with_library(groups, job.task, reasons)
        backbone = {canonical(name): value for name, value in job.settings.items()}.get("backbone")
        if backbone is None:
            groups = _with_weights(groups, job, reasons)
        else:  # whose weights are no model's
            groups = _with_backbone(groups, job.task, str(backbone), reasons)
    return _accepting_settings(_without_duplicates(groups), job, reasons), reasons


def own_settings(job: Job, entry: ModelEntry) -> dict[str, object]:
    """The job's settings without those that do not apply to a model."""
    return {name: value for name, value in job.settings.items() if takes(entry, canonical(name))}


def recipe_of(job: Job) -> str:
    """The recipe that the job names. Without one, reference if its settings are for sgd, else modern."""
    usual = "reference" if asks_for_sgd(job.settings) else "modern"
    return str(job.settings.get("recipe", usual)).lower()


def _ordered(group: Group, images: int) -> Group:
    has_many = images >= MANY_IMAGES
    models = group.larger + group.models if has_many else group.models + group.larger
    return replace(group, models=models, larger=())


def _restricted(groups: Sequence[Group], names: Collection[str]) -> list[Group]:
    """The groups with only the named models, without groups that have none."""
    parts = [replace(group, models=tuple(name for name in group.models if name in names)) for group in groups]
    return [group for group in parts if group.models]


def _without_duplicates(groups: Sequence[Group]) -> list[Group]:
    seen: set[str] = set()
    parts = []
    for group in groups:
        parts.append(replace(group, models=tuple(name for name in group.models if name not in seen)))
        seen.update(group.models)
    return [group for group in parts if group.models]


def _entries(groups: Sequence[Group], task: Task) -> list[ModelEntry]:
    names = dict.fromkeys(name for group in groups for name in group.models)
    return [catalog.find(name, task) for name in names]


def _with_library(groups: Sequence[Group], task: Task, reasons: list[str]) -> list[Group]:
    """The groups with only the models whose library is installed."""
    entries = _entries(groups, task)
    missing = {entry.card.library: entry.card for entry in entries if not is_installed(entry.card)}
    for library, card in sorted(missing.items()):
        names = ", ".join(entry.name for entry in entries if entry.card.library == library)
        reasons.append(f"{library} is not installed: without {names}; {install_command(card)} adds them")
    return _restricted(groups, [entry.name for entry in entries if entry.card.library not in missing])


def _model_of_weights(job: Job) -> str | None:
    """The model of the job's weights if they are an earlier run's or one file; None if any model will do."""
    choice = job.weights_choice
    if choice in (PRETRAINED, NONE):
        return None
    path = Path(expanduser(choice))
    for artifacts in ("model/artifacts", "artifacts", "."):
        with suppress(OSError, ValueError, KeyError):
            return str(json.loads((path / artifacts / "spec.json").read_text("utf-8"))["model"])
    if is_address(choice) or path.is_file() or (path / "checkpoints").is_dir():
        return job.model_name
    return None


def _with_weights(groups: list[Group], job: Job, reasons: list[str]) -> list[Group]:
    """The groups with only the models whose weights are in the job's directory of published weights.

    If there are none, other models of the task whose weights are there.

    Raises:
        JobError: the directory has no weights of a model for the task.
    """
    if job.weights_choice in (PRETRAINED, NONE):
        return groups
    directory = Path(expanduser(job.weights_choice))
    names = {entry.name for entry in _entries(groups, job.task) if _has_weights(directory, entry)}
    if names:
        reasons.append(f"{directory} has the weights of {', '.join(sorted(names))}")
        return _restricted(groups, names)
    others = [entry for entry in catalog.models_for(job.task) if _has_weights(directory, entry)]
    if others and not any(is_installed(entry.card) for entry in others):
        require_library(others[0], job.task)
    others = [entry for entry in others if is_installed(entry.card)]
    if not others:
        candidates = ", ".join(entry.name for entry in _entries(groups, job.task))
        hint = f"`trainer weights --model NAME` lists the files, for {candidates} or another model"
        rule = f"must hold the published weights of a model for {job.task}"
        raise JobError("the sweep cannot be run:", [Problem("--weights", "", rule, str(directory), hint)])
    reasons.append(f"{directory} only has the weights of {', '.join(entry.name for entry in others)}")
    return [Group((entry.name,)) for entry in others]


def _with_backbone(groups: list[Group], task: Task, backbone: str, reasons: list[str]) -> list[Group]:
    """The groups with only the models whose backbone can be replaced, as the job asks for.

    Raises:
        JobError: no model can have it.
    """
    names = {entry.name for entry in _entries(groups, task) if takes(entry, "backbone")}
    if not names:
        rule = f"applies only to {models_taking('backbone')}, of which there is none for {task}"
        raise JobError("the settings cannot be used:", [Problem("", "backbone", rule, backbone)])
    reasons.append(f"only {', '.join(sorted(names))} can have the backbone {backbone}")
    return _restricted(groups, names)


def _has_weights(directory: Path, entry: ModelEntry) -> bool:
    # A model that comes in several sizes has facts for each, named "MODEL SIZE".
    sizes = [facts for name, facts in published_models().items() if name.split(" ")[0] == entry.name]
    files = [file for facts in sizes for file in facts.files]
    if entry.card.described_by_files is not None:
        repository = in_directory(directory, entry.library_name)
        return repository is not None and repository.weights() is not None
    if not files and entry.card.library_prefix:
        name = entry.library_name
        files = [f"{name}.safetensors", f"{name}/model.safetensors", f"{name}.pth"]
    are_here = any((directory / file).is_file() for file in files)
    return are_here or any(has_weights(directory, facts.hub) for facts in sizes)


def _check_image_size(job: Job, entry: ModelEntry) -> None:
    """Reject an image_size that a model of few sizes may not accept; only its library knows which.

    Raises:
        JobError: the job's image_size is not the model's usual one, and the job does not name the model.
    """
    size = {canonical(name): value for name, value in job.settings.items()}.get("image_size")
    usual = default_settings(job.task, entry.name)["image_size"]
    takes_few_sizes = takes(entry, "image_size") and not entry.card.searched_sides
    if takes_few_sizes and job.model is None and size not in (None, usual):
        problem = Problem("", "image_size", f"must be {usual}, unless --model names the model", repr(size))
        raise JobError("the settings cannot be used:", [problem])


def _accepting_settings(groups: Sequence[Group], job: Job, reasons: list[str]) -> list[Group]:
    """The groups with only the models that accept the job's settings.

    Raises:
        JobError: no model accepts them; the problems are those of the first model.
    """
    entries = _entries(groups, job.task)
    if not entries:
        rule = f"finds no model for {job.task} whose library is installed"
        raise JobError("the sweep cannot be run:", [Problem("", "", rule, hint="name one by --model")])
    errors: dict[str, JobError] = {}
    for entry in entries:
        try:
            resolve(job.task, entry.name, own_settings(job, entry), augments_itself=job.augments_itself)
            _check_image_size(job, entry)
        except JobError as error:
            errors[entry.name] = error
    if len(errors) == len(entries):
        raise errors[entries[0].name]
    reasons += [f"without {name}: {error.problems[0]}" for name, error in errors.items()]
    return _restricted(groups, {entry.name for entry in entries} - errors.keys())
