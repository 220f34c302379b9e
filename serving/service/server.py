"""The scoring service as an ASGI app: `/score`, MLflow's `/invocations`, and what operates them.

Every error is JSON, `{"error": {"code", "message", "row"}}`; `row` is null unless one row is to blame.
serving.service.launch runs it; the way of a request's images is in serving.service.pipeline.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

import pandas as pd
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import encode
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
from serving.scorer import Scorer
from serving.service.admission import Admission, BusyError, Ticket
from serving.service.keys import Keys
from serving.service.openapi import describe
from serving.service.options import Options
from serving.service.page import page_router
from serving.service.pipeline import Pipeline, joined
from serving.service.telemetry import AccessLog, Metrics
from serving.wording import shown
from trainer.errors import RequestError, TrainerError
from trainer.tasks import Task

# Of a request that is too large so much is read and thrown away: a client that is cut off while it sends
# does not see the answer.
_DRAINED_BYTES = 20 * MAX_REQUEST_BYTES

_CLOSING_S = 5.0
_PATIENCE_S = 0.5

_logger = logging.getLogger(__name__)

_JSON = "application/json"
_RAW = "application/octet-stream"
_CODES = {
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
_GUARDED = ("/score", "/invocations", "/swagger.json", "/metrics")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Service:
    """What the app's routes share. `app.state.service` holds it.

    Attributes:
        draining: the service was told to stop: readiness says so, requests are still answered.
        closed: no thread of it is at work any more, or none was started.
    """

    def __init__(self, scorer: Scorer, options: Options) -> None:
        self.scorer = scorer
        self.options = options
        self.admission = Admission(options.max_queue, options.max_queue_mb * 1_000_000)
        self.metrics = Metrics(self.admission)
        self.draining = False
        self.closed = True
        self._pipeline: Pipeline | None = None

    @property
    def pipeline(self) -> Pipeline:
        """Made by the first who asks, in the event loop's thread."""
        if self._pipeline is None:
            self.closed = False
            self._pipeline = Pipeline(self.scorer, self.options, self.metrics.saw_batch)
        return self._pipeline

    @property
    def ready(self) -> bool:
        return not self.draining and self.pipeline.batcher.alive

    def close(self) -> None:
        """End the threads; one that is at a long explanation is not waited for."""
        if self._pipeline is not None:
            self.closed = self._pipeline.close(_CLOSING_S)

    async def answer(
        self,
        request: Request,
        read: Callable[[bytes], Payload],
        wrap: Callable[[bytes], bytes] = lambda answers: answers,
    ) -> Response:
        """Read a request's body and answer it."""
        with self.admission.enter() as ticket:
            body = await self._read_body(request, ticket)
            try:
                async with asyncio.timeout(self.options.timeout_s) as limit, _while_listening(request, limit):
                    scored = await self.pipeline.score(lambda: read(body), ticket)
            except TimeoutError:
                if request.scope.get("trainer.gone"):
                    raise HTTPException(499, "the client has closed the connection") from None
                raise HTTPException(
                    504,
                    f"no answer within {self.options.timeout_s:g} s, it was given up; send fewer images "
                    "in one request, or let the service be started with a larger --timeout-s",
                ) from None
        self.admission.done(len(scored.answers))
        request.scope["trainer.seen"] = {"rows": len(scored.answers), "batch": scored.batch}
        return Response(wrap(joined(scored.answers)), media_type=_JSON)

    async def _read_body(self, request: Request, ticket: Ticket) -> bytes:
        """The request's body, at most MAX_REQUEST_BYTES of it, however it is sent."""
        length = request.headers.get("content-length", "")
        announced = int(length) if length.isdecimal() and len(length) < 20 else 0
        if announced > MAX_REQUEST_BYTES and (
            announced > _DRAINED_BYTES or request.headers.get("expect", "").lower() == "100-continue"
        ):
            raise _too_large()
        if announced <= MAX_REQUEST_BYTES:
            ticket.take_bytes(announced)
        chunks: list[bytes] = []
        received = 0
        try:
            async with asyncio.timeout(self.options.read_timeout_s):
                async for chunk in request.stream():
                    received += len(chunk)
                    if received > _DRAINED_BYTES:
                        raise _too_large()
                    if received > MAX_REQUEST_BYTES:
                        chunks.clear()
                        continue
                    if received > ticket.bytes:
                        ticket.take_bytes(received - ticket.bytes)
                    chunks.append(chunk)
        except TimeoutError:
            rule = f"the request was not complete within {self.options.read_timeout_s:g} s"
            raise RequestError(f"{rule}, got {received} bytes of it", status=408) from None
        except ClientDisconnect:
            raise RequestError("the connection closed before the request was complete") from None
        if received > MAX_REQUEST_BYTES:
            raise _too_large()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@asynccontextmanager
async def _while_listening(request: Request, limit: asyncio.Timeout) -> AsyncIterator[None]:
    """End the time of a request whose client goes away, so that nobody works for nobody.

    Most requests are answered before it begins to look.
    """
    watch: asyncio.Task[None] | None = None

    async def listen() -> None:
        # The body was read: all that can come is the news that the connection is closed.
        await request.receive()
        request.scope["trainer.gone"] = True
        limit.reschedule(asyncio.get_running_loop().time())

    def begin() -> None:
        nonlocal watch
        watch = asyncio.create_task(listen())

    timer = asyncio.get_running_loop().call_later(_PATIENCE_S, begin)
    try:
        yield
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()


