"""Finds the files of a Hugging Face Hub repository: in a directory, in the Hub's cache, or by download.

Free of torch. Files are data only: no code of a repository is ever run.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import WeightsError

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
INDEX_SUFFIX = ".index.json"
"""Ends the name of a file that lists the shards in which large weights are published."""
WEIGHTS_FILES = tuple(
    f"{name}{suffix}" for name in ("model.safetensors", "pytorch_model.bin") for suffix in ("", INDEX_SUFFIX)
)
"""The names that a repository's weights may have, the preferred one first."""

_MAIN = "main"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's files on this machine.

    Attributes:
        name: ORG/NAME.
        directory: holds the files.
        revision: their commit; "" if unknown.
    """

    name: str
    directory: Path
    revision: str = ""

    def weights(self) -> Path | None:
        """The file with the weights, or the index of its shards; None if there is neither."""
        paths = (self.directory / name for name in WEIGHTS_FILES)
        return next((path for path in paths if path.is_file()), None)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file; None if there is no such file.

        Raises:
            WeightsError: it holds no JSON object.
        """
        path = self.directory / name
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WeightsError(f"{path} cannot be read as JSON: {error}; download it again") from error
        if not isinstance(content, dict):
            raise WeightsError(f"{path} must hold a JSON object, got {type(content).__name__}")
        return content


def parse(name: str) -> tuple[str, str]:
    """Split ORG/NAME@REVISION into the repository and the revision, "" if it names none."""
    repository, _, revision = name.partition("@")
    return repository, revision


def in_directory(directory: Path, name: str) -> Repository | None:
    """Find a repository's files below a directory of weights; None if they are not there.

    They may be in DIR/ORG/NAME, in the layout of the Hub's cache (DIR or DIR/hub), or, with their
    config.json, in DIR itself.
    """
    below = _below(directory, name)
    if below is None and (directory / CONFIG_FILE).is_file():
        repository, _ = parse(name)
        found = Repository(repository, directory)
        return found if _fits(found.read_json(CONFIG_FILE) or {}, repository) else None
    return below


def in_cache(name: str) -> Repository | None:
    """Find a repository's files in the Hub's cache; None if there are none."""
    from huggingface_hub import constants  # a part that loads quickly

    repository, revision = parse(name)
    return _in_cache(Path(constants.HF_HUB_CACHE), repository, revision)


def has_cached_weights(name: str) -> bool:
    """Whether the Hub's cache has a repository's weights; "" has none."""
    cached = in_cache(name) if name else None
    return cached is not None and cached.weights() is not None


def has_weights(directory: Path, name: str) -> bool:
    """Whether a repository's weights are in DIR/ORG/NAME or in a copy of the Hub's cache; "" has none.

    Weights in DIR itself do not count: the config.json next to them may be another repository's.
    """
    found = _below(directory, name) if name else None
    return found is not None and found.weights() is not None


def download(name: str, file: str, revision: str = "") -> Path | None:
    """Download a file of a repository into the Hub's cache; None if the repository has no such file.

    Raises:
        OSError, ValueError: it cannot be downloaded.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # it may have been imported before
    try:
        with _without_logging_retries():
            return Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))
    except LocalEntryNotFoundError:
        raise  # there is no network; this is a kind of EntryNotFoundError
    except EntryNotFoundError:
        return None


@contextmanager
def _without_logging_retries() -> Iterator[None]:
    """Keep retries out of our log, since the library prints them itself."""
    logger = logging.getLogger("huggingface_hub")
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = before


def download_command(name: str, directory: str = "weights") -> str:
    """The command that downloads a repository into a directory of weights."""
    repository, revision = parse(name)
    pinned = f" --revision {revision}" if revision else ""
    return f"hf download {repository}{pinned} --local-dir {directory}/{repository}"


def _below(directory: Path, name: str) -> Repository | None:
    """A repository in DIR/ORG/NAME, or in the layout of the Hub's cache in DIR or DIR/hub."""
    repository, revision = parse(name)
    own = directory / repository
    if own.is_dir():
        return Repository(repository, own)
    caches = (_in_cache(cache, repository, revision) for cache in (directory, directory / "hub"))
    return next(filter(None, caches), None)


def _in_cache(cache: Path, repository: str, revision: str) -> Repository | None:
    """A snapshot in the layout of the Hub's cache: of the revision, or else of main or the only one."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    named = folder / "refs" / (revision or _MAIN)
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else revision
    snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    if commit:
        snapshots = [path for path in snapshots if path.name == commit]
    return Repository(repository, snapshots[0], snapshots[0].name) if len(snapshots) == 1 else None


def _fits(config: Mapping[str, Any], repository: str) -> bool:
    """Whether a config.json may be a repository's: timm's name the architecture, others say too little."""
    architecture = config.get("architecture")
    if architecture is None:
        return not repository.startswith("timm/")
    return str(architecture) == re.split(r"[./]", repository)[1]
