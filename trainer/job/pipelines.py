"""Picks the node of a pipeline that trains an image model, and rewrites it as a job of its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.errors import JobError, Problem, did_you_mean
from trainer.fields import snake_case
from trainer.job import components
from trainer.job.forms import CLOUD_KEYS
from trainer.job.sweep import MODEL_NAME
from trainer.settings import canonical

_SUMMARY = "the job file cannot be used:"
_EXPRESSION = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")
_INPUT = re.compile(r"(?:parent\.)?inputs\.(.+)")
_OUTPUT = re.compile(r"(?:parent\.)?jobs\.([^.]+)\.outputs\..+")
_KEPT = ("type", "job_type", "$schema", "jobs", "inputs", "experiment_name", "name", "display_name", "local")
_OTHER_TASKS: tuple[str, ...] = ("classification", "regression", "forecasting")
_OTHER_TASKS += ("text_classification", "text_classification_multilabel", "text_ner")
_MOST_PIPELINES = 2
"""Most levels of pipelines inside pipelines; a component's file may refer to itself."""
_PATHS = ("path", "uri", "value")
_EMPTY: tuple[Any, ...] = (None, "", {}, [], False)


def is_pipeline(content: Mapping[Any, Any]) -> bool:
    """Whether the content of a job file is a pipeline rather than a single job."""
    body = _body(content)
    kind = str(body.get("job_type") or body.get("type") or "").lower()
    return kind == "pipeline" or isinstance(body.get("jobs"), Mapping)


def node_job(
    content: Mapping[Any, Any], path: Path, node: str = "", given: Collection[str] = ()
) -> tuple[dict[Any, Any], list[str]]:
    """Write one node of a pipeline as a job.

    Args:
        content: the pipeline, as its file or the REST form has it.
        path: its file.
        node: the node's name; "" for the only one that trains an image model.
        given: fields and settings that are given elsewhere, so that the node's need no value.

    Returns:
        The job, and what the pipeline has besides it, which has no effect here.

    Raises:
        JobError: no node or several train an image model, or a value is made by another node.
    """
    where = str(path)
    body = _body(content)
    jobs = body["jobs"] if isinstance(body.get("jobs"), Mapping) else {}
    nodes = dict(_image_nodes(jobs, _mapping(body.get("inputs")), path.parent))
    chosen = _chosen(node, nodes, jobs, path)
    content, inputs = nodes[chosen]
    resolver = _Resolver(inputs, where, f"jobs.{chosen}")
    job, ignored, problems = _own_job(content, path.parent, where, given, resolver)
    problems = [replace(problem, field=f"jobs.{chosen}.{problem.field}") for problem in problems]
    if problems := resolver.problems + problems:
        raise JobError(_SUMMARY, problems)
    job.setdefault("name", chosen.rpartition(".")[2])
    if not job.get("experiment_name") and body.get("experiment_name"):
        job["experiment_name"] = body["experiment_name"]
    own_options = job.get("local") or {}
    if isinstance(body.get("local"), Mapping) and isinstance(own_options, Mapping):
        job["local"] = {**body["local"], **own_options}
    ignored += [key for key, value in body.items() if key not in _KEPT and value not in _EMPTY]
    return job, ignored + [f"jobs.{name}" for name in jobs if str(name) != chosen.partition(".")[0]]


def without_expressions(form: Mapping[Any, Any], given: Collection[str]) -> dict[Any, Any]:
    """Leave out what only a pipeline could fill in where it is given elsewhere."""
    return {
        key: value
        for key, value in form.items()
        if not (snake_case(str(key)) in given and _has_expression(value))
    }


def _body(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The pipeline's keys, which the body of a request has under `properties`, in snake case."""
    outer = dict(content)
    inner = outer.get("properties")
    if isinstance(inner, Mapping) and isinstance(inner.get("jobs"), Mapping):
        del outer["properties"]
        outer |= inner
    return {snake_case(str(key)): value for key, value in outer.items()}


def _has_expression(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_expression, value.values()))
    if isinstance(value, list):
        return any(map(_has_expression, value))
    return isinstance(value, str) and "${{" in value


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _plain(value: Any) -> Any:
    """The path of a data entry, to be part of a text; other values are returned unchanged."""
    return value.get("path") or value.get("uri") if isinstance(value, Mapping) else value


def _reference(node: Mapping[Any, Any]) -> Any:
    return node.get("component") or node.get("componentId") or node.get("component_id")


def _image_nodes(
    jobs: Mapping[Any, Any], inputs: Mapping[Any, Any], folder: Path, outer: str = ""
) -> Iterator[tuple[str, tuple[Mapping[Any, Any], Mapping[Any, Any]]]]:
    """Each node that trains an image model, with the inputs of its pipeline.

    A node of a pipeline inside the pipeline is named OUTER.INNER.
    """
    for name, node in jobs.items():
        if not isinstance(node, Mapping):
            continue
        if _trains_images(node, folder):
            yield f"{outer}{name}", (node, inputs)
        elif outer.count(".") < _MOST_PIPELINES:
            inner = (
                node
                if isinstance(node.get("jobs"), Mapping)
                else components.component_content(_reference(node), folder)
            )
            resolver = _Resolver(inputs, "", "")  # an input without a value is reported where it is used
            values = {
                str(key): resolver.resolve("", value) for key, value in _mapping(node.get("inputs")).items()
            }
            own = {**_mapping(inner.get("inputs")), **values}
            yield from _image_nodes(_mapping(inner.get("jobs")), own, folder, f"{outer}{name}.")


