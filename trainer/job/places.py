"""Locations in a job: paths relative to a file, URLs, and names of data registered with Azure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os.path import abspath, expanduser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.models.weights.choice import NONE, PRETRAINED, is_address


def anchored(choice: str, directory: Path) -> str:
    """Make a local path absolute; words such as "pretrained" and URLs are returned unchanged."""
    if choice in (PRETRAINED, NONE) or is_address(choice) or is_remote(choice):
        return choice
    return abspath(directory / expanduser(choice))


def is_remote(path: str) -> bool:
    """Whether a path is a URL or a name registered with Azure, rather than a path on this machine."""
    return "://" in path or path.startswith(("azureml:", "/subscriptions/"))


_REGISTERED = re.compile(
    r"azureml:(?P<name>[^:@/\\]+)(?:[:@](?P<version>[^/\\]+))?"
    r"|(?:azureml:/|/subscriptions/)(?!.*/datastores/).*/data/(?P<id>[^/]+)/(?:versions|labels)/(?P<of>[^/]+)/?"
)
"""`azureml:NAME:VERSION`, `azureml:NAME@latest`, and ids that end in `data/NAME/versions/VERSION`."""


def places_of(paths: tuple[str, ...], assets: Mapping[str, str]) -> tuple[str, ...]:
    """Replace each registered name by its path.

    Args:
        assets: paths by NAME:VERSION or NAME.

    Raises:
        ValueError: names without a path.
    """
    matches = [(path, _REGISTERED.fullmatch(path)) for path in paths]
    places, missing = [], []
    for path, name in matches:
        if name is None:
            places.append(path)
            continue
        plain, version = name["name"] or name["id"], name["version"] or name["of"]
        place = assets.get(f"{plain}:{version}") or assets.get(plain)
        places.append(place or path)
        if place is None:
            missing.append(plain)
    if missing:
        raise ValueError(
            f"registered data must be mapped to a path (mapped: {', '.join(assets) or 'none'}), got "
            f"{', '.join(map(repr, missing))}; give their paths: "
            + " ".join(f"--data-asset {name}=PATH" for name in missing)
        )
    return tuple(places)


def data_entry(paths: tuple[str, ...]) -> Any:
    """Paths as a job file lists them: one entry, or a list of several, which Azure does not know."""
    # The job file is written to another directory than the paths are relative to.
    entries = [{"path": path if is_remote(path) else abspath(path), "type": "mltable"} for path in paths]
    return entries[0] if len(entries) == 1 else entries


_SQLITE = "sqlite:///"
_DATABRICKS = ("databricks", "databricks-uc", "uc")


def tracking_place(uri: str, directory: Path) -> str:
    """MLflow's address of a tracking store, with a local path made absolute; "none" is unchanged."""
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        return uri if path in ("", ":memory:") else _SQLITE + abspath(directory / path)
    if uri in (NONE, *_DATABRICKS) or re.match(r"[\w+.-]+:", uri):
        return uri
    return abspath(directory / expanduser(uri))


def without_password(uri: str) -> str:
    """Remove the password from the address of a server or database, so that it may be shown and stored."""
    if "?" in uri:
        uri = re.sub(r"(?<=[?&])password=[^&]*&?", "", uri).rstrip("?&")
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return uri
    user_part = "" if parts.scheme in ("http", "https") else f"{user.partition(':')[0]}@"
    return parts._replace(netloc=user_part + host).geturl()
