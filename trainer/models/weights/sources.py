"""Finds the file that the user chose: published weights, downloaded or local, or those of an earlier run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch

from trainer.errors import WeightsError
from trainer.models.spec import Spec
from trainer.models.weights import hub
from trainer.models.weights.choice import BEST_CHILD_TAG, MODEL_ARTIFACT, PRETRAINED, is_address
from trainer.models.weights.reading import brief, read_spec, shards, spec_in_checkpoint

if TYPE_CHECKING:
    from trainer.models.weights.published import PublishedWeights

# Where a run stores its packaged weights, with their spec in the same directory.
_PACKAGED = ("model/artifacts", "artifacts", ".")
_WEIGHTS_FILE, _SPEC_FILE = "weights.pt", "spec.json"
_BEST_CHECKPOINT = "checkpoints/best.ckpt"

_AMBIGUOUS = ("checkpoint_best_regular.pth",)  # rfdetr's name for several models and for all that it trains
_MD5 = "md5:"  # marks a hash of this kind


@dataclass(frozen=True, slots=True)
class Source:
    """A file of weights.

    Attributes:
        path: the file.
        name: its name in messages.
        spec: the spec of an earlier run's network; None for published files.
        named: the user named this very file.
        note: a sentence for the user, or "".
    """

    path: Path
    name: str
    spec: Spec | None = None
    named: bool = False
    note: str = ""


def find(choice: str, model: str, published: PublishedWeights, scratch: Path) -> Source:
    """Find the chosen file. Only "pretrained" and MLflow addresses may use the network.

    Args:
        choice: "pretrained", a directory of published files, a run's directory, a packaged model, a file, or
            an MLflow address.
        scratch: an empty directory for MLflow's downloads, needed until the file is read.

    Raises:
        WeightsError: there is no such file, or it is not the published one.
    """
    if choice == PRETRAINED:
        return _source(_download(model, published))
    if is_address(choice):
        return _from_mlflow(choice, scratch)
    path = Path(os.path.expanduser(choice))
    if path.is_file():
        return Source(path, str(path), spec=_spec_of(path), named=True, note=_mismatch(path, published))
    if not path.is_dir():
        raise WeightsError(
            f"--weights {path}: no such file or directory; give a file, a directory of published files, a "
            "run's directory, or none"
        )
    return _of_run(path) or _source(_in_directory(path, model, published))


def spec_of(choice: str) -> Spec | None:
    """The spec of the earlier run or packaged model that a choice names; None if it names none.

    Raises:
        WeightsError: MLflow has no such model, or the spec is damaged.
    """
    if is_address(choice):
        return _spec_in_mlflow(choice)
    path = Path(os.path.expanduser(choice))
    source = _of_run(path) if path.is_dir() else Source(path, str(path), spec=_spec_of(path))
    if source is None:
        return None
    if source.spec is None and source.path.suffix == ".ckpt":
        return spec_in_checkpoint(source.path)
    return source.spec


def published_names(published: PublishedWeights) -> tuple[str, ...]:
    """Every name that the file may have in a directory, including the one in its address."""
    at_address = PurePosixPath(published.url).name
    names = published.files
    if at_address.endswith((".pth", ".pt", ".bin", ".safetensors")) and at_address not in _AMBIGUOUS:
        names += (at_address,)
    return tuple(dict.fromkeys(names))


def hash_in_name(name: str) -> str:
    """The start of a file's SHA-256 as given in its name, `name-HASH.pth`; "" if there is none."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return found[1] if found else ""


def _source(path: Path) -> Source:
    return Source(path, str(path))


def _of_run(directory: Path) -> Source | None:
    """The evaluated weights of a run or packaged model; for an unfinished run, the best so far.

    None if the directory holds neither.
    """
    for place in _PACKAGED:
        path = directory / place / _WEIGHTS_FILE
        spec = _spec_of(path)
        if spec is not None and path.is_file():
            return Source(path, str(path), spec=spec)
    path = directory / _BEST_CHECKPOINT
    if not path.is_file():
        return None
    return Source(path, str(path), note="the run has not finished; this is its best epoch so far")


def _spec_of(path: Path) -> Spec | None:
    """The spec next to a packaged model's weights, or that of a checkpoint's run."""
    places = [path.parent / _SPEC_FILE]
    if path.parent.name == "checkpoints":
        places.append(path.parent.parent / _PACKAGED[0] / _SPEC_FILE)
    for place in places:
        if place.is_file():
            return read_spec(place.read_bytes(), place)
    return None


