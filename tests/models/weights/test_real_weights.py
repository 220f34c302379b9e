"""Published weights themselves: `make real-weights` makes them, and continuous integration has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.real_weights import renamed
from tests.models.weights.test_loading import family_of
from trainer.data.images import decode
from trainer.data.reading.jsonl import read
from trainer.models.weights import loading as weights
from trainer.tasks import Task

MODEL = "timm/tf_efficientnet_lite0"


def test_all_tensors_but_the_head_are_loaded(real_weights: Path) -> None:
    family = family_of(Task.CLASSIFICATION, MODEL)
    network = family.build()
    loaded = weights.load(network, MODEL, family.published(), str(real_weights))
    assert loaded is not None
    assert set(loaded.fresh) == {"classifier.weight", "classifier.bias"}
    published = load_file(real_weights / "tf_efficientnet_lite0.safetensors")
    for name, tensor in network.state_dict().items():
        assert name in loaded.fresh or torch.equal(tensor, published[name]), name


def test_features_tell_the_classes_of_photographs_apart(real_weights: Path, shared_data: Path) -> None:
    """By the nearest class mean of frozen features."""
    family = family_of(Task.CLASSIFICATION, MODEL)
    family.spec.options.update(resize_size=110, crop_size=96)
    network = family.build()
    weights.load(network, MODEL, family.published(), str(real_weights))
    network.eval()

    def features(name: str) -> tuple[torch.Tensor, np.ndarray]:
        records = read([shared_data / "fridge_multiclass" / name], Task.CLASSIFICATION).records
        indices = range(len(records))
        batch = torch.stack([family.preprocess(decode(records.source(i)))[0] for i in indices])
        with torch.inference_mode():
            pooled = network.forward_head(network.forward_features(batch), pre_logits=True)  # type: ignore[operator]
        return torch.nn.functional.normalize(pooled), np.array([records.target(i) for i in indices])

    training, labels = features("train.jsonl")
    validation, expected = features("validation.jsonl")
    means = torch.stack([training[labels == label].mean(0) for label in range(4)])
    found = torch.cdist(validation, means).argmin(1).numpy()
    assert (found == expected).mean() > 0.7  # guessing reaches 0.25


def test_tensors_of_another_network_are_rejected(real_weights: Path) -> None:
    published = load_file(real_weights / "tf_efficientnet_lite1.safetensors")
    with pytest.raises(SystemExit, match=r"lite0: the package has \d+ tensors, timm's network \d+"):
        renamed(published, "lite0")
    network = dict(load_file(real_weights / "tf_efficientnet_lite0.safetensors"))
    with pytest.raises(SystemExit, match=r"lite0: .* is torch.float32 \[.*\], but timm's .* is"):
        renamed(dict(reversed(network.items())), "lite0")
