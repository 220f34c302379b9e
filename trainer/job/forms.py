"""Rewrites all forms of job files into the YAML form of Azure's command line, for trainer.job.file to read.

The forms are that YAML itself, its older versions, and what the Python SDK writes; the REST form and the
whole body of a request; and the arguments of AutoMLImageConfig (SDK v1). An unknown key keeps its spelling,
so that its error shows what the user wrote.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from trainer.errors import Problem, did_you_mean
from trainer.fields import enum_member, snake_case
from trainer.job.fields import AzureOptions, LocalOptions
from trainer.job.former import FORMER
from trainer.job.sweep import DURATION_RULE, MODEL_NAME, Limits, SamplingAlgorithm, Sweep, minutes_of
from trainer.settings import NAMES

CLOUD_KEYS = frozenset(
    {
        *("compute", "identity", "queue_settings", "resources", "environment", "environment_id", "services"),
        *("environment_variables", "outputs", "log_verbosity", "description", "tags"),
        *("test_data", "test_data_size", "id", "status", "creation_context"),
        *("log_files", "is_archived", "notification_setting", "component_id", "secrets_configuration"),
        *(
            "system_data",
            "location",
            "api_version",
            "depends_on",
            "created_by",
            "schedule",
            "parent_job_name",
        ),
    }
)
"""Keys of Azure's job files that have no effect outside Azure."""

KEYS = (AzureOptions.model_fields.keys() - LocalOptions.model_fields.keys()) | {
    *("$schema", "type", "display_name", "properties", "training_parameters", "local")
}
LIMITS = tuple(Limits.model_fields)
SWEEP = tuple(Sweep.model_fields)
SAMPLING = tuple(SamplingAlgorithm.model_fields)
_PARAMETERS = NAMES.keys() | {MODEL_NAME, *FORMER}

_V1 = {
    "hyperparameter_sampling": ("sweep", "sampling_algorithm"),
    "policy": ("sweep", "early_termination"),
    "early_termination_policy": ("sweep", "early_termination"),
    "arguments": ("training_parameters", ""),
    "iterations": ("limits", "max_trials"),
    "max_concurrent_iterations": ("limits", "max_concurrent_trials"),
    "experiment_timeout_minutes": ("limits", "timeout_minutes"),
    "experiment_timeout_hours": ("limits", "timeout_minutes"),
}
"""Keys of SDK v1 → section and key that hold their values."""
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
    "split_ratio": "validation_data_size",
}
_DATA_SETTINGS = "data_settings"
_DATA = (("path", "type", "mode", "description", "datastore"), {"uri": "path", "job_input_type": "type"})
_TYPE_ALIASES = {"policy_type": "type", "sampling_algorithm_type": "type", "name": "type"}
_SECTIONS: dict[str, tuple[Collection[str], Mapping[str, str]]] = {
    "": (KEYS | CLOUD_KEYS | _V1.keys() | {_DATA_SETTINGS}, _ALIASES),
    _DATA_SETTINGS: (KEYS | CLOUD_KEYS, _ALIASES),
    "training_data": _DATA,
    "validation_data": _DATA,
    "training_parameters": (_PARAMETERS, {}),
    "search_space": (_PARAMETERS, {}),
    "limits": ((*LIMITS, "timeout"), {"max_total_trials": "max_trials"}),
    "sweep": ((*SWEEP, "limits"), {}),
    "sweep.sampling_algorithm": (SAMPLING, _TYPE_ALIASES),
    "hyperparameter_sampling": (
        (*SAMPLING, "parameter_space", "properties"),
        {**_TYPE_ALIASES, "search_space": "parameter_space"},
    ),
}
"""The keys of each section in all forms, and further names of some; "" is the top of the file."""
_WRAPPED = ("data", "validation_data_size", "test_data_size")
"""Keys of a data entry in the REST form of 2022-02."""
_NO_POLICIES = ("", "none", "default", "no_termination")


