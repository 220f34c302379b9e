"""Fetches remote files, once, into a cache on disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from trainer.data.reading.urls import UrlError, is_url

_ATTEMPTS = 4
_MAX_PAUSE = 60.0  # seconds between attempts
_MAX_FAILURES = 3
"""Files that a host failed to send in a row, from which on no other one is asked for again."""
_CONNECT_SECONDS = 20
_SILENT_SECONDS = 30  # without a byte
_CLIENT_ERRORS_WORTH_A_RETRY = (408, 425, 429)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_failures: Counter[str] = Counter()
"""Host → files that it failed to send since it last sent one, in this process."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fetched:
    """A local copy of a remote file.

    Attributes:
        path: where the copy is.
        answer: what the server answered, such as "HTTP status 200, text/html"; "" if the copy was cached.
    """

    path: Path
    answer: str


def local_path(source: str, *, refresh: bool = False) -> Path:
    """Return a local file with the content of a local path or URL.

    Images are read by `image_sources.read_image`, which keeps no other files in the cache.

    Args:
        refresh: fetch the content again, for data files, which may change.

    Raises:
        UrlError: as in `fetch`.
    """
    return fetch(source, refresh=refresh).path if is_url(source) else Path(source)


def fetch(url: str, *, refresh: bool = False) -> Fetched:
    """Fetch a remote file, unless it is in the cache.

    Files are cached under the SHA-256 of their URL, in the directory that the environment variable
    TRAINER_CACHE names, by default ~/.cache/image-trainer. Safe to call from many threads and processes.

    Args:
        refresh: fetch the file even if it is in the cache.

    Raises:
        UrlError: the URL cannot be fetched, or the cache cannot be written. Failures that may be temporary
            are retried with growing pauses.
    """
    digest = hashlib.sha256(url.encode()).hexdigest()
    suffix = PurePosixPath(_split(url).path).suffix[:16]
    cached = cache_directory() / digest[:2] / (digest + suffix)
    if not refresh and cached.exists():
        return Fetched(cached, "")
    temporary = ""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=cached.parent, prefix=".part-")
        os.close(handle)
        answer = ask(url, lambda: _fetch(url, temporary))
        os.replace(temporary, cached)
    except OSError as error:
        rule, hint = "the cache of remote files must be writable", "make room, or set TRAINER_CACHE"
        raise UrlError(rule, f"{cached.parent} ({error.strerror or error})", hint, "cache") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return Fetched(cached, answer)


def cache_directory() -> Path:
    """The directory that fetched files are cached in."""
    named = os.environ.get("TRAINER_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "image-trainer"


def ask(url: str, action: Callable[[], Result]) -> Result:
    """Do something that asks a remote store, again after growing pauses if it fails for a while.

    Raises:
        UrlError: the action failed each time, or for a reason that does not pass.
        OSError: the local disk is full or cannot be written.
    """
    host = _split(url).netloc
    # If a store is down, do not wait for it at each of thousands of images.
    attempts = _ATTEMPTS if _failures[host] < _MAX_FAILURES else 1
    for attempt in range(1, attempts + 1):
        try:
            result = action()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            is_temporary = _may_be_temporary(error)
            if attempt < attempts and is_temporary:
                _wait(_pause(attempt, error))
                continue
            _failures[host] += is_temporary
            tries = f", {attempt} attempts" if attempt > 1 else ""
            raise UrlError(
                "must be a URL that can be fetched",
                f"{url} ({_reason(error)}{tries})",
                "try again later" if is_temporary else "",
            ) from error
        _failures.pop(host, None)
        return result
    raise AssertionError("the last attempt returns or raises")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:  # http://[a/b.jpg
        raise UrlError("must be a URL", f"{url} ({error})") from error


def _fetch(url: str, target: str) -> str:
    """Fetch a file once; returns what the server answered."""
    import fsspec

    if not url.lower().startswith(("http://", "https://")):
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.get_file(path, target)
        return f"{os.path.getsize(target):,} bytes"
    answer: dict[str, str] = {}
    filesystem, path = fsspec.core.url_to_fs(url, client_kwargs=_http_options())
    filesystem.get_file(path, target, trace_request_ctx=answer)
    return ", ".join([*answer.values(), f"{os.path.getsize(target):,} bytes"])


@functools.cache
def _http_options() -> dict[str, Any]:
    """Options of aiohttp's sessions: time limits, and a hook that notes status and type of each answer."""
    import aiohttp

    async def note(_: object, context: Any, parameters: Any) -> None:
        answer, response = context.trace_request_ctx, parameters.response
        if answer is not None:
            answer["status"] = f"HTTP status {response.status}"
            answer["type"] = response.headers.get("Content-Type", "no content type")

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(note)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
    return {"timeout": limits, "trace_configs": [trace]}


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _pause(attempt: int, error: Exception) -> float:
    """Seconds to wait after a failed attempt: as the server says, or 1, 2, 4 …, up to 60."""
    carriers = (error, getattr(error, "response", None))
    found: list[Mapping[str, str]] = [getattr(carrier, "headers", None) or {} for carrier in carriers]
    headers = found[0] or found[1]
    named = str(headers.get("Retry-After", ""))
    seconds = 2.0 ** (attempt - 1)
    if named.isdigit():
        seconds = float(named)
    elif named:
        with contextlib.suppress(ValueError):
            seconds = parsedate_to_datetime(named).timestamp() - time.time()
    return min(max(seconds, 0), _MAX_PAUSE)


def _status_of(error: Exception) -> int | None:
    """The HTTP status that a store answered with, by whichever attribute its library names it."""
    if type(error).__name__ == "ClientPayloadError":
        return None  # an answer that broke off; its cause has a code of aiohttp's own
    if _is_redirected_too_often(error):
        return None  # its status is 0
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdigit() and 100 <= int(value) < 600:
            return int(value)
    response = getattr(error, "response", None)  # of botocore
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
    if status := metadata.get("HTTPStatusCode"):
        return int(status)
    cause = error.__cause__
    return _status_of(cause) if isinstance(cause, Exception) else None


def _reason(error: Exception) -> str:
    if (status := _status_of(error)) is not None:
        return f"HTTP status {status}"
    if isinstance(error, FileNotFoundError):
        return "no such file; for a web address, HTTP status 404"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if _is_redirected_too_often(error):
        return "it redirects too often, perhaps to itself"
    return f"{type(error).__name__}: {error}"


def _may_be_temporary(error: Exception) -> bool:
    """Whether the failure may be temporary."""
    if (status := _status_of(error)) is not None:
        return status >= 500 or status in _CLIENT_ERRORS_WORTH_A_RETRY
    return not _is_redirected_too_often(error) and not isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | ImportError | ValueError
    )


def _is_redirected_too_often(error: Exception) -> bool:
    return type(error).__name__ == "TooManyRedirects"
