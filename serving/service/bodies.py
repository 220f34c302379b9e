"""Reads the bodies of requests, within limits on their size and duration, and parses them by content type."""

from __future__ import annotations

import asyncio
import io

import pandas as pd
from starlette.requests import ClientDisconnect, Request

from serving.payload import (
    COLUMN,
    MAX_REQUEST_BYTES,
    ImageRow,
    Payload,
    parse_invocation,
    parse_json,
    parse_rows,
    parse_score_request,
)
from serving.service.admission import Ticket
from serving.service.responses import JSON
from serving.wording import shown
from trainer.errors import RequestError
from trainer.tasks import Task

# A client that is cut off while sending never sees the error, so up to this much of an oversized request is
# read and dropped.
_MAX_DROPPED_BYTES = 20 * MAX_REQUEST_BYTES

_CSV = "text/csv"

SCORE_TYPES = (JSON, "image/*", "application/octet-stream")
INVOCATION_TYPES = (JSON, _CSV)


def parse_score_body(body: bytes, media_type: str, task: Task) -> Payload:
    """The documented JSON form, or a body that is an image file.

    Raises:
        RequestError: the body is neither.
    """
    if media_type == JSON:
        return parse_score_request(parse_json(body), task)
    if not body:
        raise RequestError("the image is empty", row=0)
    return Payload((ImageRow(body),), {})


def parse_invocation_body(body: bytes, media_type: str, task: Task) -> Payload:
    """One of MLflow's JSON forms, or CSV: a header line with the column's name, then a line per image.

    Raises:
        RequestError: the body is neither.
    """
    if media_type != _CSV:
        return parse_invocation(parse_json(body), task)
    try:
        table = pd.read_csv(io.BytesIO(body), dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:  # the base of pandas' own errors and of UnicodeDecodeError
        raise RequestError(f"not valid CSV: {error}") from None
    if list(table.columns) != [COLUMN]:
        raise RequestError(f"the CSV must have the one column {COLUMN}, got {shown(list(table.columns))}")
    return Payload(parse_rows(table[COLUMN].tolist(), task), {})


def media_type_of(request: Request, supported: tuple[str, ...]) -> str:
    """The request's content type as one of those supported; the first if the request names none.

    Raises:
        RequestError: the content type, charset or content encoding is not supported.
    """
    content_type = request.headers.get("content-type", supported[0])
    media_type, _, rest = content_type.partition(";")
    media_type = media_type.strip().lower()
    parameters = [parameter.strip().lower() for parameter in rest.split(";") if parameter.strip()]
    kind = "image/*" if media_type.startswith("image/") else media_type
    if kind not in supported:
        rule = f"Content-Type must be {' or '.join(supported)}"
        raise RequestError(f"{rule}, got {shown(content_type)}", status=415)
    for parameter in parameters:
        if parameter.replace('"', "") not in ("charset=utf-8", "charset=utf8"):
            raise RequestError(f"only charset=utf-8 is supported, got {shown(parameter)}", status=415)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError(
            f"compressed requests are not supported, got Content-Encoding {shown(encoding)}", status=415
        )
    return kind


async def read_body(request: Request, ticket: Ticket, timeout_s: float) -> bytes:
    """Read a request's body, with or without Content-Length, and count its bytes on the ticket.

    Raises:
        RequestError: the body is larger than MAX_REQUEST_BYTES, too slow or cut off.
        BusyError: the queue has no room for its bytes.
    """
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() and len(length) < 20 else 0
    if announced > MAX_REQUEST_BYTES and (
        announced > _MAX_DROPPED_BYTES or request.headers.get("expect", "").lower() == "100-continue"
    ):
        raise _too_large()
    if announced <= MAX_REQUEST_BYTES:
        ticket.take(size=announced)
    chunks: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                received += len(chunk)
                if received > _MAX_DROPPED_BYTES:
                    raise _too_large()
                if received > MAX_REQUEST_BYTES:
                    chunks.clear()
                    continue
                if received > ticket.bytes:
                    ticket.take(size=received - ticket.bytes)
                chunks.append(chunk)
    except TimeoutError:
        rule = f"the request was not complete within {timeout_s:g} s"
        raise RequestError(f"{rule}, got {received} bytes of it", status=408) from None
    except ClientDisconnect:
        raise RequestError("the connection closed before the request was complete") from None
    if received > MAX_REQUEST_BYTES:
        raise _too_large()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large() -> RequestError:
    limit = MAX_REQUEST_BYTES // 1_000_000
    return RequestError(
        f"the request is over {limit} MB; send fewer or smaller images in one request", status=413
    )
