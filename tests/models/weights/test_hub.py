"""The files of a Hub repository: where they are found, what is read of them, and what is downloaded."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models.weights.conftest import Pages
from trainer.errors import WeightsError
from trainer.models.weights import hub, loading
from trainer.models.weights.describing import describe
from trainer.models.weights.description import Description
from trainer.models.weights.published import PublishedWeights

NAME = "acme/tiny-vit"
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
CONFIG = {
    "model_type": "vit",
    "hidden_size": 8,
    "id2label": {"0": "x", "1": "y", "2": "z"},
    "auto_map": {"a": "b"},
}
PREPROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5]}


def write(directory: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """Write a repository's files; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {"config": CONFIG if config is None else config, "preprocessor_config": PREPROCESSOR, **files}
    for name, content in contents.items():
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


PLACES = {
    "directory": "",
    "organisation": NAME,
    "cache": f"models--acme--tiny-vit/snapshots/{COMMIT}",
    "home": f"hub/models--acme--tiny-vit/snapshots/{COMMIT}",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("_no_network")
def test_a_model_is_described_wherever_its_files_are_below_the_directory(tmp_path: Path, place: str) -> None:
    write(tmp_path / PLACES[place])
    description = describe(NAME, str(tmp_path))
    assert description.name == NAME
    assert description.config == {"model_type": "vit", "hidden_size": 8, "num_labels": 3}
    assert description.preprocessor == PREPROCESSOR
    assert description.revision == (COMMIT if "snapshots" in PLACES[place] else "")
    assert Description.from_dict(json.loads(json.dumps(description.to_dict()))) == description


def test_the_image_processor_may_be_one_of_several(tmp_path: Path) -> None:
    write(tmp_path, preprocessor_config=None, processor_config={"image_processor": PREPROCESSOR})
    assert describe(NAME, str(tmp_path)).preprocessor == PREPROCESSOR


@pytest.mark.usefixtures("_no_network")
def test_a_revision_in_the_name_chooses_the_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "hub/models--acme--tiny-vit"
    write(cache / "snapshots" / COMMIT)
    write(cache / "snapshots" / OTHER_COMMIT, {"model_type": "swin"})
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(OTHER_COMMIT, encoding="utf-8")
    for choice in ("pretrained", str(tmp_path)):
        assert describe(NAME, choice).config["model_type"] == "swin"
    pinned = describe(f"{NAME}@{COMMIT}", "pretrained")
    assert (pinned.config["model_type"], pinned.revision) == ("vit", COMMIT)
    with pytest.raises(WeightsError, match="could not be fetched"):
        describe(f"{NAME}@{'c' * 40}", "pretrained")


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("choice", ["pretrained", "none"])
def test_without_files_and_network_the_error_says_which_file_is_missing_and_how_to_get_it(
    choice: str,
) -> None:
    with pytest.raises(WeightsError) as caught:
        describe(NAME, choice)
    said = str(caught.value)
    assert "config.json of acme/tiny-vit" in said
    assert "(the Hub cannot be reached)" in said
    assert "`hf download acme/tiny-vit --local-dir weights/acme/tiny-vit`" in said
    assert "--weights weights" in said


@pytest.mark.usefixtures("_no_network")
def test_a_network_from_scratch_is_described_by_the_directory_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "files" / NAME)
    monkeypatch.setenv("TRAINER_WEIGHTS", str(tmp_path / "files"))
    assert describe(NAME, "none").config["model_type"] == "vit"


def test_a_directory_of_something_else_is_rejected_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        describe(NAME, str(tmp_path))
    assert f"hf download {NAME} --local-dir {tmp_path}/{NAME}" in str(caught.value)
    write(tmp_path, {"architecture": "resnet18"})  # timm's: of one model alone
    assert hub.in_directory(tmp_path, "timm/resnet18.a1_in1k") is not None
    assert hub.in_directory(tmp_path, "timm/resnet50.a1_in1k") is None


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """The repository in the Hub's cache without its preprocessor, as a download of the network leaves it."""
    cache = tmp_path / "hub/models--acme--tiny-vit"
    write(cache / "snapshots" / COMMIT, preprocessor_config=None)
    return cache


def test_a_preprocessor_that_the_cache_lacks_is_fetched_at_its_commit(
    incomplete: Path, hub_pages: Pages
) -> None:
    serve(hub_pages, "preprocessor_config.json", json.dumps(PREPROCESSOR).encode())
    del hub_pages[f"/{NAME}/resolve/main/preprocessor_config.json"]
    described = [describe(NAME, "pretrained")]
    hub_pages.clear()  # nothing is asked for again
    described.append(describe(NAME, "pretrained"))
    assert [(each.preprocessor, each.revision) for each in described] == [(PREPROCESSOR, COMMIT)] * 2


