"""Reads requests, in every form that clients send, into image bytes and parameters.

Nothing in a request is ever used as a URL or a path: a row is the image itself, or it is rejected.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.explain.request import ExplanationRequest, as_boolean, parse_explanation
from serving.wording import shown
from trainer.errors import RequestError
from trainer.tasks import Task

MAX_REQUEST_BYTES = 50_000_000
MAX_EXPLAINED_ROWS = 64
"""Maximum per request: an explanation can add megabytes to the answer, however small its image is."""
COLUMN = "image"

_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
# The first four must be digits: a PPM image in text form has a space among its first four bytes.
_BASE64_BYTES = re.compile(rb"[A-Za-z0-9+/_-]{4}[A-Za-z0-9+/_\-\s]*+={0,2}\s*+")
_URL_SAFE = str.maketrans("-_", "+/")
_XAI_KEYS = ("image_base64", "model_explainability", "xai_parameters")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of a request.

    Attributes:
        image: content of an image file, not decoded yet.
        explanation: the requested explanation; None for scores alone.
    """

    image: bytes
    explanation: ExplanationRequest | None = None


@dataclass(frozen=True, slots=True)
class Payload:
    """A parsed request: at least one row, and its parameters, not checked yet."""

    rows: tuple[ImageRow, ...]
    parameters: Mapping[str, Any]


