"""The outermost layer of the app: checks keys, gives every request an id, counts and logs it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.service.keys import Keys
from serving.service.responses import CODES, error_response
from serving.service.telemetry import AccessLog, Metrics

SCORED = "trainer.scored"
"""Key of the request's scope under which the app stores `rows` and `batch` for the metrics and the log."""

_GUARDED = ("/score", "/invocations", "/swagger.json", "/metrics")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Doorkeeper:
    """Middleware around the whole app."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, keys: Keys | None, access_log: AccessLog | None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = _request_id(headers)
        status, received, sent = 500, 0, 0

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def marking_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("ascii"))]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            app = self._app if self._is_allowed(scope["path"], headers) else _unauthorized
            await app(scope, counting_receive, marking_send)
        finally:
            self._record(scope, status, time.monotonic() - start, received, sent, request_id)

    def _is_allowed(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        if self._keys is None or path not in _GUARDED:
            return True
        return self._keys.open(headers.get(b"authorization", b"").decode("latin-1"))

    def _record(
        self, scope: Scope, status: int, seconds: float, received: int, sent: int, request_id: str
    ) -> None:
        scored: Mapping[str, Any] = scope.get(SCORED, {})
        path = scope["path"]
        kind = CODES.get(status, "error") if status >= 400 else None
        # Only the app's own paths get time series of their own, not those that scanners try.
        known = path if "endpoint" in scope or path in _GUARDED else "other"
        self._metrics.saw_request(known, status, seconds, kind, scored.get("rows", 0))
        if self._access_log is not None:
            client = scope.get("client")
            self._access_log.write(
                method=scope["method"],
                path=path,
                status=status,
                ms=round(seconds * 1000, 2),
                rows=scored.get("rows"),
                batch=scored.get("batch"),
                bytes_in=received,
                bytes_out=sent,
                client=client[0] if client else None,
                request_id=request_id,
                error=kind,
            )


async def _unauthorized(scope: Scope, receive: Receive, send: Send) -> None:
    message = "the key is missing or wrong; send it as a header: Authorization: Bearer KEY"
    await error_response(401, message, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's own id if it sent one that is safe to log, otherwise a random one."""
    for name in (b"x-request-id", b"x-ms-client-request-id"):
        request_id = headers.get(name, b"").decode("latin-1")
        if _REQUEST_ID.fullmatch(request_id):
            return request_id
    return uuid.uuid4().hex
