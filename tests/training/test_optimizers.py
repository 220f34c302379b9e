"""Optimizers and schedules against the documented formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from trainer.models import Family, create, specify
from trainer.models.defaults import resolve
from trainer.settings import Settings
from trainer.tasks import Task
from trainer.training.optimizers import build_optimizer, build_schedule, rate_factor


def settings(**values: Any) -> Settings:
    return resolve(Task.CLASSIFICATION, "resnet18", values)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(("warm_up", "cycles"), [(2, 0.45), (0, 0.45), (3, 0.5), (2, 1.0)])
def test_warmup_cosine_is_the_documented_curve(warm_up: int, cycles: float) -> None:
    factor = rate_factor(
        settings(number_of_epochs=10, warmup_cosine_lr_warmup_epochs=warm_up, warmup_cosine_lr_cycles=cycles),
        batches_per_epoch=7,
    )
    w, t = warm_up * 7, 70
    for s in range(t):
        expected = (
            s / w if s < w else max(0.0, 0.5 * (1 + math.cos(2 * math.pi * cycles * (s - w) / (t - w))))
        )
        assert factor(s) == pytest.approx(expected, abs=1e-12)


def test_with_the_default_cycles_the_rate_does_not_quite_reach_zero() -> None:
    factor = rate_factor(settings(number_of_epochs=100), batches_per_epoch=10)
    assert 0.01 < factor(999) < 0.03


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    factor = rate_factor(settings(number_of_epochs=1), batches_per_epoch=10)
    assert [factor(s) for s in range(10)] == pytest.approx([s / 20 for s in range(10)])


def test_step_falls_by_epochs() -> None:
    factor = rate_factor(
        settings(lr_scheduler="step", step_lr_gamma=0.1, step_lr_step_size=2), batches_per_epoch=3
    )
    assert [factor(s) for s in range(15)] == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 3)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_schedule_counts_batches_however_many_make_a_step(accumulation: int) -> None:
    chosen = settings(number_of_epochs=4, grad_accumulation_step=accumulation, learning_rate=0.5)
    optimizer = build_optimizer(network(), chosen)
    schedule = build_schedule(optimizer, chosen, batches_per_epoch=7)
    factor = rate_factor(chosen, batches_per_epoch=7)
    for epoch in range(4):
        for batch in range(0, 7, accumulation):
            rate = optimizer.param_groups[0]["lr"]
            assert rate == pytest.approx(0.5 * factor(epoch * 7 + batch), abs=1e-12)
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_norm_weights_and_biases_do_not_decay(name: str) -> None:
    net = network()
    optimizer = build_optimizer(net, settings(optimizer=name, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(net.parameters()))
    for parameter_name, parameter in net.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter_name in ("0.weight", "3.weight") else 0.0)


def test_optimizer_parameters_arrive() -> None:
    sgd = build_optimizer(network(), settings(momentum=0.7, nesterov=False))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.7, False)
    adam = build_optimizer(network(), settings(optimizer="adam", beta1=0.5, beta2=0.6, amsgrad=True))
    assert type(adam) is torch.optim.Adam
    assert (adam.defaults["betas"], adam.defaults["amsgrad"]) == ((0.5, 0.6), True)
    assert type(build_optimizer(network(), settings(optimizer="adamw"))) is torch.optim.AdamW
    still = build_optimizer(network(), settings(momentum=0))
    assert still.defaults["nesterov"] is False


def test_frozen_parameters_are_left_out() -> None:
    net = network()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net, settings())
    chosen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert chosen == {id(p) for p in net.parameters() if p.requires_grad}


def built(model: str, **values: Any) -> tuple[nn.Module, Settings, list[list[nn.Module]]]:
    small = {"training_crop_size": 32, "validation_crop_size": 32}
    chosen = resolve(Task.CLASSIFICATION, model, {**small, **values})
    family: Family = create(specify(Task.CLASSIFICATION, model, chosen, ("a", "b"), pretrained=False))
    net = family.build()
    return net, chosen, family.freeze_groups(net)


def rates(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each trainable parameter by name."""
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in net.named_parameters() if id(p) in of}


def test_layer_decay_of_a_vit_is_that_of_beit() -> None:
    net, chosen, groups = built("timm/vit_tiny_patch16_224", layer_decay=0.75, learning_rate=0.5)
    found = rates(net, build_optimizer(net, chosen, groups))
    assert found.keys() == dict(net.named_parameters()).keys()
    # 12 blocks: the last learns at .75 of the rate, the first at .75¹², what is before it at .75¹³.
    for name, rate in found.items():
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
        after = name.startswith(("norm.", "head."))
        assert rate == pytest.approx(0.5 if after else 0.5 * 0.75 ** (13 - layer)), name
    assert found["pos_embed"] == found["cls_token"] == found["patch_embed.proj.weight"] == min(found.values())


def test_layer_decay_of_a_resnet_goes_by_its_groups() -> None:
    net, chosen, groups = built("resnet18", layer_decay=0.5, learning_rate=0.32)
    found = rates(net, build_optimizer(net, chosen, groups))
    assert found["fc.weight"] == pytest.approx(0.32)
    expected = {"conv1": 0.01, "bn1": 0.01, "layer1": 0.02, "layer2": 0.04, "layer3": 0.08, "layer4": 0.16}
    for name, rate in found.items():
        assert rate == pytest.approx(expected.get(name.split(".")[0], 0.32)), name


def test_the_schedule_scales_each_groups_own_rate() -> None:
    net, chosen, groups = built("resnet18", layer_decay=0.5, learning_rate=0.32, number_of_epochs=4)
    optimizer = build_optimizer(net, chosen, groups)
    schedule = build_schedule(optimizer, chosen, batches_per_epoch=2)
    factor = rate_factor(chosen, batches_per_epoch=2)
    for batch in range(8):
        found = rates(net, optimizer)
        assert found["fc.weight"] == pytest.approx(0.32 * factor(batch))
        assert found["layer1.0.conv1.weight"] == pytest.approx(0.02 * factor(batch))
        optimizer.step()
        schedule.step()


def test_without_layer_decay_all_learn_alike() -> None:
    net, chosen, groups = built("resnet18")
    optimizer = build_optimizer(net, chosen, groups)
    assert set(rates(net, optimizer).values()) == {0.01}
    assert len(optimizer.param_groups) == 2


def test_a_vits_embeddings_do_not_decay() -> None:
    net, chosen, groups = built("timm/vit_tiny_patch16_224", weight_decay=0.3, layer_decay=0.75)
    optimizer = build_optimizer(net, chosen, groups)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        exempt = name in ("pos_embed", "cls_token") or parameter.ndim == 1
        assert decay[id(parameter)] == (0.0 if exempt else 0.3), name


def test_frozen_groups_stay_out_and_the_others_keep_their_rates() -> None:
    net, chosen, groups = built("resnet18", layer_decay=0.5, learning_rate=0.32)
    for layer in (layer for group in groups[:2] for layer in group):
        layer.requires_grad_(False)
    found = rates(net, build_optimizer(net, chosen, groups))
    assert not any(name.startswith(("conv1", "bn1", "layer1")) for name in found)
    assert found["layer2.0.conv1.weight"] == pytest.approx(0.04)


def test_what_lies_between_groups_learns_as_the_one_before() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(5)))
    optimizer = build_optimizer(net, settings(layer_decay=0.5, learning_rate=0.8), [[net[1]], [net[3]]])
    found = rates(net, optimizer)
    assert [found[f"{i}.weight"] for i in range(5)] == pytest.approx([0.2, 0.2, 0.2, 0.4, 0.8])
