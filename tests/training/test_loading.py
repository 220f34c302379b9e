"""Batches depend on seed and epoch alone, and every rank gets its share."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from trainer.models.family import TrainingDataset
from trainer.models.training_items import Draw
from trainer.training.loading import EpochSampler, SeededItems, move, validation_share


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


def test_few_images_are_mixed_with_all_others() -> None:
    for length, cached in ((256, 200), (2000, 2000), (2000, 0)):
        sampler = EpochSampler(length, 1, 0, 1, batch_size=4, workers=2, cached=cached)
        assert {draw.pool for draw in sampler} == {()}


def test_many_images_are_mixed_with_those_that_their_worker_has_cached() -> None:
    batch, workers = 16, 2
    sampler = EpochSampler(2000, 1, 0, 1, batch_size=batch, workers=workers, cached=218)
    found = list(sampler)
    batches = [found[start : start + batch] for start in range(0, len(found), batch)]
    for number, drawn in enumerate(batches):
        (pool,) = {draw.pool for draw in drawn}
        own = [
            draw.example for earlier in batches[number % workers : number + 1 : workers] for draw in earlier
        ]
        assert 64 <= len(pool) <= 128
        assert set(own[-128:]) <= set(pool)
        if len(own) >= 64:
            assert set(pool) == set(own[-128:])
    # Guests are drawn again for each of the first batches, and the same again by the seed.
    assert len({draw.pool for draw in found[: 4 * batch]}) == 4
    assert [draw.pool for draw in sampler] == [draw.pool for draw in found]
    large = EpochSampler(2000, 1, 0, 1, batch_size=300, cached=218)
    assert {len(draw.pool) for draw in large} == {300, 200}
    # No more than are cached.
    assert {len(draw.pool) for draw in EpochSampler(2000, 1, 0, 1, batch_size=16, cached=40)} == {40, 48}


class Dice(TrainingDataset):
    def item(self, draw: Draw) -> tuple[int, float, float, float]:
        return draw.example, random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


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


def test_a_loader_worker_makes_the_same_items() -> None:
    items: Any = SeededItems(Dice(), seed=3)
    draws = [Draw(1, index) for index in range(6)]
    loader = DataLoader(items, batch_size=2, sampler=draws, num_workers=2, collate_fn=list)  # type: ignore[arg-type]
    assert [item for batch in loader for item in batch] == [items[draw] for draw in draws]


def test_move_keeps_what_is_no_tensor() -> None:
    marker = object()
    batch = {"images": [torch.ones(2)], "pair": (torch.zeros(1), marker), "name": "x"}
    moved = move(batch, torch.device("meta"))
    assert moved["images"][0].device.type == "meta"
    assert moved["pair"][0].device.type == "meta"
    assert moved["pair"][1] is marker
    assert moved["name"] == "x"