def _trains_images(node: Mapping[Any, Any], folder: Path) -> bool:
    if components.is_known(components.component_name(_reference(node), folder)):
        return True
    details = node.get("taskDetails") or node.get("task_details")
    task = node.get("task") or (details.get("taskType") if isinstance(details, Mapping) else None)
    if task is None or str(node.get("type") or "automl").lower() != "automl":
        return False
    return snake_case(str(task)) not in _OTHER_TASKS  # a misspelt one is reported when the node is read


def _chosen(node: str, nodes: Mapping[str, Any], jobs: Mapping[Any, Any], path: Path) -> str:
    names = ", ".join(nodes)
    if node in nodes:
        return node
    if not node and len(nodes) == 1:
        return names
    if not nodes:
        others = f"; its nodes are {', '.join(map(str, jobs))}" if jobs else ""
        rule = f"is a pipeline without a node that trains an image model{others}"
        hint = "such a node has type automl and a task for images, or a component of Azure's catalog for them"
        references = [_reference(content) for content in jobs.values() if isinstance(content, Mapping)]
        files = [components.component_file(reference, path.parent) for reference in references]
        if missing := [str(file) for file in files if file and not file.is_file()]:
            hint += f"; missing component files: {', '.join(missing)}"
    elif node:
        rule = f"must have a node {node!r} that trains an image model"
        hint = did_you_mean(node, nodes, otherwise=f"there are {names}")
    else:
        rule = f"is a pipeline with {len(nodes)} nodes that train image models: {names}"
        hint = f"choose one, such as --node {next(iter(nodes))}"
    raise JobError(_SUMMARY, [Problem(str(path), "jobs", rule, hint=hint)])


def _own_job(
    node: Mapping[Any, Any], folder: Path, where: str, given: Collection[str], resolver: _Resolver
) -> tuple[dict[Any, Any], list[str], list[Problem]]:
    """The job of a node, the keys and inputs without an effect, and the problems."""
    component = components.component_name(_reference(node), folder)
    if not components.is_known(component):
        job = {key: _without_given(value, given) for key, value in without_expressions(node, given).items()}
        resolved = {
            key: value if snake_case(str(key)) in CLOUD_KEYS else resolver.resolve(str(key), value)
            for key, value in job.items()
        }
        return resolved, [], []
    inputs = node.get("inputs")
    inputs = _without_given(inputs, given) if isinstance(inputs, Mapping) else {}
    values = {str(key): resolver.resolve(f"inputs.{key}", value) for key, value in inputs.items()}
    job, ignored, problems = components.to_job(component, values, where)
    others = ("type", "component", "component_id", "inputs", "name", "display_name", "_source", "version")
    ignored += [
        snake_case(str(key))
        for key, value in node.items()
        if snake_case(str(key)) not in others and value not in _EMPTY
    ]
    return job | {key: node[key] for key in ("name", "display_name") if node.get(key)}, ignored, problems


def _without_given(values: Any, given: Collection[str]) -> Any:
    """A section without the expressions of parameters that are given elsewhere."""
    if not isinstance(values, Mapping):
        return values
    names = {key: "model" if key == MODEL_NAME else canonical(str(key)) for key in values}
    return {key: values[key] for key in values if not (names[key] in given and _has_expression(values[key]))}


class _Resolver:
    """Replaces expressions by the pipeline's inputs, and collects those that have no value here."""

    def __init__(self, inputs: Mapping[Any, Any], where: str, node: str) -> None:
        self.inputs = inputs
        self.where = where
        self.node = node
        self.problems: list[Problem] = []

    def resolve(self, field: str, value: Any) -> Any:
        """The value with its expressions replaced; what has none in this file is reported."""
        if isinstance(value, list):
            return [self.resolve(f"{field}[{index}]", item) for index, item in enumerate(value)]
        if isinstance(value, Mapping):
            resolved = {key: self.resolve(f"{field}.{key}", item) for key, item in value.items()}
            for key in resolved.keys() & _PATHS:
                if isinstance(resolved[key], Mapping) or (resolved[key] is None and value[key] is not None):
                    return resolved[key]  # a whole data entry, or that of an optional input
            return resolved
        if not isinstance(value, str) or "${{" not in value:
            return value
        whole = _EXPRESSION.fullmatch(value.strip())
        if whole:
            return self._value(field, whole[0], whole[1])
        return _EXPRESSION.sub(lambda match: str(_plain(self._value(field, match[0], match[1]))), value)

    def _value(self, field: str, expression: str, name: str) -> Any:
        output, source = _OUTPUT.fullmatch(name), _INPUT.fullmatch(name)
        is_data = "data" in field
        if output:
            rule = f"is made by the node {output[1]}, which does not run here"
            flag = "--data" if "training_data" in field else "--validation-data"
            hint = (
                f"run that node yourself and give its result by {flag} PATH" if is_data else "write its value"
            )
            return self._report(field, rule, expression, hint)
        if source is None:
            return expression  # reported with the other expressions that Azure fills in
        if source[1] not in self.inputs:
            hint = did_you_mean(source[1], map(str, self.inputs), otherwise="write its value")
            return self._report(field, "must be an input of the pipeline", expression, hint)
        value = self.inputs[source[1]]
        if isinstance(value, Mapping):
            if any(isinstance(value.get(key), str) and value[key] for key in ("path", "uri")):
                return value
            is_optional = value.get("optional") is True
            value = next((value[key] for key in (*_PATHS, "default") if value.get(key) is not None), None)
            if value is None and is_optional:
                return None
        if value in (None, ""):
            return self._report(field, f"the pipeline's input {source[1]} has no value", "", "write it there")
        return value

    def _report(self, field: str, rule: str, got: str, hint: str) -> str:
        self.problems.append(Problem(self.where, f"{self.node}.{field}", rule, got, hint))
        return ""
