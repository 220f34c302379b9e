"""Requests and answers as pydantic models, from which the OpenAPI document gets its schemas.

They only describe: serving.payload parses requests, with errors that name the row, and serving.answers writes
answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from serving.explain.request import ExplanationRequest, algorithms_of
from serving.parameters import parameters_of, range_of
from trainer.models import Spec
from trainer.scoring import OLDER_NAMES, ScoringParameters
from trainer.tasks import Task

REFERENCE = "#/components/schemas/{model}"

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetails(_Model):
    code: str = Field(description="Kind of error, such as not_an_image.")
    message: str
    row: int | None = Field(description="Index of the wrong row; null if the request as a whole is wrong.")


class Error(_Model):
    """The answer to a request that failed."""

    error: ErrorDetails


class ExplainabilityForm(_Model):
    """An image whose answer is explained."""

    image_base64: str
    model_explainability: bool | None = None
    xai_parameters: ExplanationRequest | None = None


Base64: TypeAlias = Annotated[
    str,
    Field(
        description="An image file as base64; line breaks, the URL-safe alphabet and a data:…;base64, prefix "
        "are accepted. Or the explainability form as a JSON string."
    ),
]
Row: TypeAlias = (
    Base64
    | ExplainabilityForm
    | Annotated[list[Base64 | ExplainabilityForm], Field(min_length=1, max_length=1)]
)
Rows: TypeAlias = Annotated[list[Row], Field(min_length=1)]


class Table(_Model):
    columns: list[Literal["image"]]
    index: list[Any] = Field(default=[], description="One entry per row; ignored.")
    data: Rows


class _Request(_Model):
    params: ScoringParameters | None = None


class InputData(Table, _Request):
    pass


class ScoreRequest(_Request):
    """The documented form of a request."""

    input_data: InputData


class Record(_Model):
    image: Row


class Column(_Model):
    image: Rows


class SplitRequest(_Request):
    dataframe_split: Table


class RecordsRequest(_Request):
    dataframe_records: list[Record]


class InstancesRequest(_Request):
    instances: list[Row | Record]


class InputsRequest(_Request):
    inputs: Rows | Column


class Box(_Model):
    """A box; coordinates are fractions of the upright image's width and height."""

    topX: Fraction  # noqa: N815 (the documented names)
    topY: Fraction  # noqa: N815
    bottomX: Fraction  # noqa: N815
    bottomY: Fraction  # noqa: N815


class DetectedObject(_Model):
    box: Box
    label: str
    score: Fraction


class SegmentedObject(DetectedObject):
    polygon: list[list[Fraction]] = Field(
        description="Segments, each x1, y1, x2, y2, …; one inside another is a hole."
    )


class _Explained(_Model):
    visualizations: Any = Field(
        default=None, description="Base64 PNG, or a list of them; only if the row asks for an explanation."
    )
    attributions: Any = Field(
        default=None, description="Relevance of each pixel, or a list of such arrays; only if the row asks."
    )


class ClassificationAnswer(_Explained):
    probs: list[Fraction]
    labels: list[str]


class DetectionAnswer(_Explained):
    boxes: list[DetectedObject]


class SegmentationAnswer(_Explained):
    boxes: list[SegmentedObject]


_ANSWERS: dict[Task, type[BaseModel]] = {
    Task.CLASSIFICATION: ClassificationAnswer,
    Task.MULTILABEL: ClassificationAnswer,
    Task.DETECTION: DetectionAnswer,
    Task.SEGMENTATION: SegmentationAnswer,
}


def json_schemas(spec: Spec) -> dict[str, Any]:
    """The JSON schemas of a model's requests and answers by name, with its classes and its defaults."""
    types: dict[str, Any] = {
        "ScoreRequest": ScoreRequest,
        "InvocationRequest": SplitRequest | RecordsRequest | InstancesRequest | InputsRequest,
        "Answer": _ANSWERS[spec.task],
        "Error": Error,
    }
    roots, definitions = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(annotation)) for name, annotation in types.items()],
        ref_template=REFERENCE,
    )
    schemas: dict[str, Any] = {name: roots[name, "validation"] for name in types} | definitions["$defs"]
    parameters = schemas["ScoringParameters"]
    parameters["properties"] = _parameters(parameters["properties"], spec)
    schemas["ExplanationRequest"]["properties"]["xai_algorithm"]["enum"] = list(algorithms_of(spec.task))
    _set_classes(schemas, spec)
    return schemas


def _parameters(properties: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """The schemas of the task's parameters, with the model's defaults, then those of their older names."""
    kept = {name: properties[name] for name in parameters_of(spec.task)}
    older: dict[str, Any] = {}
    for name, schema in kept.items():
        note = {"description": f"Older name of {name}.", "deprecated": True}
        schema.pop("default", None)
        older |= {alias: {**schema, **note} for alias in OLDER_NAMES.get(name, ())}
        schema["default"] = getattr(spec.parameters, name)
        schema["description"] += f" Must be {range_of(name)}."
    return kept | older


def _set_classes(schemas: dict[str, Any], spec: Spec) -> None:
    if spec.task.is_classification:
        properties = schemas[ClassificationAnswer.__name__]["properties"]
        for name in ("probs", "labels"):
            properties[name]["minItems"] = properties[name]["maxItems"] = len(spec.classes)
        properties["labels"]["items"]["enum"] = list(spec.classes)
        return
    detected = SegmentedObject if spec.task is Task.SEGMENTATION else DetectedObject
    schemas[detected.__name__]["properties"]["label"]["enum"] = list(spec.classes)
