"""Reads job files, YAML or JSON in any of Azure's forms, into the fields of a Job."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from os.path import exists
from pathlib import Path
from typing import Any

from trainer.errors import JobError, Problem, ProblemsError
from trainer.fields import enum_member
from trainer.files import without_prefix
from trainer.job.fields import LocalOptions
from trainer.job.former import CHECKPOINT
from trainer.job.forms import CLOUD_KEYS, KEYS, LIMITS, SAMPLING, SWEEP, nearest, to_yaml_form
from trainer.job.pipelines import is_pipeline, node_job, without_expressions
from trainer.job.places import anchored, is_remote, tracking_place
from trainer.job.sweep import MODEL_NAME
from trainer.settings import NAMES, RUN_ID
from trainer.strict_yaml import load as load_yaml
from trainer.strict_yaml import load_json

_DATA_KEYS = ("path", "type", "mode")
_CLOUD_DATA_KEYS = ("mode", "description", "datastore")
_DATA_TYPES = ("mltable", "uri_file", "uri_folder")
_NODES = "node_count_per_trial"
_SECTIONS = ("training_parameters", "limits", "sweep", "properties", "local")
_ANCHORS = {
    "weights": anchored,
    "augmentation": anchored,
    "tracking_uri": tracking_place,
    "storage": tracking_place,
}
_EMPTY: tuple[Any, ...] = (None, "", {}, [], False)


def read(path: Path, node: str = "", given: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Read a job file.

    Args:
        node: of a pipeline, the node to read; "" for the only one that trains an image model.
        given: fields and settings that are given elsewhere, so that the file's may be left to a pipeline.

    Returns:
        The fields of a Job, with unchecked values, and the keys that have no effect outside Azure.

    Raises:
        JobError: the file is missing, is neither YAML nor JSON, or has unknown or misplaced keys.
    """
    where = str(path)
    content = _load(path)
    besides: list[str] = []
    if is_pipeline(content):
        content, besides = node_job(content, path, node, given)
    elif node:
        rule = "chooses a node of a pipeline, but the file is a single job"
        raise JobError("the job file cannot be used:", [Problem(where, "--node", rule, hint="remove it")])
    form, problems = to_yaml_form(content, where)
    problems += [
        Problem(where, key, "must be a mapping", repr(form[key]))
        for key in _SECTIONS
        if form.get(key) is not None and not isinstance(form[key], Mapping)
    ]
    if not problems:
        form = without_expressions(form, given)
        problems = [*_unknown_keys(where, form), *_pipeline_expressions(where, form)]
        if str(form.get("type") or "automl").lower() != "automl":
            problems.append(Problem(where, "type", "must be automl", repr(form["type"])))
        problems += _malformed_mappings(where, form.get("local") or {})
    if problems:
        raise JobError("the job file cannot be used:", problems)
    ignored = {key for key in CLOUD_KEYS & form.keys() if form[key] not in _EMPTY}
    values = _values(path, form, ignored)
    return values, sorted({*ignored, *besides})


def _load(path: Path) -> Mapping[Any, Any]:
    where = str(path)
    try:
        content = path.read_bytes()
        is_json = path.suffix.lower() == ".json"  # YAML allows no tabs
        form = load_json(content, where) if is_json else load_yaml(content, where)
    except OSError as error:
        raise JobError("the job file cannot be read:", [Problem(where, "", str(error))]) from error
    except ProblemsError as error:
        raise JobError("the job file cannot be read:", error.problems) from error
    if not isinstance(form, Mapping):
        raise JobError("the job file cannot be read:", [Problem(where, "", "must be a YAML mapping")])
    return form


def _unknown_keys(where: str, form: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for key in form:
        if key in NAMES or key == MODEL_NAME:
            hint = "put it under training_parameters"
            problems.append(Problem(where, key, "is a training parameter", hint=hint))
        elif key not in KEYS and key not in CLOUD_KEYS:
            hint = nearest(key, KEYS | CLOUD_KEYS)
            problems.append(Problem(where, key, "is not a key of job files", hint=hint))
    for key in ("training_data", "validation_data"):
        entries = form.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, Mapping):
                own = {name: value for name, value in entry.items() if name not in _CLOUD_DATA_KEYS}
                problems += _unknown_in(where, key, own, _DATA_KEYS)
    algorithm = (form.get("sweep") or {}).get("sampling_algorithm")
    for name, section, known in (
        ("limits", form.get("limits"), LIMITS),
        ("sweep", form.get("sweep"), SWEEP),
        ("local", form.get("local"), tuple(LocalOptions.model_fields)),
        ("sweep.sampling_algorithm", algorithm if isinstance(algorithm, Mapping) else None, SAMPLING),
    ):
        problems += _unknown_in(where, name, section or {}, known)
    return problems


