"""DETRs start from their published weights, whose tensors transformers renames."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from tests.models.test_detr import ARCHITECTURES, built, tiny, with_classes
from trainer.errors import WeightsError
from trainer.models import create
from trainer.models.weights import loading as weights


def publish(network: Any, directory: Path) -> Path:
    """The network's weights as its publisher has them on the Hub: under their older names."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    path = directory / "model.safetensors"
    older = revert_weight_conversion(network, state)
    save_file({key: value.contiguous() for key, value in older.items()}, path)
    return path


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_published_weights_start_all_but_the_head_without_a_network(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tiny(model)
    theirs = built(with_classes(case, 80), seed=1)
    path = publish(theirs, tmp_path)

    def forbidden(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    network = built(case.family)
    published = case.family.published()
    loaded = weights.load(network, model, published, str(path), case.family.spec)
    assert loaded is not None
    own, state = network.state_dict(), theirs.state_dict()
    assert set(loaded.fresh) == {key for key in own if key.startswith(published.head)}
    assert set(loaded.left) == set(loaded.fresh)
    taken = [key for key in own.keys() - loaded.fresh if not key.endswith("num_batches_tracked")]
    assert [key for key in taken if not torch.equal(own[key], state[key])] == []
    layers = [layer for layer, _ in case.family.class_layers(network)]
    fresh = {key.rpartition(".")[0] for key in loaded.fresh} - {"model.denoising_class_embed"}
    assert {name for name, layer in network.named_modules(remove_duplicate=False) if layer in layers} == fresh


def test_heads_that_all_layers_share_may_be_published_once(tmp_path: Path) -> None:
    case = tiny("deformable-detr")
    config = {**case.family.spec.options["config"], "decoder_layers": 2}
    spec = case.family.spec.model_copy(update={"options": {"image_size": 64, "config": config}})
    theirs, network = built(create(spec), seed=1), built(create(spec))
    assert theirs.bbox_embed[1] is theirs.bbox_embed[0]
    path = publish(theirs, tmp_path)
    once = {key: value for key, value in load_file(path).items() if "_embed.1." not in key}
    save_file(once, path)
    loaded = weights.load(network, "deformable-detr", case.family.published(), str(path), spec)
    assert loaded is not None
    assert loaded.fresh == ()
    assert torch.equal(network.bbox_embed[1].layers[0].weight, theirs.bbox_embed[0].layers[0].weight)


def saved(directory: Path, state: dict[str, Tensor], name: str) -> Path:
    """A file as RF-DETR's authors publish it: with the settings of its training."""
    path = directory / name
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4, class_names=["x"]), "epoch": 3}, path)
    return path


def originals(network: Any) -> dict[str, Tensor]:
    """The network's tensors under the authors' names, with the buffer that newer files have."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    return {**revert_weight_conversion(network, state), "_kp_active_mask": torch.zeros(0)}


def test_a_file_of_rfdetrs_authors_is_checked_against_their_md5(tmp_path: Path) -> None:
    case = tiny("rfdetr-nano")
    state = originals(built(with_classes(case, 91), seed=1))
    assert "backbone.0.encoder.encoder.embeddings.position_embeddings" in state
    file = saved(tmp_path, state, "rf-detr-nano.pth")
    published = case.family.published()
    with pytest.raises(WeightsError, match="its MD5 must be fb6504cce7fbdc783f7a46991f07639f, but is"):
        weights.load(case.build(), "rfdetr-nano", published, str(tmp_path))
    digits = hashlib.md5(file.read_bytes()).hexdigest()
    loaded = weights.load(
        case.build(), "rfdetr-nano", dataclasses.replace(published, md5=digits), str(tmp_path)
    )
    assert loaded is not None
    assert loaded.notes == ()


IN_CACHE = f"models--Roboflow--rf-detr-nano/snapshots/{'a' * 40}/model.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "rf-detr-nano.safetensors",
        "rf-detr-nano/model.safetensors",
        "Roboflow/rf-detr-nano/model.safetensors",
        IN_CACHE,
    ],
)
def test_the_hubs_file_of_an_rfdetr_is_not_the_one_with_the_md5(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tiny("rfdetr-nano")
    path = publish(built(with_classes(case, 80), seed=1), tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    path.rename(tmp_path / name)
    choices = [str(tmp_path)]
    if name == IN_CACHE:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        choices.append("pretrained")
    for choice in choices:
        loaded = weights.load(case.build(), "rfdetr-nano", case.family.published(), choice)
        assert loaded is not None
        assert loaded.source == str(tmp_path / name)


def test_more_published_queries_are_cut_in_each_group(tmp_path: Path) -> None:
    case = tiny("rfdetr-nano")
    state = originals(built(with_classes(case, 91), seed=1))
    name = "refpoint_embed.weight"
    groups, queries = case.family.config.group_detr, case.family.config.num_queries
    state[name] = torch.randn(groups * 30, 4)
    network = case.build()
    file = saved(tmp_path, state, "rf-detr-nano.pth")
    weights.load(network, "rfdetr-nano", case.family.published(), str(file), case.family.spec)
    taken = network.get_parameter("model.reference_point_embed.weight").view(groups, queries, 4)
    assert torch.equal(taken, state[name].view(groups, 30, 4)[:, :queries])


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    other = publish(built(tiny("rtdetrv2-r18").family), tmp_path)
    case = tiny("dfine-n")
    with pytest.raises(WeightsError, match=r"model.safetensors does not fit dfine-n"):
        weights.load(case.build(), "dfine-n", case.family.published(), str(other), case.family.spec)
