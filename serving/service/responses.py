"""The service's JSON responses. Every error is `{"error": {"code", "message", "row"}}`.

`row` is the index of the wrong row, or null if the request as a whole is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.answers import encode
from serving.service.admission import BusyError
from trainer.errors import RequestError, TrainerError

JSON = "application/json"
CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "not_an_image",
    429: "busy",
    499: "client_gone",
    500: "internal_error",
    503: "stopping",
    504: "timeout",
}

_logger = logging.getLogger(__name__)


def error_response(
    status: int, message: str, row: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    code = CODES.get(status, "bad_request" if status < 500 else "internal_error")
    content = encode({"error": {"code": code, "message": message, "row": row}})
    return Response(content, status_code=status, media_type=JSON, headers=headers)


async def on_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else None
    return error_response(error.status, str(error), error.row, headers)


async def on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = "not found; POST to /score or /invocations, or GET /swagger.json, /readyz or /metrics"
    return error_response(error.status_code, message, headers=error.headers)


async def on_internal_error(_: Request, error: Exception) -> Response:
    if isinstance(error, TrainerError):
        _logger.error("%s", error)
        return error_response(500, str(error))
    # Starlette raises the error again after this response, so the log has its traceback.
    return error_response(500, "internal error; see the server's log")