def to_yaml_form(content: Mapping[Any, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    """The content of a job file under the keys of the command line's YAML, and its problems."""
    rewriter = _Rewriter(where)
    return rewriter.rewrite(content), rewriter.problems


def nearest(key: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names the known key closest to a wrong one."""
    return did_you_mean(snake_case(key), known, otherwise=otherwise, most=1, cutoff=0.6)


class _Rewriter:
    """Rewrites the content of one file and collects the problems that it finds.

    It leaves values of a wrong type as they are: the checks of the sections and of the job report them.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[Problem] = []

    def rewrite(self, content: Mapping[Any, Any]) -> dict[str, Any]:
        """Rewrite the content of a file."""
        body, is_rest = _unwrapped(content)
        form = self.rename("", body)
        if is_rest:  # a request's body lists unset keys as null
            form = {key: _without_nulls(value) for key, value in form.items() if value is not None}
        self.fold_v1(form)
        self.fold_data_settings(form)
        for section in ("training_data", "validation_data"):
            data = form.get(section)
            if isinstance(data, list):
                form[section] = [self.rename(section, e) if isinstance(e, Mapping) else e for e in data]
            elif isinstance(data, Mapping):
                form[section] = self.rename(section, data)
        if isinstance(form.get("training_parameters"), Mapping):
            form["training_parameters"] = self.rename("training_parameters", form["training_parameters"])
        self.fold_sweep(form)
        if isinstance(form.get("limits"), Mapping):
            form["limits"] = self.limits(form["limits"])
        if form.get("search_space"):
            form["search_space"] = self.spaces(form["search_space"])
        return form

    def report(self, field: str, rule: str, value: Any) -> None:
        """Add a problem."""
        self.problems.append(Problem(self.where, field, rule, repr(value)))

    def rename(self, section: str, content: Mapping[Any, Any]) -> dict[str, Any]:
        """Rename the keys of a section that are other spellings of known names."""
        known, aliases = _SECTIONS[section]
        renamed: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for key, value in content.items():
            spelling = str(key)
            name = snake_case(spelling)
            name = aliases.get(name, name)
            if name not in known:
                name = spelling
            if renamed.get(name) is not None:
                if value is None:  # not set under this name
                    continue
                if renamed[name] != value:
                    field = f"{section}.{spelling}" if section else spelling
                    self.report(field, f"contradicts {origins[name]}, its other name", value)
            renamed[name], origins[name] = value, spelling
        return renamed

    def put(self, form: dict[str, Any], section: str, key: str, value: Any, field: str) -> None:
        """Set a key of a section, or report that it has another value already."""
        into = form if not section else form.setdefault(section, {})
        if not isinstance(into, dict):
            return
        if into.get(key) is not None:
            if value is None:
                return
            if into[key] != value:
                path = f"{section}.{key}" if section else key
                self.report(field, f"contradicts {path}, its other name", value)
        into[key] = value

    def fold_v1(self, form: dict[str, Any]) -> None:
        """Move the arguments of AutoMLImageConfig to their places in the YAML form."""
        arguments = {key: form.pop(key) for key in _V1 if key in form}
        if not arguments:
            return
        for name in [key for key in form if key in _PARAMETERS]:  # its keyword arguments
            self.put(form, "training_parameters", name, form.pop(name), name)
        for key, value in arguments.items():
            if value is None:
                continue
            if key == "arguments":
                self.fold_arguments(form, value)
                continue
            if key == "hyperparameter_sampling":
                value = self.split_sampling(form, value)
                if not value:
                    continue
            if key == "experiment_timeout_hours":
                hours, value = value, _minutes(value)
                if value is None:
                    self.report(key, "must be a number of hours over 0", hours)
                    continue
            self.put(form, *_V1[key], value, key)

    def fold_arguments(self, form: dict[str, Any], value: Any) -> None:
        """Read `["--learning_rate", 0.01, …]` as training parameters."""
        pairs = value if isinstance(value, list) else []
        names = [str(name) for name in pairs[::2]]
        if not pairs or len(pairs) % 2 or not all(name.startswith("--") for name in names):
            self.report("arguments", "must be a list that alternates --name and value", value)
            return
        for name, item in zip(names, pairs[1::2], strict=True):
            key = name[2:].replace("-", "_")
            self.put(form, "training_parameters", key, item, f"arguments.{name}")

    def split_sampling(self, form: dict[str, Any], value: Any) -> Any:
        """Move the search space out of v1's sampling object and return the algorithm."""
        field = "hyperparameter_sampling"
        if not isinstance(value, Mapping):
            return value
        algorithm = _flat(self.rename(field, value))
        if space := algorithm.pop("parameter_space", None):
            self.put(form, "", "search_space", space, f"{field}.parameter_space")
        return algorithm

    def fold_data_settings(self, form: dict[str, Any]) -> None:
        """Move the data settings of the REST form of 2022-02 to the top, and what they wrap to its place."""
        settings = form.pop(_DATA_SETTINGS, None)
        if isinstance(settings, Mapping):
            for key, value in self.rename(_DATA_SETTINGS, settings).items():
                self.put(form, "", key, value, f"{_DATA_SETTINGS}.{key}")
        elif settings is not None:
            self.report(_DATA_SETTINGS, "must be a mapping", settings)
        for section in ("training_data", "validation_data", "test_data"):
            data = form.get(section)
            if not isinstance(data, Mapping) or not any(snake_case(str(key)) in _WRAPPED for key in data):
                continue
            wrapped = {snake_case(str(key)): value for key, value in data.items()}
            for key in [key for key in wrapped if key.endswith("_data_size")]:
                size = wrapped.pop(key)
                if size is not None:
                    self.put(form, "", key, size, f"{section}.{key}")
            inner = wrapped.pop("data", None)
            form[section] = {**inner, **wrapped} if isinstance(inner, Mapping) else wrapped or inner

    def fold_sweep(self, form: dict[str, Any]) -> None:
        """Rename the sweep's keys and move its limits, which older files have there, to the job's."""
        if not isinstance(form.get("sweep"), Mapping):
            return
        sweep = self.rename("sweep", form["sweep"])
        inner = sweep.pop("limits", None)
        if isinstance(inner, Mapping):
            # In older files the job's own limits concern the job, and those of `sweep` its trials.
            outer = form.get("limits") or {}
            if isinstance(outer, Mapping):
                form["limits"] = {**self.limits(outer), **self.limits(inner)}
        elif inner is not None:
            self.report("sweep.limits", "must be a mapping", inner)
        algorithm = sweep.get("sampling_algorithm")
        if isinstance(algorithm, Mapping):
            algorithm = _without_nulls(self.rename("sweep.sampling_algorithm", algorithm))
            sweep["sampling_algorithm"] = algorithm | _type(algorithm.get("type"), "parameter_sampling")
        elif isinstance(algorithm, str):
            sweep["sampling_algorithm"] = _type(algorithm, "parameter_sampling")["type"]
        policy = sweep.get("early_termination")
        if isinstance(policy, str):
            policy = {"type": policy}
        if isinstance(policy, Mapping):
            flat = {snake_case(str(key)): value for key, value in _flat(policy).items()}
            flat = {_TYPE_ALIASES.get(key, key): value for key, value in flat.items()}
            flat = _without_nulls(flat) | _type(flat.get("type"), "policy")
            is_none = not flat or flat.get("type") in _NO_POLICIES
            sweep["early_termination"] = None if is_none else flat
        form["sweep"] = {key: value for key, value in sweep.items() if value is not None}

    def limits(self, limits: Mapping[Any, Any]) -> dict[str, Any]:
        """Rename the keys of limits and convert the REST form's timeout to minutes."""
        renamed = {key: value for key, value in self.rename("limits", limits).items() if value is not None}
        if "timeout" in renamed:
            duration = renamed.pop("timeout")
            minutes = minutes_of(duration)
            if minutes is None:
                self.report("limits.timeout", DURATION_RULE, duration)
            elif renamed.setdefault("timeout_minutes", minutes) != minutes:
                self.report("limits.timeout", "contradicts limits.timeout_minutes, its other name", duration)
        return renamed

    def spaces(self, spaces: Any) -> Any:
        """Rename the sub-spaces' parameters to the settings' names, and flatten v1's nested sub-spaces."""
        flat: list[Any] = []
        for space in spaces if isinstance(spaces, list) else [spaces]:
            if not isinstance(space, Mapping):
                return spaces
            nested = _maps_of_choice(space.get("model"))
            rest = {key: value for key, value in space.items() if key != "model" or not nested}
            for own in nested or ({},):
                merged = self.rename("search_space", {**rest, **own})
                flat.append({name: _expression(expression) for name, expression in merged.items()})
        return flat


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


def _minutes(hours: Any) -> int | None:
    """Convert hours to minutes; None if they are not a positive number."""
    try:
        minutes = float(hours) * 60
    except (TypeError, ValueError, OverflowError):
        return None
    return math.ceil(minutes) if 0 < minutes < math.inf and not isinstance(hours, bool) else None


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
    name = str(enum_member(name))
    plain = name.lower() if name.isupper() else snake_case(name)
    plain = plain.removesuffix(f"_{ending}").removesuffix("_optimization")
    return {"type": "bayesian" if plain == "bayesianoptimization" else plain}


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
