"""Finds the files of a Hugging Face Hub repository: in a directory, in the Hub's cache, or by download.

Free of torch. Files are data only: no code of a repository is ever run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import WeightsError
from trainer.models.weights.choice import NONE, PRETRAINED, is_address

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
_UNUSED = (
    "id2label",
    "label2id",
    "auto_map",
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
)
"""Keys of config.json that shape no network: names of the published classes, and how the file was made."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's files on this machine.

    Attributes:
        name: ORG/NAME.
        directory: holds the files.
        revision: the commit that they are of; "" if the directory does not tell.
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


@dataclass(frozen=True, slots=True)
class Description:
    """What a repository's files say about its model; a spec keeps it under `options["hub"]`.

    Attributes:
        name: ORG/NAME.
        config: content of config.json, with `num_labels` in place of the classes' names.
        preprocessor: content of preprocessor_config.json; empty if there is none.
        revision: the commit; "" if unknown.
    """

    name: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    revision: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The form that a spec keeps."""
        return {
            "name": self.name,
            "revision": self.revision,
            "config": dict(self.config),
            "preprocessor": dict(self.preprocessor),
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Description:
        """Read what `to_dict` wrote."""
        return cls(kept["name"], kept["config"], kept["preprocessor"], kept.get("revision", ""))


def parse(name: str) -> tuple[str, str]:
    """Split ORG/NAME@REVISION into the repository and the revision, "" if it names none."""
    repository, _, revision = name.partition("@")
    return repository, revision


def describe(name: str, choice: str) -> Description:
    """Read what a model's files say, which are looked for where its weights are.

    Args:
        name: ORG/NAME or ORG/NAME@REVISION.
        choice: the choice of weights. For "none", the directory in TRAINER_WEIGHTS, the Hub's cache and the
            Hub are tried: a network from scratch is described by the files, too.

    Raises:
        WeightsError: config.json is neither on this machine nor can it be downloaded, or it is damaged.
    """
    directory = _directory_of(choice)
    repository = None if directory is None else _described_in(directory, name)
    if repository is None and choice not in (NONE, PRETRAINED):
        return _of_earlier_run(choice, name, directory)
    repository = repository or _in_cache_or_downloaded(name)
    config = repository.read_json(CONFIG_FILE)
    assert config is not None, "a repository is found by it"
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        config["num_labels"] = len(labels)
    preprocessor = repository.read_json(PREPROCESSOR_FILE)
    if preprocessor is None:  # newer repositories have one file for all processors
        preprocessor = (repository.read_json(PROCESSOR_FILE) or {}).get("image_processor") or {}
    kept_config = {key: value for key, value in config.items() if key not in _UNUSED}
    return Description(repository.name, kept_config, preprocessor, repository.revision)


def in_directory(directory: Path, name: str) -> Repository | None:
    """Find a repository's files below a directory of weights; None if they are not there.

    They may be in DIR/ORG/NAME, in the layout of the Hub's cache (DIR or DIR/hub), or, with their
    config.json, in DIR itself.
    """
    repository, revision = parse(name)
    own = directory / repository
    if own.is_dir():
        return Repository(repository, own)
    for cache in (directory, directory / "hub"):
        if (cached := _in_cache(cache, repository, revision)) is not None:
            return cached
    if (directory / CONFIG_FILE).is_file():
        found = Repository(repository, directory)
        if _may_be(found.read_json(CONFIG_FILE) or {}, repository):
            return found
    return None


def in_cache(name: str) -> Repository | None:
    """Find what was downloaded of a repository; None if nothing was."""
    from huggingface_hub import constants  # a part that loads quickly

    repository, revision = parse(name)
    return _in_cache(Path(constants.HF_HUB_CACHE), repository, revision)


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
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))
    except LocalEntryNotFoundError:
        raise  # there is no network; this is a kind of EntryNotFoundError
    except EntryNotFoundError:
        return None


def command(name: str, directory: str = "weights") -> str:
    """The command that downloads a repository into a directory of weights."""
    repository, revision = parse(name)
    pinned = f" --revision {revision}" if revision else ""
    return f"hf download {repository}{pinned} --local-dir {directory}/{repository}"


def _described_in(directory: Path, name: str) -> Repository | None:
    repository = in_directory(directory, name)
    has_config = repository is not None and (repository.directory / CONFIG_FILE).is_file()
    return repository if has_config else None


def _of_earlier_run(choice: str, name: str, directory: Path | None) -> Description:
    """What the spec of an earlier run keeps of its model's files."""
    from trainer.models.weights.sources import spec_of  # imports torch

    repository, _ = parse(name)
    spec = spec_of(choice)
    if spec is not None and "hub" in spec.options:
        description = Description.from_dict(spec.options["hub"])
        if description.name == repository:
            return description
    if spec is not None:
        raise WeightsError(
            f"{choice} holds weights of {spec.model}, but this run trains {name}; incremental training needs "
            f"the same model. Use --model {spec.model}, or other weights"
        )
    where = "" if directory is None else f" in {directory / repository}, {directory} and its cache layout"
    raise WeightsError(
        f"--weights {choice}: holds no {CONFIG_FILE} of {repository}, which describes the model; looked"
        f"{where}. Download the model's files: {command(name, str(directory or 'weights'))}"
    )


