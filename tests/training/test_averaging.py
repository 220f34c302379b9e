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
