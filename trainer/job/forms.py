"""Rewrites all forms of job files into the YAML form of Azure's command line, for trainer.job.file to read.

The forms are that YAML itself, its older versions, and what the Python SDK writes; the REST form and the
whole body of a request; and the arguments of AutoMLImageConfig (SDK v1). An unknown key keeps its spelling,
so that its error shows what the user wrote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from trainer.errors import Problem, did_you_mean
from trainer.job.fields import AzureOptions, LocalOptions
from trainer.job.sweep import MODEL_NAME, Limits, SamplingAlgorithm, Sweep
from trainer.settings import NAMES

CLOUD_KEYS = frozenset(
    {
        *("compute", "identity", "queue_settings", "resources", "environment", "environment_id", "services"),
        *("environment_variables", "outputs", "log_verbosity", "description", "tags"),
        *("target_column_name", "test_data", "test_data_size", "id", "status", "creation_context"),
        *("log_files", "is_archived", "notification_setting", "component_id", "secrets_configuration"),
        *("system_data", "location", "api_version", "depends_on", "created_by"),
    }
)
"""Keys of Azure's job files that have no effect outside Azure."""

KEYS = (AzureOptions.model_fields.keys() - LocalOptions.model_fields.keys()) | {
    *("$schema", "type", "display_name", "properties", "training_parameters", "local")
}
LIMITS = tuple(Limits.model_fields)
SWEEP = tuple(Sweep.model_fields)
SAMPLING = tuple(SamplingAlgorithm.model_fields)

_V1 = {
    "hyperparameter_sampling": "",
    "policy": "",
    "early_termination_policy": "",
    "arguments": "",
    "iterations": "max_trials",
    "max_concurrent_iterations": "max_concurrent_trials",
    "experiment_timeout_minutes": "timeout_minutes",
    "experiment_timeout_hours": "timeout_minutes",
}
"""Keys of SDK v1; those that are limits, with the limit's present name."""
_ALIASES = {
    "task_type": "task",
    "job_type": "type",
    "model_settings": "training_parameters",
    "image_model": "training_parameters",
    "limit_settings": "limits",
    "sweep_settings": "sweep",
    "compute_id": "compute",
    "compute_target": "compute",
    "label_column_name": "target_column_name",
    "verbosity": "log_verbosity",
    "validation_size": "validation_data_size",
}
_DATA_ALIASES = {"uri": "path", "job_input_type": "type"}
_TYPE_ALIASES = {"policy_type": "type", "sampling_algorithm_type": "type", "name": "type"}
_NO_POLICIES = ("", "none", "default", "no_termination")
_DURATION = re.compile(
    r"P(?:(?P<days>[\d.]+)D)?(?:T(?:(?P<hours>[\d.]+)H)?(?:(?P<minutes>[\d.]+)M)?(?:(?P<seconds>[\d.]+)S)?)?"
)


