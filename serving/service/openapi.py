"""The service described as OpenAPI 3.1, with the schemas of this model's requests and answers."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from serving.payload import COLUMN
from serving.service.responses import JSON
from serving.service.schemas import REFERENCE, json_schemas
from trainer.models import Spec
from trainer.tasks import Task

_STATUSES = {
    400: "The request, a parameter or a row is wrong; `row` names the row.",
    401: "The key is missing or wrong.",
    408: "The request arrived too slowly.",
    413: "The request has too many bytes or images.",
    415: "The content type is not supported.",
    422: "A row is not an image that can be decoded.",
    429: "The service is busy; `Retry-After` says when to retry.",
    504: "The answer took too long.",
}
_PROBES = {
    "/livez": "Liveness: the process answers.",
    "/readyz": "Readiness: 200 while the service accepts requests, 503 otherwise.",
    "/ping": "MLflow's probe.",
    "/health": "MLflow's probe.",
}
# A grey PNG of one pixel.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


def describe(spec: Spec, *, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of a model's service."""
    answers = {"type": "array", "items": _ref("Answer")}
    answer = _example(spec)
    example = {"columns": [COLUMN], "data": [_PIXEL]}
    binary = {"schema": {"type": "string", "format": "binary"}}
    score = _operation(
        "Score images",
        {
            JSON: {"schema": _ref("ScoreRequest"), "example": {"input_data": example}},
            "image/*": binary,
            "application/octet-stream": binary,
        },
        {"schema": answers, "example": [answer]},
    )
    invocations = _operation(
        "Score images, in MLflow's forms",
        {
            JSON: {"schema": _ref("InvocationRequest"), "example": {"dataframe_split": example}},
            "text/csv": {"schema": {"type": "string"}, "example": f"{COLUMN}\n{_PIXEL}\n"},
        },
        {
            "schema": {"type": "object", "properties": {"predictions": answers}, "required": ["predictions"]},
            "example": {"predictions": [answer]},
        },
    )
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"{spec.model}, {spec.task.value}",
            "version": metadata.version("image-trainer"),
            "description": "Scores images as an Azure AutoML endpoint does.",
        },
        "paths": {
            "/score": {"post": score},
            "/invocations": {"post": invocations},
            **{
                path: {"get": {"summary": text, "security": [], "responses": {"200": {"description": text}}}}
                for path, text in _PROBES.items()
            },
        },
        "components": {"schemas": json_schemas(spec)},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": REFERENCE.format(model=name)}


def _operation(summary: str, content: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    errors: dict[str, Any] = {
        str(status): {"description": text, "content": {JSON: {"schema": _ref("Error")}}}
        for status, text in _STATUSES.items()
    }
    errors["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    success = {"description": "One answer per row, in order.", "content": {JSON: answer}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": success, **errors},
    }


def _example(spec: Spec) -> dict[str, Any]:
    if spec.task.is_classification:
        others = len(spec.classes) - 1
        probs = [0.9, *[round(0.1 / others, 6)] * others] if others else [1.0]
        return {"probs": probs, "labels": list(spec.classes)}
    detected: dict[str, Any] = {
        "box": {"topX": 0.224, "topY": 0.285, "bottomX": 0.399, "bottomY": 0.62},
        "label": spec.classes[0],
        "score": 0.937,
    }
    if spec.task is Task.SEGMENTATION:
        detected["polygon"] = [[0.24, 0.3, 0.39, 0.3, 0.39, 0.6, 0.24, 0.6]]
    return {"boxes": [detected]}
