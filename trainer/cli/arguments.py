"""Arguments that several commands share, and flags for a job's fields and every hyperparameter."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from trainer.cli.flags import flag, flags_of, help_of, values_of, whole_number
from trainer.errors import JobError, Problem
from trainer.fields import details
from trainer.job.job import Job
from trainer.job.sweep import Limits
from trainer.models.defaults import default_in_words, models_taking
from trainer.settings import Settings, aliases_of
from trainer.tasks import Task

_TASKS = f"One of {', '.join(Task)}; names as in job files are accepted, too."


def a_task(words: str) -> Parameter:
    """A parameter for a task's name: the command's own words and the names of the tasks."""
    return Parameter(help=f"{words} {_TASKS}")


Switch = Annotated[bool, Parameter(negative="", show_default=False)]
Count = Annotated[int, Parameter(converter=whole_number)]
Datastores = Annotated[
    list[str] | None,
    Parameter(name="--datastore", help=help_of(Job.model_fields["datastores"])),
]
TargetColumn = Annotated[
    str, Parameter(help=help_of(Job.model_fields["target_column_name"]), show_default=False)
]

JobFlags: Any = flags_of(
    Job,
    leave_out=(
        "settings",
        "limits",
        "sweep",
        "search_space",
        "default_recipe",
        "substitutes",
        "ignored_keys",
        "listed_settings",
    ),
    first=("task", "training_data", "validation_data", "validation_data_size", "model"),
    aliases=lambda name: details(Job.model_fields[name]).get("aliases", ()),
    note=lambda name: _TASKS if name == "task" else "",
)
LimitsFlags: Any = flags_of(Limits, group="Sweep")
Hyperparameters: Any = flags_of(
    Settings,
    group="Scoring",
    aliases=aliases_of,
    note=lambda name: f"Only {models_taking(name)}." if models_taking(name) else "",
    default=default_in_words,
)


def job_values(job: Any, limits: Any) -> dict[str, Any]:
    """The fields of a job from its flags.

    Args:
        job: JobFlags or None.
        limits: LimitsFlags or None.

    Raises:
        JobError: a flag is not of the form NAME=VALUE.
    """
    values = values_of(job)
    for name in ("datastores", "data_assets"):
        if name in values:
            values[name] = mapping(values[name], name)
    return values | ({"limits": values_of(limits)} if values_of(limits) else {})


def mapping(pairs: list[str] | None, field: str = "datastores") -> dict[str, str]:
    """Read texts of the form NAME=VALUE.

    Args:
        field: the field of Job that takes it.

    Raises:
        JobError: a text has another form, or a name has two values.
    """
    form = details(Job.model_fields[field])["form"]
    mapping: dict[str, str] = {}
    for pair in pairs or ():
        name, separator, target = pair.partition("=")
        if not (name and separator and target):
            problem = Problem(flag_of(field), "", f"must be {form}", pair)
            raise JobError("the flag cannot be used:", [problem])
        if mapping.setdefault(name, target) != target:
            problem = Problem(flag_of(field), name, f"is {mapping[name]} already", target, "keep one of them")
            raise JobError("the flag cannot be used:", [problem])
    return mapping


def flag_of(field: str) -> str:
    """The flag of a job's field."""
    return details(Job.model_fields[field]).get("flag") or flag(field)