def create_app(
    scorer: Scorer,
    options: Options | None = None,
    *,
    keys: Keys | None = None,
    access_log: AccessLog | None = None,
) -> FastAPI:
    """The scoring service for one model.

    Args:
        keys: that requests must bear; None lets everybody in.
        access_log: gets a line for each request.
    """
    service = Service(scorer, options or Options())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    # FastAPI's own documentation pages load scripts from a foreign host.
    app = FastAPI(title="image-trainer", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.service = service
    task = scorer.spec.task
    description = encode(describe(scorer.spec, needs_key=keys is not None))

    @app.post("/score")
    async def score(request: Request) -> Response:
        media_type = _media_type(request, (_JSON, "image/*", _RAW))
        if media_type != _JSON:
            return await service.answer(request, _raw_image)
        return await service.answer(request, lambda body: parse_score_request(parse_json(body), task))

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        csv = _media_type(request, (_JSON, "text/csv")) == "text/csv"

        def read(body: bytes) -> Payload:
            return _parse_csv(body, task) if csv else parse_invocation(parse_json(body), task)

        return await service.answer(request, read, lambda answers: b'{"predictions": ' + answers + b"}")

    @app.get("/swagger.json")
    async def swagger() -> Response:
        return Response(description, media_type=_JSON)

    @app.get("/metrics")
    async def metrics() -> Response:
        content, media_type = service.metrics.text()
        return Response(content, headers={"content-type": media_type})

    @app.get("/livez")
    async def live() -> Response:
        return Response(encode({"status": "alive"}), media_type=_JSON)

    @app.get("/readyz")
    async def ready() -> Response:
        if not service.ready:
            return _error(503, "the service is stopping, or its network's threads have ended")
        return Response(encode({"status": "ready"}), media_type=_JSON)

    @app.get("/ping")
    @app.get("/health")
    async def ping() -> Response:
        return Response("\n", media_type=_JSON)

    @app.get("/version")
    async def version() -> Response:
        return Response(metadata.version("mlflow"), media_type=_JSON)

    app.include_router(page_router(scorer.spec, key_required=keys is not None))
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(TrainerError, _on_internal_error)
    app.add_exception_handler(Exception, _on_internal_error)
    app.add_middleware(_Doorkeeper, service=service, keys=keys, access_log=access_log)
    return app


class _Doorkeeper:
    """The outermost layer: checks keys, gives every request an id, counts it and logs it."""

    def __init__(
        self, app: ASGIApp, service: Service, keys: Keys | None, access_log: AccessLog | None
    ) -> None:
        self._app = app
        self._service = service
        self._keys = keys
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = _request_id(headers)
        status, received, sent = 500, 0, 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def marked_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("ascii"))]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        path = scope["path"]
        try:
            if self._keys is not None and path in _GUARDED:
                authorization = headers.get(b"authorization")
                if not self._keys.open(authorization and authorization.decode("latin-1")):
                    refusal = _error(
                        401,
                        "the key is missing or wrong; send it as a header: Authorization: Bearer KEY",
                        headers={"WWW-Authenticate": "Bearer"},
                    )
                    await refusal(scope, counted_receive, marked_send)
                    return
            await self._app(scope, counted_receive, marked_send)
        finally:
            seconds = time.monotonic() - began
            seen: Mapping[str, Any] = scope.get("trainer.seen", {})
            kind = _CODES.get(status, "error") if status >= 400 else None
            # Only the app's own paths, or every scanner on the net would make new series.
            known = path if "endpoint" in scope or path in _GUARDED else "other"
            self._service.metrics.saw_request(known, status, seconds, kind, seen.get("rows", 0))
            if self._access_log is not None:
                client = scope.get("client")
                self._access_log.write(
                    method=scope["method"],
                    path=path,
                    status=status,
                    ms=round(seconds * 1000, 2),
                    rows=seen.get("rows"),
                    batch=seen.get("batch"),
                    bytes_in=received,
                    bytes_out=sent,
                    client=client[0] if client else None,
                    request_id=request_id,
                    error=kind,
                )


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's own, if it sent one that a log can hold."""
    for name in (b"x-request-id", b"x-ms-client-request-id"):
        given = headers.get(name, b"").decode("latin-1")
        if _REQUEST_ID.fullmatch(given):
            return given
    return uuid.uuid4().hex


def _raw_image(body: bytes) -> Payload:
    """A body that is an image file."""
    if not body:
        raise RequestError("the image is empty", row=0)
    return Payload((ImageRow(body),), {})


def _media_type(request: Request, known: tuple[str, ...]) -> str:
    """The request's content type as it is among the known ones; the first of them if it names none."""
    content_type = request.headers.get("content-type", known[0])
    media_type, _, rest = content_type.partition(";")
    media_type = media_type.strip().lower()
    parameters = [parameter.strip().lower() for parameter in rest.split(";") if parameter.strip()]
    found = "image/*" if media_type.startswith("image/") else media_type
    if found not in known:
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
    return found


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
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else None
    return _error(error.status, str(error), error.row, headers)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = "no such address; POST to /score or /invocations, GET /swagger.json, /readyz or /metrics"
    return _error(error.status_code, message, headers=error.headers)


async def _on_internal_error(_: Request, error: Exception) -> Response:
    if isinstance(error, TrainerError):
        _logger.error("%s", error)
        return _error(500, str(error))
    # Raised again by Starlette after this answer, so that the log has the traceback.
    return _error(500, "the server failed on this request; its log says why")
