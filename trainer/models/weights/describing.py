"""Reads what the files of a Hub repository say about its model, wherever they are. Free of torch."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.errors import WeightsError
from trainer.models.weights.choice import NONE, PRETRAINED, is_address
from trainer.models.weights.description import Description
from trainer.models.weights.hub import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    Repository,
    download,
    download_command,
    in_cache,
    in_directory,
    parse,
)

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


def describe(name: str, choice: str) -> Description:
    """Read what a model's files say. They are looked for where its weights are.

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
        f"{where}. Download the model's files: {download_command(name, str(directory or 'weights'))}"
    )


def _in_cache_or_downloaded(name: str) -> Repository:
    """The repository whose config.json describes a model."""
    repository, revision = parse(name)
    cached = in_cache(name)
    if cached is not None and (cached.directory / CONFIG_FILE).is_file():
        if _may_lack_preprocessor(cached):
            _download_preprocessor(name, cached.revision)
        return cached
    try:
        path = download(repository, CONFIG_FILE, revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(_not_fetched(name, CONFIG_FILE, "describes the model", error)) from error
    if path is None:
        raise WeightsError(
            f"https://huggingface.co/{repository} has no {CONFIG_FILE}, without which its network cannot be "
            "built; choose another model"
        )
    _download_preprocessor(name, path.parent.name)
    return Repository(repository, path.parent, path.parent.name)


def _may_lack_preprocessor(cached: Repository) -> bool:
    """Whether a snapshot in the Hub's cache has no preprocessor's file, although its repository may have one.

    The cache has an empty file below .no_exist for each that the Hub was found not to have.
    """
    files = (PREPROCESSOR_FILE, PROCESSOR_FILE)
    absent = cached.directory.parents[1] / ".no_exist" / cached.revision
    is_known = any((cached.directory / file).is_file() for file in files)
    return not is_known and not all((absent / file).is_file() for file in files)


def _download_preprocessor(name: str, commit: str) -> None:
    """Download the file that says how images are prepared, if the repository has one."""
    repository, _ = parse(name)
    try:
        for file in (PREPROCESSOR_FILE, PROCESSOR_FILE):
            if download(repository, file, commit) is not None:
                break
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(_not_fetched(name, file, "says how its images are prepared", error)) from error


def _not_fetched(name: str, file: str, purpose: str, error: Exception) -> str:
    repository, revision = parse(name)
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"):
        lacks_revision = kind.startswith("Revision")
        what = f"no revision {revision}" if lacks_revision else "no such model, or it needs a login"
        return (
            f"https://huggingface.co/{repository}: the Hub has {what} ({kind}). Check the name; for a gated "
            "or private model, accept its terms on that page and log in: hf auth login"
        )
    cause = "the Hub cannot be reached" if kind == "LocalEntryNotFoundError" else kind
    return (
        f"{file} of {repository}, which {purpose}, is not on this machine and could not be "
        f"fetched from https://huggingface.co/{repository} ({cause}). On a machine with a network, run "
        f"`{download_command(name)}`, copy the directory here, and give --weights weights"
    )


def _directory_of(choice: str) -> Path | None:
    """The directory that a choice of weights names; for no weights, that in TRAINER_WEIGHTS."""
    if choice == NONE:
        choice = os.environ.get("TRAINER_WEIGHTS") or NONE
    if choice in (NONE, PRETRAINED) or is_address(choice):
        return None
    path = Path(os.path.expanduser(choice))
    return path.parent if path.is_file() else path
