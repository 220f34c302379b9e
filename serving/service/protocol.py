"""uvicorn's HTTP protocol with limits on the size and duration of headers, and with errors in JSON."""

from __future__ import annotations

import asyncio
import json
import re
from asyncio.events import TimerHandle

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEADER_BYTES = 64_000
HEADER_TIMEOUT_S = 20.0
_TOO_LARGE = (431, "headers_too_large", f"the headers are over {MAX_HEADER_BYTES // 1000} kB")
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. uvicorn's own protocol accepts headers of any size, however slowly they arrive."""

    _clock: TimerHandle | None = None
    _header_bytes = 0
    _in_headers = True
    _rejection: tuple[int, str, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._rejection is not None:
            return
        if self._in_headers:
            self._header_bytes += len(data)
            # Decline an upgrade to HTTP/2, as Java's client offers: the parser would stop before the body.
            end = data.find(b"\r\n\r\n")
            if offer := _UPGRADE.search(data, 0, end if end >= 0 else len(data)):
                data = data[: offer.start()] + b"\r\nx-declined:" + data[offer.end() :]
            if self._clock is None:
                self._start_clock()
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._reject(*_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._header_bytes = 0
        self._stop_clock()
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            self._rejection = _TOO_LARGE  # sent in answer to the parser's error below
            raise ValueError(_TOO_LARGE[2])
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers = True

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(HEADER_TIMEOUT_S, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        self._clock = None
        if self._in_headers and (self.cycle is None or self.cycle.response_complete):
            self._reject(408, "timeout", f"the headers were not complete within {HEADER_TIMEOUT_S:.0f} s")

    def _reject(self, status: int, code: str, message: str) -> None:
        self._rejection = (status, code, message)
        self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP or that is rejected early, and close the connection."""
        if self.transport.is_closing():
            return
        status, code, message = self._rejection or (400, "bad_request", "not a valid HTTP request")
        self._rejection = (status, code, message)
        body = json.dumps({"error": {"code": code, "message": message, "row": None}}).encode("ascii")
        head = b"content-type: application/json\r\nconnection: close\r\n"
        head += b"content-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
