"""Resolves image_urls to local paths or URLs, and fetches remote files once into a cache on disk."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trainer.data.reading.records import Folder
from trainer.errors import TrainerError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_DATASTORE = re.compile(
    r"(?:azureml://(?:.*?/)?datastores/(?P<name>[^/]+)/paths/|AmlDatastore://(?P<old_name>[^/]+)/)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
STREAM_INFO = re.compile(r"\s*StreamInfo\s*\((?P<location>.*)\)", re.DOTALL)
"""How Azure's labelling projects and pandas may write an image_url: its location in a StreamInfo."""
_ATTEMPTS = 3
_CLIENT_ERRORS_WORTH_A_RETRY = (408, 429)
_AZURE_STORAGE = ("abfs", "abfss", "az")
_OLD_AZURE_STORAGE = ("wasb", "wasbs")


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


class Resolver:
    """Resolves the image_urls of one data file.

    Args:
        base: absolute directory or URL of the data file's folder, against which relative image_urls resolve.
        datastores: Azure datastore name → local directory or URL with its content.
    """

    def __init__(self, base: str, datastores: Mapping[str, str]) -> None:
        self.folders: list[Folder] = []
        self._base = base
        self._datastores = datastores
        self._known: dict[str, int] = {}

    def resolve(self, image_url: str) -> tuple[int, str]:
        """Split an image_url into an index into `folders` and the rest.

        Backslashes separate folders like slashes, except in URLs.

        Raises:
            UrlError: it is a StreamInfo, its name is no file's, or its datastore or protocol is unknown.
        """
        # Nearly all image_urls of a file share a few folders, so only new folders are resolved in full.
        cut = image_url.rfind("/") + 1
        if "\\" in image_url and not is_url(image_url):
            cut = max(cut, image_url.rfind("\\") + 1)
        name = image_url[cut:]
        if name in ("", ".", "..") or "\0" in image_url:
            raise UrlError("must name an image file", repr(image_url))
        written = image_url[:cut]
        index = self._known.get(written)
        if (index is None or not cut) and name[-1] == ")" and STREAM_INFO.fullmatch(image_url):
            raise UrlError("must be a path or URL", repr(image_url))
        if index is None:
            folder = Folder(written, *resolve_folder(written, self._base, self._datastores))
            index = self._known[written] = len(self.folders)
            self.folders.append(folder)
        return index, name


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


def local_path(source: str, *, refresh: bool = False) -> Path:
    """Return a local file with the content of a local path or URL.

    Remote content is fetched once and cached under the SHA-256 of its URL, in the directory that the
    environment variable TRAINER_CACHE names, by default ~/.cache/image-trainer. Safe to call from many
    threads and processes.

    Args:
        refresh: fetch the content again, for data files, which may change.

    Raises:
        UrlError: the URL cannot be fetched; temporary failures are tried three times.
    """
    if not is_url(source):
        return Path(source)
    digest = hashlib.sha256(source.encode()).hexdigest()
    suffix = PurePosixPath(urlsplit(source).path).suffix[:16]
    cached = cache_directory() / digest[:2] / (digest + suffix)
    if refresh or not cached.exists():
        _fetch(source, cached)
    return cached


def cache_directory() -> Path:
    """The directory that fetched files are cached in."""
    named = os.environ.get("TRAINER_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "image-trainer"


def _fetch(url: str, target: Path) -> None:
    import fsspec

    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _ATTEMPTS + 1):
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        os.close(handle)
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
            filesystem.get_file(path, temporary)
            os.replace(temporary, target)
            return
        except Exception as error:
            if attempt == _ATTEMPTS or not _may_be_temporary(error):
                raise UrlError("must be a URL that can be fetched", f"{url} ({_reason(error)})") from error
            time.sleep(0.5 * 2**attempt)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP status {status}"
    if isinstance(error, FileNotFoundError):
        return "no such file; for a web address, HTTP status 404"
    return f"{type(error).__name__}: {error}"


def _may_be_temporary(error: Exception) -> bool:
    """Whether the failure may be temporary."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
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
