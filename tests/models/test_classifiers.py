"""Classifiers: the documented freeze groups, any timm name, and the weights against imbalance."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.errors import JobError
from trainer.models import Family, Spec, create
from trainer.models.classifiers import class_weights
from trainer.scoring import ScoringParameters
from trainer.settings import resolve
from trainer.tasks import Task

SMALL = {"validation_crop_size": 64, "training_crop_size": 64}


def family_of(model: str, **values: Any) -> Family:
    settings = resolve(Task.CLASSIFICATION, model, {**SMALL, **values})
    options = import_module("trainer.models.classifiers").FAMILY.options(
        Task.CLASSIFICATION, model, settings, False
    )
    return create(
        Spec(
            family="classifiers",
            model=model,
            task=Task.CLASSIFICATION,
            classes=("a", "b", "c"),
            options=options,
            parameters=ScoringParameters(),
        )
    )


@pytest.mark.parametrize(
    ("model", "groups"),
    # resnet conv1+bn1, layer1–4; mobilenetv2 features.0–18; seresnext layer0–4; ViT patch_embed, blocks.0–11
    [
        ("resnet18", 5),
        ("resnet50", 5),
        ("resnest50", 5),
        ("seresnext", 5),
        ("mobilenetv2", 19),
        ("vits16r224", 13),
    ],
)
def test_freeze_groups_are_those_of_the_reference(model: str, groups: int) -> None:
    family = family_of(model)
    network = family.build()
    found = family.freeze_groups(network)
    assert len(found) == groups
    frozen = {id(p) for group in found for layer in group for p in layer.parameters()}
    trained = {name for name, p in network.named_parameters() if id(p) not in frozen}
    # All frozen, the classifier is still trained.
    classifier = {f"{name}.{kind}" for name in family.published().head for kind in ("weight", "bias")}
    assert classifier <= trained
    assert all("layer" not in name and "blocks" not in name for name in trained)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_any_timm_name_trains_and_answers(name: str) -> None:
    family = family_of(f"timm/{name}")
    network = family.build()
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    tensor, geometry = family.preprocess(image)
    items = [family.validation_item(tensor, label, geometry) for label in (0, 2)]
    losses = family.losses(network.train(), family.collate(items))
    assert torch.isfinite(losses["loss_classifier"])
    with torch.inference_mode():
        (prediction,) = family.predict(network.eval(), [image])
    assert prediction.probs.sum() == pytest.approx(1, abs=1e-5)  # type: ignore[union-attr]
    groups = family.freeze_groups(network)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    assert any(first is module for layer in groups[0] for module in layer.modules())
    heads = {id(p) for n, p in network.named_parameters() if n.startswith(family.published().head)}
    assert heads.isdisjoint(id(p) for group in groups for layer in group for p in layer.parameters())


def test_an_unknown_timm_name_gets_near_ones() -> None:
    with pytest.raises(JobError, match=r"has no model 'resnt18'.*did you mean timm/resnet18 "):
        family_of("timm/resnt18")


def test_class_weights_are_the_documented_ones() -> None:
    labels = [0] * 9 + [1] * 3  # imbalance 9 // 3 = 3, over 2; class 2 has no image: 9 // max(1, 0) = 9
    plain = class_weights(labels, 3, multilabel=False, kind=2)
    root = class_weights(labels, 3, multilabel=False, kind=1)
    assert plain is not None
    assert root is not None
    assert plain.tolist() == pytest.approx([1 / 9, 1 / 3, 0])
    assert root.tolist() == pytest.approx([1 / 3, 3**-0.5, 0])
    assert class_weights(labels, 3, multilabel=False, kind=0) is None
    # 2 // 1 is not over 2.
    assert class_weights([0, 0, 1], 2, multilabel=False, kind=2) is None
    sets = [np.array([True, i == 0]) for i in range(8)]
    positive = class_weights(sets, 2, multilabel=True, kind=2)
    assert positive is not None
    assert positive.tolist() == pytest.approx([0, 7])


def test_weighted_loss_weighs_the_loss() -> None:
    family = family_of("resnet18", weighted_loss=2)
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]])
    batch = {"images": torch.zeros(2, 3, 8, 8), "targets": torch.tensor([0, 1])}
    network = nn.Module()
    network.forward = lambda images: logits  # type: ignore[method-assign]
    plain = family.losses(network, batch)["loss_classifier"]
    family.class_weights = torch.tensor([0.1, 0.9, 0.0])  # type: ignore[attr-defined]
    weighted = family.losses(network, batch)["loss_classifier"]
    expected = nn.functional.cross_entropy(logits, batch["targets"], weight=torch.tensor([0.1, 0.9, 0.0]))
    assert weighted.item() == pytest.approx(expected.item())
    assert weighted.item() != pytest.approx(plain.item())