def _in_cache_or_downloaded(name: str) -> Repository:
    """The repository whose config.json describes a model."""
    repository, revision = parse(name)
    cached = in_cache(name)
    if cached is not None and (cached.directory / CONFIG_FILE).is_file():
        return cached
    try:
        path = download(repository, CONFIG_FILE, revision)
        if path is not None:
            for other in (PREPROCESSOR_FILE, PROCESSOR_FILE):
                if download(repository, other, path.parent.name) is not None:
                    break
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(_not_fetched(name, error)) from error
    if path is None:
        raise WeightsError(
            f"https://huggingface.co/{repository} has no {CONFIG_FILE}, without which its network cannot be "
            "built; choose another model"
        )
    return Repository(repository, path.parent, path.parent.name)


def _not_fetched(name: str, error: Exception) -> str:
    repository, revision = parse(name)
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"):
        lacks_revision = kind.startswith("Revision")
        what = f"no revision {revision}" if lacks_revision else "no such model, or it needs a login"
        return (
            f"https://huggingface.co/{repository}: the Hub has {what} ({kind}). Check the name; for a gated "
            "or private model, accept its terms on that page and log in: hf auth login"
        )
    return (
        f"{CONFIG_FILE} of {repository}, which describes the model, is not on this machine and could not be "
        f"fetched from https://huggingface.co/{repository} ({kind}). On a machine with a network, run "
        f"`{command(name)}`, copy the directory here, and give --weights weights"
    )


def _directory_of(choice: str) -> Path | None:
    """The directory that a choice of weights names; for no weights, that in TRAINER_WEIGHTS."""
    if choice == NONE:
        choice = os.environ.get("TRAINER_WEIGHTS") or NONE
    if choice in (NONE, PRETRAINED) or is_address(choice):
        return None
    path = Path(os.path.expanduser(choice))
    return path.parent if path.is_file() else path


def _in_cache(cache: Path, repository: str, revision: str) -> Repository | None:
    """A snapshot in the layout of the Hub's cache: of the revision, or else of main or the only one."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    named = folder / "refs" / (revision or _MAIN)
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else revision
    snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    if commit:
        snapshots = [path for path in snapshots if path.name == commit]
    return Repository(repository, snapshots[0], snapshots[0].name) if len(snapshots) == 1 else None


def _may_be(config: Mapping[str, Any], repository: str) -> bool:
    """Whether a config.json may be a repository's: timm's name the architecture, others say too little."""
    architecture = config.get("architecture")
    if architecture is None:
        return not repository.startswith("timm/")
    return str(architecture) == re.split(r"[./]", repository)[1]
