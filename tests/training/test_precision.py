"""Mixed precision, as it is on GPUs, where optimizers are fused: tried on the CPU, which has both, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from tests.training.conftest import job, rows
from trainer.data.samples import SampleData
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.models.classifiers import Classifiers
from trainer.models.precision import Precision, float32_products
from trainer.settings import Settings
from trainer.sweep.execution.slots import make_slots
from trainer.tasks import Task
from trainer.training import devices
from trainer.training.fit import fit
from trainer.training.optimizers import build_optimizer


@pytest.mark.parametrize(
    "clipping", [{"gradient_clip_value": 5.0}, {"gradient_clip_norm": 1.0}, {"optimizer": "adamw"}]
)
def test_mixed_precision_clips_gradients_of_a_backward_pass_outside_of_autocast(
    clipping: dict[str, Any],
    digits: dict[Task, SampleData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = devices.Devices.options
    mixed = {"precision": "bf16-mixed"}
    monkeypatch.setattr(
        devices.Devices, "options", lambda self, *precision: options(self, *precision) | mixed
    )
    in_autocast: list[bool] = []
    losses = Classifiers.losses

    def watched(*arguments: Any) -> dict[str, Tensor]:
        found = losses(*arguments)
        assert torch.is_autocast_enabled("cpu")
        for loss in found.values():
            loss.register_hook(lambda _: in_autocast.append(torch.is_autocast_enabled("cpu")))
        return found

    monkeypatch.setattr(Classifiers, "losses", watched)
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run", **clipping)
    run = fit(wanted.model_copy(update={"tracking_uri": "none"}), packages=False)
    assert len(rows(run)) == 2
    # Under autocast, the backward pass of float32 parts would run in bfloat16.
    assert set(in_autocast) == {False}


@pytest.mark.parametrize(
    ("precision", "lightnings"),
    [("bf16", "bf16-mixed"), ("fp16", "16-mixed"), ("tf32", "32-true"), ("float32", "32-true")],
)
def test_precision_can_be_chosen(
    precision: Precision,
    lightnings: str,
    monkeypatch: pytest.MonkeyPatch,
    digits: dict[Task, SampleData],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", Path("run"))
    wanted = wanted.changed(precision=precision, gpus="auto")
    chosen = devices.choose_devices(wanted, wanted.resolve_settings(), {})
    assert chosen.gpus
    assert chosen.options(wanted.precision)["precision"] == lightnings
    file = tmp_path / "job.yaml"
    file.write_text(wanted.to_yaml(), "utf-8")
    assert Job.read(file).precision == precision


@pytest.mark.parametrize(
    ("gpus", "precision", "message"),
    [
        (0, "bf16", "one that the CPU trains in, got bf16; use auto or float32"),
        (0, "tf32", "one that the CPU trains in, got tf32; use auto or float32"),
        (1, "bf16", "one that this GPU trains in, got bf16; use auto or fp16 or float32"),
        (1, "tf32", "one that this GPU trains in, got tf32; use auto or fp16 or float32"),
    ],
)
def test_precision_that_the_device_lacks_is_an_error(
    gpus: int,
    precision: Precision,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    digits: dict[Task, SampleData],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", Path("run"))
    wanted = wanted.changed(precision=precision, gpus="auto")
    with pytest.raises(JobError, match=message):
        devices.choose_devices(wanted, wanted.resolve_settings(), {})
    if not gpus:
        with pytest.raises(JobError, match=message):
            make_slots(wanted, 2)


def test_float32_products_are_in_tf32_on_gpus_and_then_as_before() -> None:
    def now() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before, benchmark = now(), torch.backends.cudnn.benchmark
    with float32_products("auto", on_gpu=False):
        assert now() == before
    with float32_products("auto", on_gpu=True):
        assert now() == ("high", True)
        with float32_products("float32", on_gpu=True):
            assert now() == ("high", True)  # others count on it
        assert now() == ("high", True)
        torch.backends.cudnn.benchmark = not benchmark  # as Lightning does
    assert now() == before
    assert torch.backends.cudnn.benchmark == benchmark
    with float32_products("float32", on_gpu=True):
        assert now() == ("highest", False)
    assert now() == before


@pytest.mark.parametrize(
    ("native", "capability", "precision"),
    [(True, (9, 0), "bf16-mixed"), (False, (7, 5), "16-mixed"), (False, (6, 1), "32-true")],
)
def test_precision_is_one_for_which_the_gpu_has_units(
    native: bool, capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    of_one = devices.Devices("", gpus=True, nodes=1, node=0, local_ranks=1, local_rank=0)
    assert of_one.options()["precision"] == precision


class Scaled(MixedPrecision):
    """float16's scaler without its products, which take a CPU a minute."""

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def test_scaled_gradients_of_float16_are_clipped_as_others_are(
    digits: dict[Task, SampleData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are multiplied for the backward pass, and divided again before they are clipped."""
    values = {
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "warmup_cosine_lr_warmup_epochs": 0,
        "gradient_clip_norm": 1e-2,
    }
    on_cpu = devices.Devices("", False, 1, 0, 1, 0).options()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    # Lightning itself would take bfloat16 on a CPU, and no scaler.
    scaled = {**on_cpu, "plugins": [*on_cpu["plugins"], Scaled("16-mixed", "cpu", scaler)]}
    losses = []
    for name, options in (("plain", on_cpu), ("scaled", scaled)):
        monkeypatch.setattr(devices.Devices, "options", lambda *_, options=options: options)
        wanted = job(digits, Task.CLASSIFICATION, "timm/test_vit", tmp_path / name, **values)
        run = fit(wanted.model_copy(update={"tracking_uri": "none"}), packages=False)
        losses.append([float(row["train_loss"]) for row in rows(run)])
    assert scaler.state_dict()["_growth_tracker"] > 0
    assert losses[0][0] - losses[0][1] > 0.01
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fused_optimizers_step_as_the_others(optimizer: str) -> None:
    settings = Settings(optimizer=optimizer, learning_rate=0.1)
    networks = []
    for fused in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)
        )
        made = build_optimizer(network, settings)
        assert all(group["fused"] for group in made.param_groups)
        for group in made.param_groups:
            group["fused"] = fused
        for _ in range(3):
            network(torch.rand(2, 3, 8, 8)).square().mean().backward()
            made.step()
            made.zero_grad()
        networks.append(network)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other)
