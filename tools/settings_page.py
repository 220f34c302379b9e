"""Generates docs/settings.md; `make docs` runs it."""

from __future__ import annotations

from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from trainer import settings
from trainer.fields import help_text
from trainer.models import catalog, defaults
from trainer.settings import Settings
from trainer.tasks import Task

_BOUNDS: dict[type, tuple[str, str]] = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}

_INTRODUCTION = """\
# Settings

All hyperparameters, grouped as in `trainer fit --help-all`. Set them in a job file under
`training_parameters`, in Python in `Job.settings`, or on the command line as flags (`--number-of-epochs`).
This page is generated from `trainer/settings.py` by `make docs`.
"""

_MODERN = """\
## The modern recipe

The modern recipe changes the defaults to current practice for fine-tuning published weights. On the command
line and in Python it is the default for classifiers that start from weights, where it was measured to be
better (benchmarks/RESULTS.md). With a job file, a search space, `--weights none` or `--optimizer sgd` (or
`--momentum` or `--nesterov` without an optimizer), the default is the reference recipe. Each setting still
overrides the recipe. The table is for many training images; with fewer, the batch is smaller and there are
more epochs, as `trainer fit --dry-run --check-data` shows. Of timm's other models, transformers and ConvNeXts
get a `layer_decay` of 0.75 and a `learning_rate` of 0.0003. Training from scratch needs more epochs; its
`layer_decay` is 1 unless it is set. Setting `early_stopping_patience` or `early_stopping_delay` turns early
stopping on.
"""
_UNCHANGED = "as in the reference recipe"


def settings_table() -> str:
    """The content of docs/settings.md: a table for each group."""
    groups: dict[str, list[str]] = {}
    for name, info in Settings.model_fields.items():
        older = "".join(f"<br>`{alias}`" for alias in settings.aliases_of(name))
        cells = [
            f"`{name}`{older}",
            _kind(info),
            defaults.default_in_words(name),
            defaults.models_taking(name) or "all",
            help_text(info),
        ]
        groups.setdefault(settings.group_of(name), []).append(f"| {' | '.join(cells)} |")
    head = "| name, older names | values | default | models | effect |\n|---|---|---|---|---|"
    tables = [f"## {group}\n\n{head}\n" + "\n".join(rows) + "\n" for group, rows in groups.items()]
    return "\n".join([_INTRODUCTION, *tables, _MODERN, _modern_table()])


def _modern_table() -> str:
    """The defaults that the modern recipe changes, a row for the models that share them."""
    rows: dict[tuple[str, bool], list[str]] = {}
    for entry in catalog.MODELS.values():
        for task in entry.tasks:
            usual, modern = (
                defaults.default_settings(task, entry.name, recipe) for recipe in ("reference", "modern")
            )
            values = ", ".join(
                f"`{name}` {settings.shown(value)}"
                for name, value in modern.items()
                if value != usual[name] and name != "recipe"
            )
            rows.setdefault((values, task is Task.MULTILABEL), []).append(entry.name)
    lines = [
        f"| {defaults.models_in_words(names)}{' (multilabel)' if multilabel else ''} "
        f"| {values or _UNCHANGED} |"
        for (values, multilabel), names in rows.items()
    ]
    return "| models | defaults |\n|---|---|\n" + "\n".join(lines) + "\n"


def _kind(info: FieldInfo) -> str:
    """The type and range of a field: `float ≥ 0, ≤ 1`."""
    annotation: Any = info.annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, kinds))
    if get_origin(annotation) is Union and len(kinds) > 1:
        return " or ".join(_kind(FieldInfo.from_annotation(kind)) for kind in kinds)
    if type(None) in get_args(annotation):
        (annotation,) = kinds
    kind = getattr(annotation, "__name__", str(annotation))
    bounds = [
        f"{sign} {getattr(bound, attribute)}"
        for bound in info.metadata
        for marker, (attribute, sign) in _BOUNDS.items()
        if isinstance(bound, marker)
    ]
    names = {"AdvancedSettings": "JSON object", "str": "text"}
    return f"{names.get(kind, kind)} {', '.join(bounds)}".strip()


if __name__ == "__main__":
    import sys

    sys.stdout.write(settings_table())
