"""Fingerprints: equal for equal data wherever they are stored, different after any change."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.reading.test_records import random_lines
from trainer.data.fingerprint import changes, fingerprint, summarise
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Scans
from trainer.data.training_data import Data
from trainer.tasks import Task


def data(folder: Path, task: Task, *files: list[dict[str, Any]]) -> Data:
    """Training data from all files but the last, which is for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, lines in enumerate(files):
        paths.append(folder / f"{number}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    train, validation = read(paths[:-1], task).records, read(paths[-1:], task).records
    classes = tuple(sorted({*train.classes, *validation.classes}))
    return Data(train.relabelled(classes), validation.relabelled(classes), classes, [], 0)


def changed(
    lines: list[dict[str, Any]], change: Callable[[list[dict[str, Any]]], Any]
) -> list[dict[str, Any]]:
    lines = copy.deepcopy(lines)
    change(lines)
    return lines


@pytest.mark.parametrize("task", list(Task))
def test_equal_data_have_one_fingerprint(tmp_path: Path, task: Task) -> None:
    lines, validation = random_lines(task, 30, seed=1), random_lines(task, 10, seed=2)
    one = fingerprint(data(tmp_path / "one", task, lines, validation))
    assert len(one) == 32
    assert fingerprint(data(tmp_path / "elsewhere", task, lines, validation)) == one
    assert fingerprint(data(tmp_path / "parts", task, lines[:7], lines[7:], validation)) == one


def test_every_change_of_the_data_changes_the_fingerprint(tmp_path: Path) -> None:
    task = Task.SEGMENTATION
    lines = [line for line in random_lines(task, 40, seed=1) if len(line["label"]) > 1]
    validation = random_lines(task, 10, seed=2)

    def swap_first(lines: list[dict[str, Any]]) -> None:
        lines[0], lines[1] = lines[1], lines[0]

    variants = [
        lines,
        lines[:-1],
        changed(lines, swap_first),
        changed(lines, lambda these: these[0].update(image_url="other.jpg")),
        changed(lines, lambda these: these[0].update(image_url="폴더2/" + these[0]["image_url"][4:])),
        changed(lines, lambda these: these[0]["label"][0].update(label="d")),
        changed(lines, lambda these: these[0]["label"].pop()),
        changed(lines, lambda these: these[0]["label"][0].update(isCrowd=1)),
        changed(lines, lambda these: these[0]["label"][0]["polygon"][0].__setitem__(0, 0.123)),
    ]
    prints = [
        fingerprint(data(tmp_path / str(number), task, variant, validation))
        for number, variant in enumerate(variants)
    ]
    prints.append(fingerprint(data(tmp_path / "split", task, [*lines, validation[0]], validation[1:])))
    assert len(set(prints)) == len(variants) + 1


def test_image_files_that_show_something_else_are_a_change(tmp_path: Path) -> None:
    lines = random_lines(Task.DETECTION, 9, seed=1)
    before = data(tmp_path, Task.DETECTION, lines, lines[:3])
    scans = Scans.empty(len(before.train))
    scans.hashes[:] = 7
    before = replace(before, train=replace(before.train, scans=scans))
    earlier = summarise(before)
    assert changes(earlier, before) == ""
    scans.hashes[4] = 8
    assert changes(earlier, before) == "training data: image files that show something else"
    assert changes(earlier, replace(before, train=replace(before.train, scans=None))) == ""
    del earlier["training"]["pixels"]  # of an earlier version
    assert changes(earlier, before) == ""


def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    lines, validation = random_lines(Task.DETECTION, 9, seed=1), random_lines(Task.DETECTION, 3, seed=2)
    here = fingerprint(data(tmp_path, Task.DETECTION, lines, validation))
    code = """
import sys, pathlib
from tests.data.test_fingerprint import data, fingerprint, random_lines
from trainer.tasks import Task
parts = random_lines(Task.DETECTION, 9, seed=1), random_lines(Task.DETECTION, 3, seed=2)
print(fingerprint(data(pathlib.Path(sys.argv[1]), Task.DETECTION, *parts)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")],
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == here


def test_changes_are_told_by_part(tmp_path: Path) -> None:
    task = Task.DETECTION
    lines = [line for line in random_lines(task, 30, seed=1) if len(line["label"]) > 1]
    validation = random_lines(task, 5, seed=2)
    objects = sum(len(line["label"]) for line in lines)
    summary = json.loads(json.dumps(summarise(data(tmp_path / "first", task, lines, validation))))

    def told(lines: list[dict[str, Any]], validation: list[dict[str, Any]] = validation) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return changes(summary, data(folder, task, lines, validation))

    assert told(lines) == ""
    assert changes({}, data(tmp_path / "unknown", task, lines, validation)) == ""
    moved = changed(lines, lambda these: these[0]["label"][0].update(topX=0.0))
    assert told(moved) == "training data: other objects"
    renamed = changed(lines, lambda these: these[0].update(image_url="other.jpg"))
    assert told(renamed) == "training data: other images or another order of them"
    popped = changed(lines, lambda these: these[0]["label"].pop())
    assert told(popped) == f"training data: {objects - 1} objects instead of {objects}"
    fewer = f"{len(lines) - 1} images instead of {len(lines)}"
    both = told(lines[:-1], [lines[-1], *validation])
    assert both.startswith(f"training data: {fewer}, {objects - len(lines[-1]['label'])} objects instead of")
    assert "; validation data: 6 images instead of 5" in both