def _spec_in_mlflow(address: str) -> Spec | None:
    import mlflow

    with _found_in_mlflow(address):
        artifact = _model_of_run(address) or _version_of(address)
    return _downloaded_spec(artifact, (mlflow.get_tracking_uri(), mlflow.get_registry_uri()))


@lru_cache(maxsize=8)
def _downloaded_spec(artifact: str, _stores: tuple[str, str]) -> Spec | None:
    """The spec of a model in the current stores, which one command asks for several times.

    Args:
        artifact: an address that always names the same model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _from_mlflow(artifact, Path(scratch)).spec


def _version_of(address: str) -> str:
    """The address of the version that an alias, a stage or `latest` of a registered model stands for now."""
    if re.fullmatch(r"models:/([^/@]+@[^/]+|[^/]+/\D[^/]*)", address) is None:
        return address
    from mlflow import MlflowClient
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    parts = get_model_name_and_version(MlflowClient(), address)  # type: ignore[no-untyped-call]
    return f"models:/{'/'.join(map(str, parts))}"


@contextmanager
def _found_in_mlflow(address: str) -> Iterator[None]:
    """Raise a WeightsError if MLflow does not find a model."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise WeightsError(
            f"{address}: MLflow found no such model in its store at {mlflow.get_tracking_uri()}: "
            f"{brief(error)}. Set MLFLOW_TRACKING_URI to the right store, or give the run's directory"
        ) from error


def _from_mlflow(address: str, scratch: Path) -> Source:
    from mlflow.artifacts import download_artifacts

    with _found_in_mlflow(address):
        artifact = _model_of_run(address) or address
        directory = Path(download_artifacts(artifact_uri=artifact, dst_path=str(scratch)))
    found = _of_run(directory)
    if found is None or found.spec is None:
        raise WeightsError(
            f"{artifact}: has no artifacts/{_WEIGHTS_FILE}; only models packaged by `trainer fit` can be "
            "trained further"
        )
    return Source(found.path, artifact, spec=found.spec)


def _model_of_run(address: str) -> str | None:
    """The address of an MLflow run's model; None if the address names more than the run.

    For a sweep that is the model of its best trial. Runs of older versions have none but a registered model.
    """
    from mlflow import MlflowClient

    named = re.fullmatch(r"runs:/([^/]+)/?", address)
    if named is None:
        return None
    client = MlflowClient()
    best = client.get_run(named[1]).data.tags.get(BEST_CHILD_TAG, named[1])
    outputs = client.list_artifacts(best, str(PurePosixPath(MODEL_ARTIFACT).parent))
    is_there = any(file.path == MODEL_ARTIFACT for file in outputs)
    return f"runs:/{best}/{MODEL_ARTIFACT if is_there else 'model'}"


def _in_directory(directory: Path, model: str, published: PublishedWeights) -> Path:
    names = published_names(published)
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None and published.hub:
        repository = hub.in_directory(directory, published.hub)
        path = None if repository is None else repository.weights()
    if path is None:
        places = (*names, f"{published.hub}/{hub.WEIGHTS_FILES[0]}") if published.hub else names
        raise WeightsError(
            f"--weights {directory}: holds no weights for {model}; looked for {' or '.join(places)}, and for "
            "the weights of a run. Put the file there, name it with --weights FILE, or train from scratch "
            "with --weights none"
        )
    if note := _mismatch(path, published):
        raise WeightsError(
            f"{path} is not the published file: {note}. Download it again "
            f"(`trainer weights --model {model}` prints the address); if you made it yourself, name the "
            f"file: --weights {path}"
        )
    return path


def _mismatch(path: Path, published: PublishedWeights) -> str:
    """How a file with a published name differs from the published file; "" if it does not."""
    return _difference(path, _hash(published, path.name)) if path.name in published_names(published) else ""


def _hash(published: PublishedWeights, name: str) -> str:
    """The published hash of a file: the known start of its SHA-256, or its MD5; "" if there is none."""
    has_md5 = published.md5 and name in (published.files[0], PurePosixPath(published.url).name)
    return hash_in_name(name) or (f"{_MD5}{published.md5}" if has_md5 else "")


