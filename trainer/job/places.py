"""Where the data of a job lie: paths beside a file, URLs, and names registered with Azure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os.path import abspath
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.models.weights.choice import NONE, PRETRAINED, is_address


def anchored(choice: str, directory: Path) -> str:
    """A local path made absolute; words such as "pretrained" and URLs stay as they are."""
    if choice in (PRETRAINED, NONE) or is_address(choice) or is_remote(choice):
        return choice
    return abspath(directory / Path(choice).expanduser())


def is_remote(path: str) -> bool:
    """Whether it is no path of this machine: a URL, or a name registered with Azure."""
    return "://" in path or path.startswith("azureml:") or _REGISTERED.fullmatch(path) is not None


_REGISTERED = re.compile(
    r"azureml:(?P<name>[^:@/\\]+)(?:[:@](?P<version>[^/\\]+))?"
    r"|(?:azureml:/|/subscriptions/)(?!.*/datastores/).*/data/(?P<id>[^/]+)/(?:versions|labels)/(?P<of>[^/]+)/?"
)
"""`azureml:NAME:VERSION`, `azureml:NAME@latest`, and ids that end in `data/NAME/versions/VERSION`."""


def places_of(paths: tuple[str, ...], assets: Mapping[str, str]) -> tuple[str, ...]:
    """The paths, with the place of the data in place of each registered name, by NAME:VERSION or NAME.

    Raises:
        ValueError: there are names that are not mapped.
    """
    found = [(path, _REGISTERED.fullmatch(path)) for path in paths]
    places, missing = [], []
    for path, name in found:
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
            f"{', '.join(map(repr, missing))}; say where they lie: "
            + " ".join(f"--data-asset {name}=PATH" for name in missing)
        )
    return tuple(places)


def data_entry(paths: tuple[str, ...]) -> Any:
    """Data as a job file has them: one entry, or a list of several (our own form)."""
    # The file will lie elsewhere than the command was given.
    entries = [{"path": path if is_remote(path) else abspath(path), "type": "mltable"} for path in paths]
    return entries[0] if len(entries) == 1 else entries


_SQLITE = "sqlite:///"
_DATABRICKS = ("databricks", "databricks-uc", "uc")


def tracking_place(uri: str, directory: Path) -> str:
    """MLflow's address of a tracking store, a local path in it made absolute; "none" stays."""
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        return uri if path in ("", ":memory:") else _SQLITE + abspath(directory / path)
    if uri in (NONE, *_DATABRICKS) or re.match(r"[\w+.-]+:", uri):
        return uri
    return abspath(directory / Path(uri).expanduser())


def without_password(uri: str) -> str:
    """The address of a server or database as it may be shown and stored."""
    if "?" in uri:
        uri = re.sub(r"(?<=[?&])password=[^&]*&?", "", uri).rstrip("?&")
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return uri
    kept = "" if parts.scheme in ("http", "https") else f"{user.partition(':')[0]}@"
    return parts._replace(netloc=kept + host).geturl()
