"""Records as a collection: subsets, unions, pickles, memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.annotations import Objects
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records, concatenate
from trainer.tasks import Task

NAMES = ("가", "b", "c")


def random_lines(task: Task, count: int, seed: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)

    def box() -> list[float]:
        left, top = generator.random(2) * 0.5
        return [left, top, left + 0.3, top + 0.2]

    def label() -> Any:
        amount = int(generator.integers(4))
        names = [str(name) for name in generator.choice(NAMES, amount)]
        if task is Task.CLASSIFICATION:
            return str(generator.choice(NAMES))
        if task is Task.MULTILABEL:
            return sorted(set(names))
        if task is Task.DETECTION:
            keys = ("topX", "topY", "bottomX", "bottomY")
            return [
                {"label": name, **dict(zip(keys, box(), strict=True)), "isCrowd": amount % 2}
                for name in names
            ]
        points = [[float(v) for v in generator.random(6 + 2 * part)] for part in range(amount)]
        return [{"label": name, "polygon": points} for name in names]

    return [{"image_url": f"폴더{n % 3}/{seed}-{n}.jpg", "label": label()} for n in range(count)]


def assert_same(target: Any, other: Any) -> None:
    if not isinstance(target, Objects):
        np.testing.assert_array_equal(target, other)
        return
    for name in ("boxes", "labels", "crowd"):
        np.testing.assert_array_equal(getattr(target, name), getattr(other, name))
    assert (target.polygons is None) == (other.polygons is None)
    for parts, others in zip(target.polygons or (), other.polygons or (), strict=True):
        assert len(parts) == len(others)
        for part, other_part in zip(parts, others, strict=True):
            np.testing.assert_array_equal(part, other_part)


@pytest.fixture(params=list(Task))
def two_sets(request: pytest.FixtureRequest, write_lines: Callable[..., Path]) -> tuple[Records, Records]:
    task = request.param
    paths = [write_lines(random_lines(task, 40, seed), f"{seed}.jsonl") for seed in (1, 2)]
    first, second = (read([path], task) for path in paths)
    assert first.problems == second.problems == []
    return first.records, second.records


def test_subset(two_sets: tuple[Records, Records]) -> None:
    records, _ = two_sets
    order = [7, 3, 39, 0, 12]
    chosen = records.subset(order)
    assert len(chosen) == 5
    for position, index in enumerate(order):
        assert chosen.location(position) == records.location(index)
        assert chosen.source(position) == records.source(index)
        assert_same(chosen.target(position), records.target(index))
    assert len(records.subset([])) == 0


def test_concatenate(two_sets: tuple[Records, Records]) -> None:
    first, second = two_sets
    # other classes, in another order: as if the second set had names of its own
    renamed = second.relabelled(("a", *second.classes))
    both = concatenate([first, renamed])
    assert both.classes == tuple(sorted({*first.classes, "a"}))
    for index in range(80):
        part, position = (first, index) if index < 40 else (second, index - 40)
        assert both.location(index) == part.location(position)
        assert both.image_url(index) == part.image_url(position)
        assert_same(both.target(index), part.target(position, both.classes))


def test_without_unused_classes(two_sets: tuple[Records, Records]) -> None:
    records, _ = two_sets
    padded = records.relabelled(("0", *records.classes, "힣"))
    cleaned = padded.without_unused_classes()
    assert cleaned.classes == records.classes
    assert_same(cleaned.target(5), records.target(5))


def test_pickle(two_sets: tuple[Records, Records]) -> None:
    records, _ = two_sets
    copy = pickle.loads(pickle.dumps(records))
    assert copy.image_urls == records.image_urls
    assert_same(copy.target(11), records.target(11))


def test_target_needs_all_classes(two_sets: tuple[Records, Records]) -> None:
    with pytest.raises(KeyError):
        two_sets[0].target(0, ("nothing",))


def test_changing_a_target_does_not_change_the_records(write_lines: Callable[..., Path]) -> None:
    records = read([write_lines(random_lines(Task.SEGMENTATION, 9, 3))], Task.SEGMENTATION).records
    before = pickle.dumps(records)
    for index in range(9):
        target = records.target(index)
        assert isinstance(target, Objects)
        assert target.polygons is not None
        for array in (target.boxes, target.labels, *(part for parts in target.polygons for part in parts)):
            array += 1
    assert pickle.dumps(records) == before


def test_a_record_with_three_boxes_takes_less_than_250_bytes(write_lines: Callable[..., Path]) -> None:
    box = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6, "isCrowd": 0}
    path = write_lines([{"image_url": f"images/{n:07d}.jpg", "label": [box] * 3} for n in range(5000)])
    assert len(pickle.dumps(read([path], Task.DETECTION).records)) / 5000 < 250