def _unknown_in(where: str, name: str, section: Mapping[Any, Any], known: tuple[str, ...]) -> list[Problem]:
    keys = [str(key) for key in section if key not in known]
    listed = f"there are {', '.join(known)}"
    return [Problem(where, f"{name}.{key}", "is unknown", hint=nearest(key, known, listed)) for key in keys]


def _pipeline_expressions(where: str, form: Mapping[str, Any]) -> Iterator[Problem]:
    """Values that only an Azure pipeline can fill in."""

    def walk(field: str, value: Any) -> Iterator[Problem]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk(f"{field}.{key}", item)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from walk(f"{field}[{index}]", item)
        elif isinstance(value, str) and "${{" in value:
            rule = "must be a value, not an expression that Azure fills in"
            yield Problem(where, field, rule, repr(value), "write its value")

    for key, value in form.items():
        if key not in CLOUD_KEYS:
            yield from walk(key, value)


def _malformed_mappings(where: str, local: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for key, what in (("datastores", "directories or URLs"), ("data_assets", "files, folders or URLs")):
        places = local.get(key) or {}
        if not isinstance(places, Mapping) or not all(isinstance(at, str) and at for at in places.values()):
            problems.append(Problem(where, f"local.{key}", f"must map names to {what}", repr(places)))
    return problems


def _values(path: Path, form: Mapping[str, Any], ignored: set[str]) -> dict[str, Any]:
    """The fields of a Job for a checked form. Its paths are relative to the file."""
    parameters = dict(form.get("training_parameters") or {})
    local = form.get("local") or {}
    properties = form.get("properties") or {}
    values: dict[str, Any] = {
        key: form[key]
        for key in (
            "task",
            "target_column_name",
            "primary_metric",
            "validation_data_size",
            "limits",
            "search_space",
        )
        if form.get(key) is not None
    }
    for key in ("training_data", "validation_data"):
        if form.get(key):
            values[key] = tuple(_data_paths(path, key, form[key], ignored))
    if form.get("sweep"):
        values["sweep"] = form["sweep"]
    model = parameters.pop(MODEL_NAME, None)
    if model is not None:
        values["model"] = model
    if name := form.get("display_name") or form.get("name"):
        values["name"] = str(name)
    if experiment := form.get("experiment_name"):
        values["experiment_name"] = str(experiment)
    if properties.get(_NODES) is not None:
        values["nodes"] = properties[_NODES]
    if properties.keys() - {_NODES}:
        ignored.add("properties")
    if isinstance(checkpoint := parameters.get(CHECKPOINT), Mapping):
        parameters[CHECKPOINT] = checkpoint.get("path") or checkpoint.get("uri")
    for key in (RUN_ID, CHECKPOINT):  # relative to the file, like every other path in it
        place = parameters.get(key)
        if isinstance(place, str) and place:
            place = without_prefix(place, path.parent)
            if exists(path.parent / place) or (key == CHECKPOINT and "/" in place and not is_remote(place)):
                parameters[key] = anchored(place, path.parent)
    values["settings"] = parameters
    values |= {key: value for key, value in local.items() if value is not None}
    for key, anchor in _ANCHORS.items():
        if isinstance(local.get(key), str):
            values[key] = anchor(local[key], path.parent)
    for key in values.keys() & {"datastores", "data_assets"}:
        places = local[key] or {}
        values[key] = {str(name): anchored(at, path.parent) for name, at in places.items()}
    return values


def _data_paths(file: Path, key: str, entry: Any, ignored: set[str]) -> list[str]:
    """The paths of a data entry, or of a list of entries, which Azure does not know."""
    paths, problems = [], []
    for item in entry if isinstance(entry, list) else [entry]:
        path = item.get("path") if isinstance(item, Mapping) else item
        if not isinstance(path, str) or not path:
            rule = "must be a file, an MLTable folder, a URL, or azureml:NAME:VERSION"
            problems.append(Problem(str(file), f"{key}.path", rule, repr(path)))
            continue
        if isinstance(item, Mapping):
            kind = str(enum_member(item.get("type") or "mltable")).lower()
            if kind not in _DATA_TYPES:
                rule = f"must be one of {', '.join(_DATA_TYPES)}"
                problems.append(Problem(str(file), f"{key}.type", rule, repr(item["type"])))
            ignored |= {f"{key}.{name}" for name in _CLOUD_DATA_KEYS if item.get(name) not in _EMPTY}
        path = without_prefix(path, file.parent)
        paths.append(path if is_remote(path) else str(file.parent / path))
    if problems:
        raise JobError("the job file cannot be used:", problems)
    return paths
