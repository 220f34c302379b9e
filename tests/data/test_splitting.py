"""Splitting data: class fractions, sizes, determinism."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Folder, Records
from trainer.data.splitting import split
from trainer.errors import DataError, JobError
from trainer.tasks import Task


def records_of(task: Task, labels: Sequence[Sequence[int]]) -> Records:
    """Records with these classes each image."""
    flat = np.array([label for image in labels for label in image], dtype=np.int32)
    lengths = [len(image) for image in labels]
    count = len(labels)
    return Records(
        task=task,
        classes=tuple(f"{n:03}" for n in range(int(flat.max()) + 1)),
        files=("train.jsonl",),
        file_index=np.zeros(count, dtype=np.int32),
        lines=np.arange(1, count + 1, dtype=np.int32),
        folders=(Folder("", "/"),),
        folder_index=np.zeros(count, dtype=np.int32),
        names=b"x" * count,
        name_starts=np.arange(count + 1),
        sizes=np.zeros((count, 2), dtype=np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=flat,
        boxes=np.zeros((len(flat), 4), dtype=np.float32),
        crowd=np.zeros(len(flat), dtype=np.bool_),
    )


def object_counts(records: Records, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.bincount(records.subset(indices).labels, minlength=len(records.classes))


def random_label_sets(count: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 13)
    return [
        generator.choice(12, generator.integers(0, 5), p=weights / weights.sum()).tolist()
        for _ in range(count)
    ]


@pytest.mark.parametrize("size", [0.1, 0.2, 0.37, 0.5])
def test_multiclass_is_exact(size: float) -> None:
    counts = [100, 50, 30, 10, 5, 2, 1]
    labels = [[label] for label, count in enumerate(counts) for _ in range(count)]
    records = records_of(Task.CLASSIFICATION, labels)
    train, validation = split(records, Task.CLASSIFICATION, size, seed=1)
    assert len(validation) == round(len(labels) * size)
    for count, held_out in zip(counts, object_counts(records, validation), strict=True):
        assert abs(held_out - count * size) < 1
    assert (object_counts(records, train) > 0).all()


@pytest.mark.parametrize("task", [Task.MULTILABEL, Task.DETECTION, Task.SEGMENTATION])
@pytest.mark.parametrize("size", [0.1, 0.2, 0.5])
def test_label_sets_keep_their_fractions(task: Task, size: float) -> None:
    sets = random_label_sets(600)
    records = records_of(task, [sorted(set(labels)) for labels in sets] if task is Task.MULTILABEL else sets)
    train, validation = split(records, task, size, seed=3)
    total = object_counts(records, np.arange(600))
    held_out = object_counts(records, validation)
    assert (np.abs(held_out - total * size) <= 2 + 0.03 * total).all()
    assert abs(len(validation) - 600 * size) <= 600 * 0.03
    background = np.diff(records.starts) == 0
    assert abs(background[validation].sum() - background.sum() * size) <= 1
    assert (object_counts(records, train) > 0).all()


def test_stratified_split_is_better_than_a_random_one() -> None:
    records = records_of(Task.DETECTION, random_label_sets(200, seed=5))
    total = object_counts(records, np.arange(200))

    def error(indices: np.ndarray[Any, Any]) -> float:
        return float(np.abs(object_counts(records, indices) / total - 0.2).mean())

    stratified = np.mean([error(split(records, Task.DETECTION, 0.2, seed)[1]) for seed in range(5)])
    chance = np.mean([error(np.random.default_rng(seed).permutation(200)[:40]) for seed in range(20)])
    assert stratified < chance / 2


@pytest.mark.parametrize("task", list(Task))
def test_every_image_is_in_one_part_and_seeds_decide(task: Task) -> None:
    sets = [[n % 4] for n in range(40)]
    records = records_of(task, sets)
    first, again, other = (split(records, task, 0.25, seed) for seed in (7, 7, 8))
    assert sorted([*first[0], *first[1]]) == list(range(40))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert first[1].tolist() != other[1].tolist()
    assert all((np.diff(part) > 0).all() for part in first)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("size", [0.01, 0.2, 0.99])
@pytest.mark.parametrize(
    "sets", [[[0], [0]], [[0], [1]], [[0], [0], [1]], [[0]] * 5 + [[1]], [[0], [1], [2]]]
)
def test_tiny_sets_have_both_parts(task: Task, size: float, sets: list[list[int]]) -> None:
    records = records_of(task, sets)
    train, validation = split(records, task, size, seed=0)
    assert len(train) >= 1
    assert len(validation) >= 1
    for label, count in Counter(label for labels in sets for label in labels).items():
        if count >= 2 or len(sets) - len(set(map(tuple, sets))) > 0:
            assert object_counts(records, train)[label] >= 1


def test_the_only_image_of_a_class_stays_in_training() -> None:
    sets = [[0], [0, 1], *[[0]] * 30, [2]]
    for seed in range(20):
        train, _ = split(records_of(Task.DETECTION, sets), Task.DETECTION, 0.5, seed)
        assert {1, 32} <= set(train.tolist())


@pytest.mark.parametrize("task", [Task.MULTILABEL, Task.DETECTION, Task.SEGMENTATION])
@pytest.mark.parametrize("size", [0.01, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(("labelled", "background"), [(2, 3), (2, 1), (3, 40), (2, 0)])
def test_both_parts_have_labels(task: Task, size: float, labelled: int, background: int) -> None:
    records = records_of(task, [[]] * (background // 2) + [[0]] * labelled + [[]] * -(-background // 2))
    for seed in range(5):
        for part in split(records, task, size, seed):
            assert object_counts(records, part)[0] >= 1


def test_label_in_validation_replaces_a_background() -> None:
    """Stratification alone would leave both images with an object in training."""
    records = records_of(Task.DETECTION, [[]] * 18 + [[0]] * 2)
    for seed in range(5):
        _, validation = split(records, Task.DETECTION, 0.2, seed)
        assert object_counts(records, validation).tolist() == [1]
        assert len(validation) == 4


def test_crowds_are_no_labels_to_split_by() -> None:
    records = records_of(Task.DETECTION, [[0]] * 20)
    crowd = np.ones(20, dtype=np.bool_)
    crowd[[3, 11]] = False
    for seed in range(5):
        for part in split(dataclasses.replace(records, crowd=crowd), Task.DETECTION, 0.1, seed):
            assert np.isin([3, 11], part).sum() == 1


@pytest.mark.parametrize(("task", "noun"), [(Task.MULTILABEL, "a label"), (Task.DETECTION, "an object")])
def test_one_image_with_a_label_cannot_be_split(task: Task, noun: str) -> None:
    with pytest.raises(DataError, match=f"train.jsonl:3: at least two images with {noun} are needed") as told:
        split(records_of(task, [[], [], [0], []]), task, 0.2, 0)
    assert "--validation-data" in str(told.value)


@pytest.mark.parametrize("size", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_out_of_range_are_errors(size: float) -> None:
    with pytest.raises(JobError, match="--validation-data-size: must be above 0 and below 1"):
        split(records_of(Task.CLASSIFICATION, [[0], [0]]), Task.CLASSIFICATION, size, 0)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least two images are needed"):
        split(records_of(Task.CLASSIFICATION, [[0]]), Task.CLASSIFICATION, 0.2, 0)


def test_many_images_take_little_time() -> None:
    generator = np.random.default_rng(0)
    sets = generator.integers(0, 80, (50_000, 3)).tolist()
    records = records_of(Task.DETECTION, sets)
    begin = time.process_time()
    _, validation = split(records, Task.DETECTION, 0.2, 0)
    assert time.process_time() - begin < 3  # a million in a minute
    assert abs(len(validation) - 10_000) < 100


def test_split_of_real_data(shared_data: Path) -> None:
    cases = [
        ("cards/multilabel", Task.MULTILABEL),
        ("cards/detection", Task.DETECTION),
        ("nuclei", Task.SEGMENTATION),
    ]
    for folder, task in cases:
        records = read([shared_data / folder / "train.jsonl"], task).records
        _, validation = split(records, task, 0.2, 0)
        shares = object_counts(records, validation) / object_counts(records, np.arange(len(records)))
        assert (np.abs(shares - 0.2) < 0.04).all(), (folder, shares)


def test_split_of_a_file(write_lines: Callable[..., Path]) -> None:
    path = write_lines([{"image_url": str(n), "label": "ab"[n % 2]} for n in range(10)])
    train, validation = split(read([path], Task.CLASSIFICATION).records, Task.CLASSIFICATION, 0.2, 0)
    assert (len(train), len(validation)) == (8, 2)