def _difference(path: Path, expected: str) -> str:
    if not expected:
        return ""
    name: str = "SHA-256"
    make: Any = hashlib.sha256
    if expected.startswith(_MD5):  # detects damage only: a forger could match it
        name, make, expected = "MD5", partial(hashlib.md5, usedforsecurity=False), expected.removeprefix(_MD5)
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, make).hexdigest()
    if actual.startswith(expected):
        return ""
    if len(actual) == len(expected):
        return f"its {name} must be {expected}, but is {actual}"
    return f"its {name} must begin with {expected}, but begins with {actual[: len(expected)]}"


def _download(model: str, published: PublishedWeights) -> Path:
    """The published file, from the library's cache or else downloaded; checked either way."""
    if not (published.hub or published.url):
        raise WeightsError(f"{model} has no published weights; use --weights none or --weights FILE")
    try:
        if published.comes_from_hub or hub.has_cached_weights(published.hub):
            path, difference = _from_hub(published.hub)
        else:
            path = _from_address(published)
            difference = _difference(path, _hash(published, PurePosixPath(published.url).name))
    except (OSError, ValueError, RuntimeError) as error:
        # huggingface_hub and urllib both raise OSError without a network.
        from_hub = published.comes_from_hub
        where = f"https://huggingface.co/{published.hub}" if from_hub else published.url
        raise WeightsError(
            f"the pretrained weights of {model} are not on this machine and could not be fetched from "
            f"{where} ({type(error).__name__}). Either put {published.files[0]} into a directory and give "
            "--weights DIR (or TRAINER_WEIGHTS=DIR), or train from scratch with --weights none"
        ) from error
    if difference:
        raise WeightsError(
            f"{path.resolve()} is not the file published for {model}: {difference}. Delete it and try again; "
            "if that does not help, something between this machine and the publisher alters the download"
        )
    return path


def _from_hub(name: str) -> tuple[Path, str]:
    """A repository's weights in the Hub's cache, and how they differ from what the Hub states, or "".

    Args:
        name: ORG/NAME or ORG/NAME@REVISION.
    """
    # Try the cache first: without a network, asking the Hub for a newer version takes long.
    cached = hub.in_cache(name)
    path = None if cached is None else cached.weights()
    repository, revision = hub.parse(name)
    if cached is not None:
        revision = cached.revision  # the weights must be of the commit of the config.json that is there
    if path is None:
        downloads = (_downloaded(repository, file, revision) for file in hub.WEIGHTS_FILES)
        found = next(filter(None, downloads), None)
    else:
        found = path, _sha256_of_etag(path.resolve().name)
    if found is None:
        raise FileNotFoundError(f"the repository has none of {', '.join(hub.WEIGHTS_FILES)}")
    path = found[0]
    files = [found]
    for shard in shards(path):
        is_here = shard.is_file()
        file = (shard, _sha256_of_etag(shard.resolve().name)) if is_here else None
        files += filter(None, [file or _downloaded(repository, shard.name, path.parent.name)])
    return path, next(filter(None, (_difference(*file) for file in files)), "")


def _downloaded(repository: str, name: str, revision: str) -> tuple[Path, str] | None:
    """A downloaded file, with the SHA-256 that the Hub states, or ""; None if there is no such file."""
    path = hub.download(repository, name, revision)
    if path is None:
        return None
    # The Hub's cache stores a file under its ETag, except where it cannot make links.
    expected = _sha256_of_etag(path.resolve().name)
    if not expected:
        import huggingface_hub

        address = huggingface_hub.hf_hub_url(repository, name, revision=path.parent.name)
        expected = _sha256_of_etag(huggingface_hub.get_hf_file_metadata(address).etag or "")
    return path, expected


def _sha256_of_etag(etag: str) -> str:
    """A large file's ETag at the hub is its SHA-256; those of others are not, for which this is ""."""
    return etag if re.fullmatch(r"[0-9a-f]{64}", etag) else ""


def _from_address(published: PublishedWeights) -> Path:
    file = Path(torch.hub.get_dir()) / "checkpoints" / published.files[0]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        # An incomplete or wrong file never gets the published name.
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            part = Path(scratch) / file.name
            torch.hub.download_url_to_file(published.url, str(part), progress=sys.stderr.isatty())
            if difference := _difference(part, _hash(published, PurePosixPath(published.url).name)):
                raise WeightsError(
                    f"the file downloaded from {published.url} is not the published one: {difference}. It "
                    "was deleted; try again, or download it on another machine and give --weights DIR"
                )
            shutil.move(part, file)
    return file
