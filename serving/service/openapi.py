"""The service described as OpenAPI 3.0, with the schemas of this very model's requests and answers."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from serving.explain.request import json_schema as explanation_schema
from serving.payload import COLUMN, parameters_of, range_of
from trainer.models import Spec
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

_JSON = "application/json"
_STATUSES = {
    400: "The request, a parameter or a row is wrong; `row` says which row.",
    401: "The key is missing or wrong.",
    408: "The request came too slowly.",
    413: "The request holds too many bytes or images.",
    415: "The content type is none that is read.",
    422: "A row is no image that can be decoded.",
    429: "The service is busy; `Retry-After` says when it may not be.",
    504: "The answer took too long.",
}
# A grey PNG of one pixel.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


def describe(spec: Spec, *, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document for a model's service."""
    answers = {"type": "array", "items": _ref("Answer")}
    parameters = _ref("Parameters")
    rows = {"type": "array", "minItems": 1, "items": _ref("Row")}
    table = _object(
        {
            "columns": {"type": "array", "items": {"type": "string", "enum": [COLUMN]}},
            "index": {"type": "array", "items": {}, "description": "One entry a row; not used."},
            "data": rows,
        },
        required=("columns", "data"),
    )
    score = _object(
        {
            "input_data": {**table, "properties": {**table["properties"], "params": parameters}},
            "params": parameters,
        },
        required=("input_data",),
    )
    records = {"type": "array", "items": _object({COLUMN: _ref("Row")}, (COLUMN,))}
    forms = {
        "dataframe_split": table,
        "dataframe_records": records,
        "instances": {"type": "array", "items": {"anyOf": [_ref("Row"), records["items"]]}},
        "inputs": {"anyOf": [rows, _object({COLUMN: rows}, (COLUMN,))]},
    }
    example = {"input_data": {"columns": [COLUMN], "data": [_PIXEL]}}
    document: dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {
            "title": f"{spec.model}, {spec.task.value}",
            "version": metadata.version("image-trainer"),
            "description": "Scores images as an Azure AutoML endpoint does.",
        },
        "paths": {
            "/score": {
                "post": _operation(
                    "Score images",
                    {
                        _JSON: {"schema": _ref("ScoreRequest"), "example": example},
                        **{
                            kind: {"schema": {"type": "string", "format": "binary"}}
                            for kind in ("image/*", "application/octet-stream")
                        },
                    },
                    {"schema": answers, "example": [_example(spec)]},
                )
            },
            "/invocations": {
                "post": _operation(
                    "Score images in MLflow's forms",
                    {
                        _JSON: {
                            "schema": _ref("InvocationRequest"),
                            "example": {"dataframe_split": example["input_data"]},
                        },
                        "text/csv": {"schema": {"type": "string"}, "example": f"{COLUMN}\n{_PIXEL}\n"},
                    },
                    {
                        "schema": _object({"predictions": answers}, ("predictions",)),
                        "example": {"predictions": [_example(spec)]},
                    },
                )
            },
            **{path: {"get": _probe(text)} for path, text in _PROBES.items()},
        },
        "components": {
            "schemas": {
                "ScoreRequest": score,
                "InvocationRequest": {
                    "oneOf": [
                        _object({form: schema, "params": parameters}, (form,))
                        for form, schema in forms.items()
                    ]
                },
                "Row": _row(spec.task),
                "Parameters": _parameters(spec),
                "Answer": _answer(spec),
                "Error": _error(),
            }
        },
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


