"""The table of all settings in docs/settings.md: `python -m trainer.settings_table > docs/settings.md`."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from trainer import settings
from trainer.settings import Settings

_BOUNDS: dict[type, tuple[str, str]] = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}

_INTRODUCTION = """\
# Settings

Every hyperparameter, by what it is for. Each may stand in a job file under `training_parameters`, in Python
in `Job.settings`, and on the command line as a flag (`--number-of-epochs`). This page is generated from
`trainer/settings.py` by `python -m trainer.settings_table`.
"""


def settings_table() -> str:
    """docs/settings.md as text: a table for each group, in the order of the help."""
    groups: dict[str, list[str]] = {}
    for name, info in Settings.model_fields.items():
        older = "".join(f"<br>`{alias}`" for alias in settings.aliases_of(name))
        cells = [
            f"`{name}`{older}",
            _kind(info),
            settings.default_in_words(name),
            settings.takers(name) or "all",
            info.description or "",
        ]
        groups.setdefault(settings.group_of(name), []).append(f"| {' | '.join(cells)} |")
    head = "| name, older names | values | default | models | effect |\n|---|---|---|---|---|"
    tables = [f"## {group}\n\n{head}\n" + "\n".join(rows) + "\n" for group, rows in groups.items()]
    return "\n".join([_INTRODUCTION, *tables])


def _kind(info: FieldInfo) -> str:
    """A field's values in words: `float ≥ 0, ≤ 1`."""
    annotation: Any = info.annotation
    if type(None) in get_args(annotation):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(str(value) for value in get_args(annotation))
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
