"""The balanced sampler: how often images of each class are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.annotations import Objects, Target
from trainer.models.family import TrainingDataset
from trainer.models.training_items import Draw
from trainer.training.balance import image_weights
from trainer.training.loading import EpochSampler, SeededItems


def objects(labels: list[int], crowd: list[bool] | None = None) -> Objects:
    boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (len(labels), 1))
    return Objects(boxes, np.array(labels, np.int64), np.array(crowd or [False] * len(labels), bool))


def test_each_class_gets_an_equal_share() -> None:
    targets: list[Target] = [0] * 8 + [1] * 2
    weights = image_weights(targets, classes=3)
    assert weights[:8] == pytest.approx(1 / 16)
    assert weights[8:] == pytest.approx(1 / 4)


def test_an_image_counts_by_the_rarest_of_its_classes() -> None:
    targets: list[Target] = [np.array(row) for row in ([True, False], [True, False], [True, True])]
    # Class 0 is in three images, class 1 in one: 1/3, 1/3 and 1.
    assert image_weights(targets, classes=2) == pytest.approx([0.2, 0.2, 0.6])


def test_images_without_objects_keep_their_share() -> None:
    targets: list[Target] = [objects([0]), objects([0, 0]), objects([1]), objects([]), objects([1], [True])]
    assert image_weights(targets, classes=2) == pytest.approx([0.15, 0.15, 0.3, 0.2, 0.2])
    assert image_weights([objects([]), objects([])], classes=2) == pytest.approx([0.5, 0.5])


def test_the_sampler_draws_by_these_weights_repeatably_and_shared() -> None:
    targets: list[Target] = [0] * 90 + [1] * 10
    weights = image_weights(targets, classes=2)
    drawn = np.zeros(100)
    for epoch in range(100):
        sampler = EpochSampler(100, 3, 0, 1, weights)
        sampler.set_epoch(epoch)
        for draw in sampler:
            drawn[draw.example] += 1
    assert drawn[:90].sum() / drawn.sum() == pytest.approx(0.5, abs=0.02)
    whole, halves = EpochSampler(100, 3, 0, 1, weights), [EpochSampler(100, 3, r, 2, weights) for r in (0, 1)]
    assert [d for pair in zip(*halves, strict=True) for d in pair] == list(whole)


def test_repeated_draws_of_an_image_are_augmented_differently() -> None:
    class Drawn(TrainingDataset):
        def item(self, draw: Draw) -> float:
            return float(torch.rand(()))

    items = SeededItems(Drawn(), 3)
    sampler = EpochSampler(10, 3, 0, 1, np.full(10, 0.1))
    draws = list(sampler)
    assert len({draw.example for draw in draws}) < 10
    assert {items[draw] for draw in draws} == {items[draw] for draw in sampler}
    assert len({items[draw] for draw in draws}) == 10
    # An image that is drawn once is augmented as without weights.
    assert items[Draw(0, 4)] == items[Draw(0, 4, repeat=0)]
    assert [draw.repeat for draw in EpochSampler(10, 3, 0, 1)] == [0] * 10