_PROBES = {
    "/livez": "The process answers.",
    "/readyz": "The model is loaded and requests are taken; else 503.",
    "/ping": "MLflow's probe.",
    "/health": "MLflow's probe.",
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _operation(summary: str, content: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    errors = {
        str(status): {"description": text, "content": {_JSON: {"schema": _ref("Error")}}}
        for status, text in _STATUSES.items()
    }
    errors["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "One answer a row, in order.", "content": {_JSON: answer}}}
        | errors,
    }


def _probe(text: str) -> dict[str, Any]:
    return {"summary": text, "security": [], "responses": {"200": {"description": text}}}


def _row(task: Task) -> dict[str, Any]:
    text = {
        "type": "string",
        "description": "The base64 of an image file; line breaks, the URL-safe alphabet and a "
        "data:…;base64, prefix are fine. Or the explainability form as a JSON string.",
    }
    explained = _object(
        {
            "image_base64": {"type": "string"},
            "model_explainability": {"type": "boolean", "nullable": True},
            "xai_parameters": {**explanation_schema(task), "nullable": True},
        },
        ("image_base64",),
    )
    one = {"anyOf": [text, explained]}
    return {"anyOf": [text, explained, {"type": "array", "minItems": 1, "maxItems": 1, "items": one}]}


def _parameters(spec: Spec) -> dict[str, Any]:
    described = ScoringParameters.model_json_schema()["properties"]
    properties = {}
    for name in parameters_of(spec.task):
        default = getattr(spec.parameters, name)
        kind = ScoringParameters.model_fields[name].annotation
        schema = {key: described[name][key] for key in ("minimum", "maximum") if key in described[name]}
        schema["type"] = "integer" if kind is int else "number" if kind is float else "string"
        if schema["type"] == "string":
            schema["nullable"] = True
        schema["description"] = f"{described[name].get('description', '')} {range_of(name)}."
        properties[name] = {**schema, "default": default}
    return {**_object(properties, ()), "nullable": True}


def _answer(spec: Spec) -> dict[str, Any]:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    if spec.task.is_classification:
        count = len(spec.classes)
        probs = {"type": "array", "minItems": count, "maxItems": count, "items": share}
        labels = {"type": "array", "minItems": count, "maxItems": count, "items": {"type": "string"}}
        labels["items"] = {"type": "string", "enum": list(spec.classes)}
        explained = {
            "visualizations": {"description": "Base64 PNGs; only where explanations were asked for."},
            "attributions": {"description": "Numbers [3, side, side]; only where they were asked for."},
        }
        return _object({"probs": probs, "labels": labels, **explained}, ("probs", "labels"))
    sides = ("topX", "topY", "bottomX", "bottomY")
    properties: dict[str, Any] = {
        "box": _object(dict.fromkeys(sides, share), sides),
        "label": {"type": "string", "enum": list(spec.classes)},
        "score": share,
    }
    if spec.task is Task.SEGMENTATION:
        properties["polygon"] = {
            "type": "array",
            "items": {"type": "array", "items": share},
            "description": "Segments, each x1, y1, x2, y2, …",
        }
    box = _object(properties, tuple(properties))
    explained = {
        "visualizations": {"description": "A base64 PNG for each box; only where they were asked for."},
        "attributions": {"description": "Numbers [height, width] for each box; only where asked for."},
    }
    return _object({"boxes": {"type": "array", "items": box}, **explained}, ("boxes",))


def _error() -> dict[str, Any]:
    return _object(
        {
            "error": _object(
                {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "row": {"type": "integer", "nullable": True},
                },
                ("code", "message", "row"),
            )
        },
        ("error",),
    )


def _example(spec: Spec) -> dict[str, Any]:
    if spec.task.is_classification:
        rest = len(spec.classes) - 1
        first = 0.9 if rest else 1.0
        probs = [first] + [round(0.1 / rest, 6)] * rest if rest else [first]
        return {"probs": probs, "labels": list(spec.classes)}
    box: dict[str, Any] = {
        "box": {"topX": 0.224, "topY": 0.285, "bottomX": 0.399, "bottomY": 0.62},
        "label": spec.classes[0],
        "score": 0.937,
    }
    if spec.task is Task.SEGMENTATION:
        box["polygon"] = [[0.24, 0.3, 0.39, 0.3, 0.39, 0.6, 0.24, 0.6]]
    return {"boxes": [box]}