def parse_json(text: bytes | str) -> Any:
    """Parse strict JSON: without NaN and Infinity, and without duplicate keys in an object.

    Raises:
        RequestError: the text is not strict JSON.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise RequestError("JSON is nested too deeply") from None
    except ValueError as error:
        # A JSONDecodeError's text holds a position, never the text itself.
        raise RequestError(f"not valid JSON: {error}") from None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"the key {shown(name)} occurs twice in one object")
        unique[name] = value
    return unique


def parse_score_request(request: Any, task: Task) -> Payload:
    """Parse the documented form, `{"input_data": {"columns": ["image"], "data": […]}, "params": {…}}`.

    `params` may also be inside `input_data`; `index` is optional.

    Raises:
        RequestError: the request has another form, or a row is wrong; names the row.
    """
    request = _object(request, "the request", ("input_data", "params"), required=("input_data",))
    table = _object(request["input_data"], "input_data", ("columns", "index", "data", "params"), ("data",))
    outer = _params(request.get("params"), "params")
    inner = _params(table.get("params"), "input_data.params")
    for name in outer.keys() & inner.keys():
        raise RequestError(f"{shown(name)} is in both params and input_data.params; send it once")
    return Payload(parse_rows(_split_rows(table, "input_data"), task), {**outer, **inner})


def parse_invocation(request: Any, task: Task) -> Payload:
    """Parse one of MLflow's JSON forms: dataframe_split, dataframe_records, instances or inputs, with params.

    Raises:
        RequestError: the request has another form, or a row is wrong; names the row.
    """
    forms = ("dataframe_split", "dataframe_records", "instances", "inputs")
    request = _object(request, "the request", (*forms, "params"))
    present = [form for form in forms if form in request]
    if len(present) != 1:
        got = " and ".join(present) or "none of them"
        raise RequestError(f"the request must have exactly one of {', '.join(forms)}, got {got}")
    form, table = present[0], request[present[0]]
    if form == "dataframe_split":
        table = _object(table, form, ("columns", "index", "data"), required=("data",))
        values = _split_rows(table, form)
    elif form == "inputs" and isinstance(table, Mapping):
        column = _object(table, form, (COLUMN,), required=(COLUMN,))[COLUMN]
        values = column if isinstance(column, list) else [column]
    else:
        values = [_record(value, row) for row, value in enumerate(_list(table, form))]
    return Payload(parse_rows(values, task), _params(request.get("params"), "params"))


def _record(value: Any, row: int) -> Any:
    """The value of a record `{"image": …}`; other values are returned unchanged."""
    if isinstance(value, Mapping) and "image_base64" not in value:
        return _object(value, "a record", (COLUMN,), required=(COLUMN,), row=row)[COLUMN]
    return value


def _split_rows(table: Mapping[str, Any], name: str) -> list[Any]:
    if table.get("columns") != [COLUMN]:
        raise RequestError(f'{name}.columns must be ["{COLUMN}"], got {shown(table.get("columns"))}')
    data = _list(table["data"], f"{name}.data")
    index = table.get("index")
    if index is not None and (not isinstance(index, list) or len(index) != len(data)):
        got = f"a list of {len(index)}" if isinstance(index, list) else shown(index)
        raise RequestError(
            f"{name}.index must be a list with one entry for each of the {len(data)} rows, got {got}"
        )
    return data


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{name} must be a list of images, got {shown(value)}")
    return value


def _object(
    value: Any,
    name: str,
    keys: Sequence[str],
    required: Sequence[str] = (),
    row: int | None = None,
) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(
            f"{name} must be an object with the keys {', '.join(keys)}, got {shown(value)}", row=row
        )
    for key in value.keys() - set(keys):
        raise RequestError(f"{name} has the unknown key {shown(key)}; it may have {', '.join(keys)}", row=row)
    for key in required:
        if key not in value:
            raise RequestError(f"{name} must have the key {key!r}", row=row)
    return value


def _params(value: Any, name: str, row: int | None = None) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} must be an object, got {shown(value)}", row=row)
    return value


def parse_rows(values: Sequence[Any], task: Task) -> tuple[ImageRow, ...]:
    """Parse rows, each bare or in a one-element list, in order.

    A row is base64 text (line breaks, the URL-safe alphabet, missing padding and a `data:…;base64,` prefix
    are accepted), bytes, or the explainability form as a JSON string or object.

    Raises:
        RequestError: there is no row, or a row is none of these; names the first such row.
    """
    if not values:
        raise RequestError("the request holds no image: data is empty")
    rows: list[ImageRow] = []
    explained = 0
    for index, value in enumerate(values):
        rows.append(_parse_row(value, index, task))
        explained += rows[-1].explanation is not None
        if explained > MAX_EXPLAINED_ROWS:
            raise RequestError(
                f"at most {MAX_EXPLAINED_ROWS} rows of a request can be explained; send several requests",
                row=index,
                status=413,
            )
    return tuple(rows)


def _parse_row(value: Any, row: int, task: Task) -> ImageRow:
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise RequestError(f"a row holds one image, got a list of {len(value)}", row=row)
        value = value[0]
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = parse_json(value)
        except RequestError as error:
            raise RequestError(
                f"looks like the explainability form, but is {error.reason}", row=row
            ) from None
    if isinstance(value, Mapping):
        return _parse_explainability(value, row, task)
    return ImageRow(_image_bytes(value, row))


def _parse_explainability(value: Mapping[str, Any], row: int, task: Task) -> ImageRow:
    """Parse an object with image_base64 and, optionally, model_explainability and xai_parameters."""
    value = _object(value, "the explainability form", _XAI_KEYS, required=("image_base64",), row=row)
    wanted = value.get("model_explainability")
    is_explained = as_boolean(wanted)
    if not (is_explained is None or isinstance(is_explained, bool)):
        raise RequestError(f"model_explainability must be true or false, got {shown(wanted)}", row=row)
    parameters = value.get("xai_parameters")
    if isinstance(parameters, str) and parameters.lstrip()[:1] == "{":
        try:
            parameters = parse_json(parameters)
        except RequestError as error:
            raise RequestError(f"xai_parameters is {error.reason}", row=row) from None
    parameters = _params(parameters, "xai_parameters", row)
    explanation = parse_explanation(parameters, task, row) if is_explained else None
    return ImageRow(_image_bytes(value["image_base64"], row), explanation)


def _image_bytes(value: Any, row: int) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        image = bytes(value)
        # base64.encodebytes() returns bytes; no image file consists only of the base64 alphabet.
        if _BASE64_BYTES.fullmatch(image):
            image = _decode_base64(image.decode("ascii"), row)
    elif isinstance(value, str):
        image = _decode_base64(value, row)
    else:
        raise RequestError(f"an image must be a base64 string, got {shown(value)}", row=row)
    if not image:
        raise RequestError("the image is empty", row=row)
    return image


def _decode_base64(text: str, row: int) -> bytes:
    prefix = _DATA_URL.match(text)
    digits = "".join(text[prefix.end() if prefix else 0 :].split()).translate(_URL_SAFE)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise RequestError(
            f"not base64, got {shown(text)}; send an image file as base64, not a path or URL", row=row
        ) from None
