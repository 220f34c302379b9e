"""Resolves paths and URLs."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trainer.errors import TrainerError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_DATASTORE = re.compile(
    r"(?:azureml://(?:.*?/)?datastores/(?P<name>[^/]+)/paths/|AmlDatastore://(?P<old_name>[^/]+)/)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
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
        try:
            urlsplit(written)
        except ValueError as error:  # http://[a/
            raise UrlError("must be a URL", f"{written!r} ({error})", cause=written) from error
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
        return os.path.abspath(os.path.expanduser(path))
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
