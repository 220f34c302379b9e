"""The moving average against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainer.training.averaging import WeightAverage


def test_follows_the_formula_and_counts_on_after_loading() -> None:
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, decay=0.9, tau=5)
    expected = 1.0
    for step in range(1, 8):
        with torch.no_grad():
            network.weight.fill_(step)
        network.num_batches_tracked += 1
        decay = 0.9 * (1 - math.exp(-step / 5))
        expected = decay * expected + (1 - decay) * step
        average.update(network)
        assert average.network.weight.item() == pytest.approx(expected, rel=1e-5)
        if step == 4:
            state = average.state_dict()
            average = WeightAverage(nn.BatchNorm1d(1), decay=0.9, tau=5)
            average.load_state_dict(state)
    assert average.network.num_batches_tracked == 7
    assert not any(p.requires_grad for p in average.network.parameters())


def test_in_proportion_to_the_training_it_averages_short_ones_too() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, tau=None)
    slow = WeightAverage(network)
    expected = network.weight.item()
    for step in range(1, 101):
        with torch.no_grad():
            network.weight.fill_(step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * step
        for each in (average, slow):
            each.update(network)
    assert average.network.weight.item() == pytest.approx(expected, rel=1e-4)
    # A mean over the last tenth or so of 100 steps; with ultralytics' ramp all but the last weights.
    assert 85 < average.network.weight.item() < 95
    assert slow.network.weight.item() > 99


def test_however_long_the_training_the_decay_has_its_ceiling() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, decay=0.5, tau=None)
    for step in range(20):
        with torch.no_grad():
            network.weight.fill_(step)
        average.update(network)
    assert average.network.weight.item() == pytest.approx(18, abs=0.01)  # Σ 2⁻ᵏ(19 − k)