def to_yaml_form(content: Mapping[Any, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    """The content of a job file under the keys of the command line's YAML, and its problems."""
    problems: list[Problem] = []
    body, is_rest = _unwrapped(content)
    form = _renamed(body, KEYS | CLOUD_KEYS | _V1.keys(), _ALIASES, where, "", problems)
    if is_rest:  # a request's body lists unset keys as null
        form = {key: _without_nulls(value) for key, value in form.items() if value is not None}
    _fold_v1(form, where, problems)
    for key in ("training_data", "validation_data"):
        entries = form.get(key)
        if isinstance(entries, list):
            form[key] = [_data(entry, where, key, problems) for entry in entries]
        elif isinstance(entries, Mapping):
            form[key] = _data(entries, where, key, problems)
    if isinstance(form.get("training_parameters"), Mapping):
        names = NAMES.keys() | {MODEL_NAME}
        parameters = form["training_parameters"]
        form["training_parameters"] = _renamed(parameters, names, {}, where, "training_parameters", problems)
    _fold_sweep(form, where, problems)
    if isinstance(form.get("limits"), Mapping):
        form["limits"] = _limits(form["limits"], where, problems)
    if form.get("search_space"):
        form["search_space"] = _spaces(form["search_space"], where, problems)
    return form, problems


def snake_case(name: str) -> str:
    """learningRate → learning_rate, stepLRGamma → step_lr_gamma."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return name.replace("-", "_").lower()


def _unwrapped(content: Mapping[Any, Any]) -> tuple[dict[Any, Any], bool]:
    """Flatten a request's body; the second value is whether the content has the REST form."""
    outer = dict(content)
    inner = outer.get("properties")
    if isinstance(inner, Mapping) and _key_of(inner, "task_details") is not None:
        del outer["properties"]
        if str(outer.get("type", "")).lower().startswith("microsoft."):
            del outer["type"]  # the type of the resource; the job's own is job_type
        outer |= inner
    details = _key_of(outer, "task_details")
    if details is not None and isinstance(outer[details], Mapping):
        task = outer.pop(details)
        outer |= task
    return outer, any(snake_case(key) != key for key in outer if isinstance(key, str) and key != "$schema")


def _key_of(content: Mapping[Any, Any], name: str) -> Any:
    return next((key for key in content if isinstance(key, str) and snake_case(key) == name), None)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _renamed(
    content: Mapping[Any, Any],
    known: Collection[str],
    aliases: Mapping[str, str],
    where: str,
    section: str,
    problems: list[Problem],
) -> dict[str, Any]:
    """Rename the keys that are other spellings of known names."""
    renamed: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in content.items():
        spelling = str(key)
        name = snake_case(spelling)
        name = aliases.get(name, name)
        if name not in known:
            name = spelling
        if name in renamed and renamed[name] != value:
            field = f"{section}.{spelling}" if section else spelling
            problems.append(
                Problem(where, field, f"contradicts {origins[name]}, its other name", repr(value))
            )
        renamed[name], origins[name] = value, spelling
    return renamed


def _fold_v1(form: dict[str, Any], where: str, problems: list[Problem]) -> None:
    """Move the arguments of AutoMLImageConfig to their places in the YAML form."""
    arguments = {key: form.pop(key) for key in _V1 if key in form}
    if not arguments:
        return
    for name in [key for key in form if key in NAMES or key == MODEL_NAME]:  # its keyword arguments
        _put(form, "training_parameters", name, form.pop(name), where, name, problems)
    for key, value in arguments.items():
        if value is None:
            continue
        if key == "arguments":
            _fold_arguments(form, value, where, problems)
        elif key == "hyperparameter_sampling":
            _fold_sampling(form, value, where, problems)
        elif limit := _V1[key]:
            number = _minutes(value) if key == "experiment_timeout_hours" else value
            if number is None:
                problems.append(Problem(where, key, "must be a number of hours over 0", repr(value)))
                continue
            _put(form, "limits", limit, number, where, key, problems)
        else:
            _put(form, "sweep", "early_termination", value, where, key, problems)


def _minutes(hours: Any) -> int | None:
    """Convert hours to minutes; None if they are not a positive number."""
    try:
        minutes = float(hours) * 60
    except (TypeError, ValueError):
        return None
    return math.ceil(minutes) if 0 < minutes < math.inf and not isinstance(hours, bool) else None


def _fold_arguments(form: dict[str, Any], value: Any, where: str, problems: list[Problem]) -> None:
    """Read `["--learning_rate", 0.01, …]` as training parameters."""
    pairs = value if isinstance(value, list) else []
    names = [str(name) for name in pairs[::2]]
    if not pairs or len(pairs) % 2 or not all(name.startswith("--") for name in names):
        rule = "must be a list that alternates --name and value"
        problems.append(Problem(where, "arguments", rule, repr(value)))
        return
    for name, item in zip(names, pairs[1::2], strict=True):
        key = name[2:].replace("-", "_")
        _put(form, "training_parameters", key, item, where, f"arguments.{name}", problems)


def _fold_sampling(form: dict[str, Any], value: Any, where: str, problems: list[Problem]) -> None:
    """Split v1's sampling object into algorithm and search space."""
    field = "hyperparameter_sampling"
    if isinstance(value, Mapping):
        known = (*SAMPLING, "parameter_space", "properties")
        algorithm = _renamed(
            value, known, {**_TYPE_ALIASES, "search_space": "parameter_space"}, where, field, problems
        )
        algorithm = _flat(algorithm)
        space = algorithm.pop("parameter_space", None)
        if space:
            _put(form, "", "search_space", space, where, f"{field}.parameter_space", problems)
        value = algorithm
    if value:
        _put(form, "sweep", "sampling_algorithm", value, where, field, problems)


def _fold_sweep(form: dict[str, Any], where: str, problems: list[Problem]) -> None:
    """Rename the sweep's keys and move its limits, which older files have there, to the job's."""
    if not isinstance(form.get("sweep"), Mapping):
        return
    sweep = _renamed(form["sweep"], (*SWEEP, "limits"), {}, where, "sweep", problems)
    inner = sweep.pop("limits", None)
    if isinstance(inner, Mapping):
        # In older files the job's own limits concern the job, and those of `sweep` its trials.
        outer = form.get("limits") or {}
        if isinstance(outer, Mapping):  # anything else is reported by the check of the sections
            form["limits"] = {**outer, **_limits(inner, where, problems)}
    elif inner is not None:
        problems.append(Problem(where, "sweep.limits", "must be a mapping", repr(inner)))
    algorithm = sweep.get("sampling_algorithm")
    if isinstance(algorithm, Mapping):
        field = "sweep.sampling_algorithm"
        algorithm = _renamed(algorithm, SAMPLING, _TYPE_ALIASES, where, field, problems)
        sweep["sampling_algorithm"] = algorithm | _type(algorithm.get("type"), "parameter_sampling")
    elif isinstance(algorithm, str):
        sweep["sampling_algorithm"] = _type(algorithm, "parameter_sampling")["type"]
    policy = sweep.get("early_termination")
    if isinstance(policy, str):
        policy = {"type": policy}
    if isinstance(policy, Mapping):
        flat = _flat(policy)
        flat = {_TYPE_ALIASES.get(snake_case(str(key)), snake_case(str(key))): v for key, v in flat.items()}
        flat |= _type(flat.get("type"), "policy")
        sweep["early_termination"] = None if flat.get("type") in _NO_POLICIES else flat
    form["sweep"] = {key: value for key, value in sweep.items() if value is not None}


def _flat(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Move the entries of v1's nested map `properties` up into the object."""
    inner = content.get("properties") or {}
    if not isinstance(inner, Mapping):
        return dict(content)  # reported by the check of its keys
    return {key: value for key, value in content.items() if key != "properties"} | dict(inner)


def _type(name: Any, ending: str) -> dict[str, Any]:
    """Read Bandit, BANDIT or BanditPolicy as {"type": "bandit"}."""
    if not isinstance(name, str):
        return {}
    plain = name.lower() if name.isupper() else snake_case(name)
    plain = plain.removesuffix(f"_{ending}").removesuffix("_optimization")
    return {"type": "bayesian" if plain == "bayesianoptimization" else plain}


def _limits(limits: Mapping[Any, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    renamed = _renamed(limits, (*LIMITS, "timeout"), {}, where, "limits", problems)
    renamed = {key: value for key, value in renamed.items() if value is not None}
    if "timeout" not in renamed:
        return renamed
    duration = renamed.pop("timeout")
    match = _DURATION.fullmatch(str(duration).strip().upper())
    parts = {unit: float(value) for unit, value in match.groupdict("0").items()} if match else {}
    minutes = math.ceil(
        parts.get("days", 0) * 1440
        + parts.get("hours", 0) * 60
        + parts.get("minutes", 0)
        + parts.get("seconds", 0) / 60
    )
    if minutes:
        renamed["timeout_minutes"] = minutes
    else:
        rule = "must be a duration longer than zero, such as PT60M or PT1H"
        problems.append(Problem(where, "limits.timeout", rule, repr(duration)))
    return renamed


def _data(entry: Any, where: str, key: str, problems: list[Problem]) -> Any:
    known = ("path", "type", "mode", "description", "datastore")
    return (
        _renamed(entry, known, _DATA_ALIASES, where, key, problems) if isinstance(entry, Mapping) else entry
    )


def _spaces(spaces: Any, where: str, problems: list[Problem]) -> Any:
    """Rename the sub-spaces' parameters to the settings' names, and flatten v1's nested sub-spaces."""
    flat: list[Any] = []
    for space in spaces if isinstance(spaces, list) else [spaces]:
        if not isinstance(space, Mapping):
            return spaces  # reported by the check of the job
        nested = _maps_of_choice(space.get("model"))
        rest = {key: value for key, value in space.items() if key != "model" or not nested}
        for own in nested or ({},):
            merged = _renamed(
                {**rest, **own}, NAMES.keys() | {MODEL_NAME}, {}, where, "search_space", problems
            )
            flat.append({name: _expression(expression) for name, expression in merged.items()})
    return flat


def _maps_of_choice(expression: Any) -> list[Mapping[Any, Any]]:
    """The sub-spaces in v1's `"model": choice({…}, {…})`, written as a map or as ["choice", [[…]]]."""
    values = _expression(expression)
    values = values.get("values") if isinstance(values, Mapping) else None
    return values if isinstance(values, list) and all(isinstance(v, Mapping) for v in values) else []


def _expression(expression: Any) -> Any:
    """Rewrite an expression: keys in snake case, v1's ["uniform", [0.1, 1]] as text, a choice as a map."""
    if isinstance(expression, Mapping):
        return {snake_case(str(key)): value for key, value in expression.items()}
    if not (isinstance(expression, list) and len(expression) == 2 and isinstance(expression[1], list)):
        return expression
    name, arguments = str(expression[0]), expression[1]
    if name == "choice":
        values = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else arguments
        return {"type": "choice", "values": values}
    return f"{name}({', '.join(map(str, arguments))})"


def _put(
    form: dict[str, Any], section: str, key: str, value: Any, where: str, field: str, problems: list[Problem]
) -> None:
    """Set a key of a section, or report that it has another value already."""
    into = form if not section else form.setdefault(section, {})
    if not isinstance(into, dict):
        return  # reported by the check of the sections
    if key in into and into[key] != value:
        path = f"{section}.{key}" if section else key
        problems.append(Problem(where, field, f"contradicts {path}, its other name", repr(value)))
    into[key] = value


def nearest(key: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names the known key closest to a wrong one."""
    return did_you_mean(snake_case(key), known, otherwise=otherwise, most=1, cutoff=0.6)
