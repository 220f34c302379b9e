"""Resolves paths and URLs, and fetches remote files once into a cache on disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import posixpath
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trainer.errors import TrainerError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_DATASTORE = re.compile(
    r"(?:azureml://(?:.*?/)?datastores/(?P<name>[^/]+)/paths/|AmlDatastore://(?P<old_name>[^/]+)/)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_ATTEMPTS = 4
_MAX_PAUSE = 60.0  # seconds between attempts
_MAX_FAILURES = 3
"""Files that a host failed to send in a row, from which on no other one is asked for again."""
_CONNECT_SECONDS = 20
_SILENT_SECONDS = 60  # without a byte
_CLIENT_ERRORS_WORTH_A_RETRY = (408, 425, 429)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_AZURE_STORAGE = ("abfs", "abfss", "az")
_OLD_AZURE_STORAGE = ("wasb", "wasbs")
_failures: Counter[str] = Counter()
"""Host → files that it failed to send since it last sent one, in this process."""


class UrlError(TrainerError):
    """A URL that cannot be resolved or fetched.

    Attributes:
        rule, got, hint: as in trainer.errors.Problem.
        cause: a cause that many URLs may share, such as an unmapped datastore; "" if it concerns this URL
            only.
    """

    def __init__(self, rule: str, got: str = "", hint: str = "", cause: str = "") -> None:
        super().__init__("; ".join([f"{rule}, got {got}" if got else rule, *([hint] if hint else [])]))
        self.rule = rule
        self.got = got
        self.hint = hint
        self.cause = cause


def resolve_folder(written: str, base: str, datastores: Mapping[str, str]) -> tuple[str, bool]:
    """Resolve an image_url's part up to its last slash.

    Returns:
        Absolute path or URL, and whether the rest of the image_url is percent-encoded.

    Raises:
        UrlError: the datastore is not mapped, the protocol not supported, or it is a Windows path elsewhere.
    """
    if match := _DATASTORE.match(written):
        name, old_name, rest = match.group("name", "old_name", "rest")
        return _join(_datastore_root(name or old_name, datastores), rest.lstrip("/")), False
    if is_url(written):
        protocol = written.split("://", 1)[0].lower()
        if protocol == "file":
            return _with_slash(_path_of_file_url(written)), True
        if protocol in ("azureml", "amldatastore"):
            rule = "must have the form azureml://…/datastores/NAME/paths/PATH"
            raise UrlError(rule, repr(written), cause=written)
        require_protocol(protocol)
        return written, False
    if _WINDOWS_DRIVE.match(written) and os.name != "nt":
        rule, hint = "must be a path on this machine", "use paths relative to the data file"
        raise UrlError(rule, repr(written), hint, cause=written[:2])
    return _join(base, written.replace("\\", "/")), False


def resolve_path(path: str, datastores: Mapping[str, str]) -> str:
    """Turn a path or URL given by a user, datastore URLs included, into an absolute local path or URL.

    Raises:
        UrlError: the datastore is not mapped, the protocol not supported, or it is a Windows path elsewhere.
    """
    if not is_url(path):
        return os.path.abspath(path)
    if path.lower().startswith("file://"):
        return _path_of_file_url(path)
    return resolve_folder(_with_slash(path), "", datastores)[0].rstrip("/")


def is_url(text: str) -> bool:
    """Whether a text starts with a protocol, such as `https://`."""
    return _URL.match(text) is not None


def parent(path: str) -> str:
    """The folder of an absolute path or URL."""
    return path.rsplit("/", 1)[0] if is_url(path) else os.path.dirname(path)


def require_protocol(protocol: str) -> None:
    """Check that files of this protocol can be read.

    Raises:
        UrlError: fsspec does not know the protocol, or the package that implements it is missing.
    """
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        rule, hint = "must have a supported protocol", str(error)
        if protocol in _AZURE_STORAGE:
            hint = "install adlfs, which reads it: pip install 'image-trainer[azure]'"
        elif protocol in _OLD_AZURE_STORAGE:
            hint = "use abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH instead"
        raise UrlError(rule, f"{protocol}://", hint, protocol) from None


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
    suffix = PurePosixPath(urlsplit(url).path).suffix[:16]
    cached = cache_directory() / digest[:2] / (digest + suffix)
    if not refresh and cached.exists():
        return Fetched(cached, "")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        return Fetched(cached, _fetch_with_retries(url, cached))
    except OSError as error:
        rule, hint = "the cache of remote files must be writable", "make room, or set TRAINER_CACHE"
        raise UrlError(rule, f"{cached.parent} ({error.strerror or error})", hint, "cache") from error


def cache_directory() -> Path:
    """The directory that fetched files are cached in."""
    named = os.environ.get("TRAINER_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "image-trainer"


def _fetch_with_retries(url: str, target: Path) -> str:
    """Fetch a file into `target`; returns what the server answered.

    Raises:
        UrlError: the URL cannot be fetched.
        OSError: the target cannot be written.
    """
    host = urlsplit(url).netloc
    # If a store is down, do not wait for it at each of thousands of images.
    attempts = _ATTEMPTS if _failures[host] < _MAX_FAILURES else 1
    for attempt in range(1, attempts + 1):
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        os.close(handle)
        try:
            answer = _fetch(url, temporary)
            os.replace(temporary, target)
            _failures.pop(host, None)
            return answer
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
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise AssertionError("the last attempt returns or raises")


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
    """The HTTP status that a store answered with, by which attribute ever its library names it."""
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
    return f"{type(error).__name__}: {error}"


def _may_be_temporary(error: Exception) -> bool:
    """Whether the failure may be temporary."""
    if (status := _status_of(error)) is not None:
        return status >= 500 or status in _CLIENT_ERRORS_WORTH_A_RETRY
    return not isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | ImportError | ValueError
    )


def _datastore_root(name: str, datastores: Mapping[str, str]) -> str:
    root = datastores.get(name)
    if root is None:
        mapped = ", ".join(sorted(datastores)) or "none"
        raise UrlError(
            f"the datastore {name!r} must be mapped (mapped: {mapped})",
            hint=f"give the location of its content with --datastore {name}=DIR_OR_URL",
            cause=f"datastore {name}",
        )
    if is_url(root) and not root.lower().startswith("file://"):
        require_protocol(root.split("://", 1)[0].lower())
        return root
    path = _path_of_file_url(root) if is_url(root) else os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(path):
        rule = f"the datastore {name!r} must be mapped to a directory that exists"
        raise UrlError(rule, path, f"correct --datastore {name}=DIR_OR_URL", cause=f"datastore {name}")
    return path


def _join(base: str, rest: str) -> str:
    """Join base and rest, resolve `.` and `..`, and end in a slash. An absolute `rest` replaces `base`."""
    if is_url(base) and not rest.startswith("/"):
        scheme, remainder = base.split("://", 1)
        host, _, path = remainder.partition("/")
        joined = posixpath.normpath(posixpath.join("/", path, rest))
        return _with_slash(f"{scheme}://{host}{joined}")
    joined = os.path.join(base, rest)
    normal = os.path.normpath(joined)
    if ".." in rest and not os.path.isdir(normal):
        normal = os.path.realpath(joined)  # `..` after a symbolic link leaves the link's target
    return _with_slash(normal)


def _with_slash(path: str) -> str:
    return path if path.endswith("/") else path + "/"


def _path_of_file_url(url: str) -> str:
    parts = urlsplit(url, allow_fragments=False)
    path = url2pathname(parts.path + (f"?{parts.query}" if parts.query else ""))
    return path if parts.netloc in ("", "localhost") else f"//{parts.netloc}{path}"
