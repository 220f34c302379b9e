"""Batches depend on seed and epoch alone, and every rank gets its share."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trainer.training.loading import Draw, EpochSampler, SeededItems, move, validation_share


def draws(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert {draw.epoch for draw in found} == {epoch}
    return [draw.example for draw in found]


def test_each_epoch_has_an_order_of_its_own_that_the_seed_repeats() -> None:
    one, same, other = (EpochSampler(20, seed, 0, 1) for seed in (1, 1, 2))
    assert sorted(draws(one, 0)) == list(range(20))
    assert draws(one, 0) == draws(same, 0)
    assert draws(one, 0) != draws(one, 1)
    assert draws(one, 0) != draws(other, 0)
    # An epoch does not depend on those before it.
    assert draws(EpochSampler(20, 1, 0, 1), 5) == draws(one, 5)


def test_ranks_share_an_epoch_evenly() -> None:
    shares = [draws(EpochSampler(10, 1, rank, 4), 3) for rank in range(4)]
    assert {len(share) for share in shares} == {3}
    assert set().union(*shares) == set(range(10))
    # What one process would see as a batch of four is what four processes see as batches of one.
    single = draws(EpochSampler(10, 1, 0, 1), 3)
    assert [shares[rank][step] for step in range(2) for rank in range(4)] == single[:8]


class Dice(Dataset[Any]):
    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


def test_ranks_share_the_validation_images_and_none_goes_without() -> None:
    assert [list(validation_share(5, rank, 2)) for rank in range(2)] == [[0, 2, 4], [1, 3]]
    assert [list(validation_share(2, rank, 3)) for rank in range(3)] == [[0], [1], [0]]


def test_an_item_depends_on_seed_epoch_and_index_alone() -> None:
    items = SeededItems(Dice(), seed=3)
    first = items[Draw(2, 7)]
    torch.manual_seed(99)
    random.seed(99)
    assert items[Draw(2, 7)] == first
    assert items[Draw(1, 7)] != first
    assert items[Draw(2, 8)][1:] != first[1:]
    assert SeededItems(Dice(), seed=4)[Draw(2, 7)] != first


def test_the_global_generators_are_put_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    SeededItems(Dice(), seed=3)[Draw(0, 0)]
    assert torch.equal(torch.rand(3), expected)


def test_move_keeps_what_is_no_tensor() -> None:
    marker = object()
    batch = {"images": [torch.ones(2)], "pair": (torch.zeros(1), marker), "name": "x"}
    moved = move(batch, torch.device("meta"))
    assert moved["images"][0].device.type == "meta"
    assert moved["pair"][0].device.type == "meta"
    assert moved["pair"][1] is marker
    assert moved["name"] == "x"
