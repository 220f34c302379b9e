"""`trainer serve`: the documented `/score`, and MLflow's `/invocations`, `/ping`, `/health`, `/version`.

Every error is JSON, `{"error": {"code", "message", "row"}}`; `row` is null unless one row is to blame.
"""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pandas as pd
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.answers import encode
from serving.locate import find_artifacts
from serving.page import page_router
from serving.payload import (
    COLUMN,
    MAX_REQUEST_BYTES,
    Payload,
    parse_invocation,
    parse_json,
    parse_rows,
    parse_score_request,
)
from serving.scorer import Scorer
from serving.shown import shown
from trainer.errors import RequestError, RunError, TrainerError
from trainer.tasks import Task

# Of a request that is too large so much is read and thrown away: a client that is cut off while it sends
# does not see the answer.
_DRAINED_BYTES = 20 * MAX_REQUEST_BYTES

_logger = logging.getLogger(__name__)

_JSON = "application/json"
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "not_an_image",
    500: "internal_error",
}


def create_app(scorer: Scorer) -> FastAPI:
    """The scoring service for one model."""
    # FastAPI's own documentation pages load scripts from a foreign host.
    app = FastAPI(title="image-trainer", docs_url=None, redoc_url=None, openapi_url=None)
    task = scorer.spec.task
    # One at a time: the network is busy anyway, and requests wait here without holding a thread.
    turn = anyio.CapacityLimiter(1)

    async def answer(read: Callable[[], Payload], wrap: Callable[[list[Any]], Any]) -> Response:
        def work() -> bytes:
            payload = read()
            return encode(wrap(scorer.score(payload.rows, payload.parameters)))

        return Response(await anyio.to_thread.run_sync(work, limiter=turn), media_type=_JSON)

    @app.post("/score")
    async def score(request: Request) -> Response:
        _media_type(request, (_JSON,))
        body = await _read_body(request)
        return await answer(lambda: parse_score_request(parse_json(body), task), lambda answers: answers)

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        media_type = _media_type(request, (_JSON, "text/csv"))
        body = await _read_body(request)

        def read() -> Payload:
            if media_type == "text/csv":
                return _parse_csv(body, task)
            return parse_invocation(parse_json(body), task)

        return await answer(read, lambda answers: {"predictions": answers})

    @app.get("/ping")
    @app.get("/health")
    async def ping() -> Response:
        return Response("\n", media_type=_JSON)

    @app.get("/version")
    async def version() -> Response:
        return Response(metadata.version("mlflow"), media_type=_JSON)

    app.include_router(page_router(scorer.spec))
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(TrainerError, _on_internal_error)
    app.add_exception_handler(Exception, _on_internal_error)
    return app


def serve(
    run_or_model: Path,
    host: str = "127.0.0.1",
    port: int = 5001,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a run's or a model directory's model until the process is told to stop (Ctrl-C, SIGTERM).

    Args:
        port: 0 takes any free one.
        announce: is called with the service's URL once it answers requests.

    Raises:
        RunError: there is no model, or the address cannot be listened on.
        WeightsError: the model's weights are damaged.
    """
    artifacts = find_artifacts(run_or_model)
    with _bound_socket(host, port) as listener:
        scorer = Scorer.load(artifacts)
        # No websockets here, and their library's import would only cost time.
        config = uvicorn.Config(create_app(scorer), ws="none")
        shown_host = f"[{host}]" if ":" in host else host
        url = f"http://{shown_host}:{listener.getsockname()[1]}"
        # uvicorn raises the Ctrl-C that ended it once more.
        with suppress(KeyboardInterrupt):
            _AnnouncingServer(config, lambda: announce(url)).run(sockets=[listener])


class _AnnouncingServer(uvicorn.Server):
    """Calls back once it answers requests."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _bound_socket(host: str, port: int) -> socket.socket:
    """Taken before the model is loaded, so that a wrong port shows at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(
            f"{host}:{port}: cannot be listened on: {reason}; choose another --port or --host"
        ) from None
    return listener


def _media_type(request: Request, known: tuple[str, ...]) -> str:
    """The request's content type, JSON if it names none."""
    content_type = request.headers.get("content-type", _JSON)
    media_type, _, rest = content_type.partition(";")
    media_type = media_type.strip().lower()
    parameters = [parameter.strip().lower() for parameter in rest.split(";") if parameter.strip()]
    if media_type not in known:
        rule = f"Content-Type must be {' or '.join(known)}"
        raise RequestError(f"{rule}, got {shown(content_type)}", status=415)
    for parameter in parameters:
        if parameter.replace('"', "") not in ("charset=utf-8", "charset=utf8"):
            raise RequestError(f"only charset=utf-8 is read, got {shown(parameter)}", status=415)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError(
            f"compressed requests are not read, got Content-Encoding {shown(encoding)}", status=415
        )
    return media_type


async def _read_body(request: Request) -> bytes:
    """The request's body, at most MAX_REQUEST_BYTES of it, however it is sent."""
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() else 0
    if announced > MAX_REQUEST_BYTES and (
        announced > _DRAINED_BYTES or request.headers.get("expect", "").lower() == "100-continue"
    ):
        raise _too_large()
    chunks: list[bytes] = []
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > _DRAINED_BYTES:
                raise _too_large()
            if received > MAX_REQUEST_BYTES:
                chunks.clear()
            else:
                chunks.append(chunk)
    except ClientDisconnect:
        raise RequestError("the connection closed before the request was complete") from None
    if received > MAX_REQUEST_BYTES:
        raise _too_large()
    return b"".join(chunks)


def _too_large() -> RequestError:
    limit = MAX_REQUEST_BYTES // 1_000_000
    return RequestError(
        f"the request is over {limit} MB; send fewer or smaller images in one request", status=413
    )


def _parse_csv(body: bytes, task: Task) -> Payload:
    """CSV as MLflow takes it: a header line naming the column, then a line an image."""
    try:
        table = pd.read_csv(io.BytesIO(body), dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:  # pandas's own errors and UnicodeDecodeError are ValueErrors
        raise RequestError(f"not valid CSV: {error}") from None
    if list(table.columns) != [COLUMN]:
        raise RequestError(f"the CSV must have the one column {COLUMN}, got {shown(list(table.columns))}")
    return Payload(parse_rows(table[COLUMN].tolist(), task), {})


def _error(status: int, message: str, row: int | None = None, headers: Any = None) -> Response:
    code = _CODES.get(status, "bad_request" if status < 500 else "internal_error")
    content = encode({"error": {"code": code, "message": message, "row": row}})
    return Response(content, status_code=status, media_type=_JSON, headers=headers)


async def _on_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error.status, str(error), error.row)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = "no such address; POST to /score or /invocations, GET /ping, /health or /version"
    return _error(error.status_code, message, headers=error.headers)


async def _on_internal_error(_: Request, error: Exception) -> Response:
    if isinstance(error, TrainerError):
        _logger.error("%s", error)
        return _error(500, str(error))
    # Raised again by Starlette after this answer, so that the log has the traceback.
    return _error(500, "the server failed on this request; its log says why")
