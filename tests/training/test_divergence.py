"""A run has diverged if its loss is not finite or stays far above its own start, however large that is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from trainer.errors import TrainingError
from trainer.models.defaults import resolve
from trainer.tasks import Task
from trainer.training.divergence import DivergenceWatch


def watch(**values: Any) -> DivergenceWatch:
    return DivergenceWatch(resolve(Task.CLASSIFICATION, "resnet18", values))


def feed(watched: DivergenceWatch, losses: Iterable[float], batches: int = 10, at_once: int = 1) -> None:
    """Let losses be those of consecutive batches, `batches` to an epoch, which are read `at_once`."""
    for number, loss in enumerate(losses):
        batch = number % batches + 1
        watched.add(
            batch, {"cls": torch.tensor(0.5), "box": torch.tensor(loss - 0.5), "loss": torch.tensor(loss)}
        )
        if batch % at_once == 0 or batch == batches:
            watched.check(number // batches + 1, batches)


@pytest.mark.parametrize("start", [0.7, 99.0, 101.0, 5e3, 1e7])
def test_loss_of_any_size_may_start_and_stay(start: float) -> None:
    feed(watch(), [start] * 100)


HEALTHY = {
    "one bad step": [2.0] * 30 + [1e6] * 9 + [3.0] * 30,
    "rising slowly to what guessing costs": [0.01 * 1.017**step for step in range(400)],
    "light batches among heavy ones": [0.1, 0.1, *([60.0] * 15), 0.1, 0.2, *([50.0, 55.0, 0.1] * 30)],
    "one lighter batch at the start": [5.0, *[40.0] * 400],
    "one heavy batch at the start": [900.0, *[40.0] * 100],
    "trained weights that have to be unlearned": [0.001] * 20 + [8.0] * 100,
}


@pytest.mark.parametrize("losses", HEALTHY.values(), ids=HEALTHY)
def test_uneven_losses_are_no_divergence(losses: list[float]) -> None:
    feed(watch(), losses)


@pytest.mark.parametrize("start", [0.7, 300.0])
@pytest.mark.parametrize(("batches", "long"), [(2, 10), (10, 30), (200, 300)])
def test_loss_that_stays_far_above_its_start_is_an_error(start: float, batches: int, long: int) -> None:
    high = 11 * max(1, start)
    feed(watch(), [start] * 40 + [high] * (long - 1) + [start] * 5, batches)
    with pytest.raises(TrainingError) as told:
        feed(watch(), [start] * 40 + [high] * long, batches)
    epoch, batch = 40 // batches + 1, 40 % batches + 1
    assert f"since batch {batch} of epoch {epoch}, every batch has had a loss over 10 times" in str(
        told.value
    )
    assert f"the last of {high:.4g}. Lower learning_rate" in str(told.value)


def test_network_that_diverges_with_its_first_steps_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"over 10 times that of the start \(2\.3\)"):
        feed(watch(), [2.3] + [30.0] * 50)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at_once", [1, 7])
def test_loss_that_is_not_finite_is_an_error_at_once(loss: float, at_once: int) -> None:
    message = (
        rf"diverged in epoch 2, batch 4 of 10: its loss is not finite \(box {loss}\)\. Lower learning_rate"
    )
    with pytest.raises(TrainingError, match=message):
        feed(watch(), [2.0] * 13 + [loss] * 3 + [2.0] * 20, at_once=at_once)


def test_first_loss_that_is_not_finite_blames_no_setting_of_the_steps() -> None:
    with pytest.raises(TrainingError, match=r"before any step was taken: the weights to start from") as told:
        feed(watch(), [math.nan])
    assert "learning_rate" not in str(told.value)


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({}, r"Lower learning_rate \(0.01\), or lengthen warmup_cosine_lr_warmup_epochs \(2\)"),
        ({"learning_rate_scheduler": "step"}, r"Lower learning_rate \(0.01\)"),
        (
            {"learning_rate_scheduler": "step", "gradient_clip_value": None},
            r"Lower learning_rate \(0.01\), or set gradient_clip_norm",
        ),
    ],
)
def test_advice_names_settings_that_take_effect(values: dict[str, Any], advice: str) -> None:
    with pytest.raises(TrainingError, match=advice + "$"):
        feed(watch(learning_rate=0.01, **values), [2.0, math.nan])


def test_resumed_run_is_compared_with_its_own_start() -> None:
    whole = watch()
    feed(whole, [3.0] * 20 + [500.0] * 20)
    resumed = watch()
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    with pytest.raises(TrainingError, match=r"since batch 1 of epoch 3, .* \(3\)"):
        feed(resumed, [500.0] * 10)