@pytest.mark.usefixtures("_no_network")
def test_a_preprocessor_is_missed_unless_the_cache_says_that_there_is_none(incomplete: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"preprocessor_config\.json of acme/tiny-vit, .* could not be fet"
    ):
        describe(NAME, "pretrained")
    for name in (hub.PREPROCESSOR_FILE, hub.PROCESSOR_FILE):
        absent = incomplete / ".no_exist" / COMMIT / name
        absent.parent.mkdir(parents=True, exist_ok=True)
        absent.touch()
    assert describe(NAME, "pretrained").preprocessor == {}


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError, match=str(tmp_path / "config.json")):
        describe(NAME, str(tmp_path))


def serve(pages: Pages, name: str, content: bytes) -> None:
    """Put a file into the repository, at main and at its commit; large files by their SHA-256, as the Hub."""
    etag = hashlib.sha256(content).hexdigest()
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
    for revision in ("main", COMMIT):
        pages[f"/{NAME}/resolve/{revision}/{name}"] = (content, headers)


def sharded(directory: Path, network: nn.Module) -> PublishedWeights:
    """Write a network's weights in two shards with their index, as the Hub has large ones."""
    directory.mkdir(parents=True, exist_ok=True)
    names = {}
    for number, (key, value) in enumerate(network.state_dict().items()):
        names[key] = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({key: value}, directory / names[key])
    index = {"metadata": {}, "weight_map": names}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return PublishedWeights(files=(f"{NAME}/model.safetensors",), hub=NAME)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("_no_network")
def test_shards_are_read_as_one_file(tmp_path: Path, place: str) -> None:
    source, network = nn.Linear(2, 3), nn.Linear(2, 3)
    published = sharded(write(tmp_path / PLACES[place]), source)
    loaded = loading.load(network, "tiny", published, str(tmp_path))
    assert loaded is not None
    assert (loaded.taken, loaded.fresh) == (2, ())
    assert torch.equal(network.weight, source.weight)
    assert torch.equal(network.bias, source.bias)


def test_an_index_that_names_files_elsewhere_is_rejected(tmp_path: Path) -> None:
    index = {"weight_map": {"weight": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    published = PublishedWeights(files=("model.safetensors.index.json",))
    with pytest.raises(WeightsError, match=r"files next to it, got '\.\./secret"):
        loading.load(nn.Linear(1, 1), "tiny", published, str(tmp_path))


def test_a_download_is_of_one_commit_and_every_shard_is_checked(tmp_path: Path, hub_pages: Pages) -> None:
    source, network = nn.Linear(2, 3), nn.Linear(2, 3)
    published = sharded(tmp_path / "made", source)
    for path in (tmp_path / "made").iterdir():
        serve(hub_pages, path.name, path.read_bytes())
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        serve(hub_pages, name, json.dumps(content).encode())
    del hub_pages[f"/{NAME}/resolve/main/preprocessor_config.json"]  # as if main had changed meanwhile
    description = describe(NAME, "pretrained")
    assert description.revision == COMMIT
    assert description.preprocessor == PREPROCESSOR
    # What the Hub has become since does not matter: the commit is that of the description.
    for path in [path for path in hub_pages if "/main/" in path]:
        del hub_pages[path]
    loaded = loading.load(network, "tiny", published, "pretrained")
    assert loaded is not None
    assert f"/snapshots/{COMMIT}/model.safetensors.index.json" in loaded.source
    assert torch.equal(network.weight, source.weight)
    # Nothing is asked for again.
    hub_pages.clear()
    assert describe(NAME, "pretrained") == description
    assert loading.load(network, "tiny", published, "pretrained") == loaded
    shard = next((tmp_path / "hub").rglob("model-00002-of-00002.safetensors")).resolve()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match="its SHA-256 must be"):
        loading.load(network, "tiny", published, "pretrained")


def test_a_download_neither_reports_to_the_hub_nor_repeats_what_its_library_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("huggingface_hub")

    def fetch(*_: Any, **__: Any) -> str:
        logger.warning("Retrying in 1s")
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(logger, "propagate", True)
    assert hub.download(NAME, "config.json") == tmp_path / "config.json"
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    assert not caplog.records
    logger.warning("something else")
    assert caplog.messages == ["something else"]


def test_a_model_that_the_hub_lacks_is_said_to_be_unknown(hub_pages: Pages) -> None:
    hub_pages[f"/{NAME}/resolve/main/config.json"] = (b"", {"X-Error-Code": "RepoNotFound"})
    with pytest.raises(WeightsError, match="no such model, or it needs a login"):
        describe(NAME, "pretrained")
