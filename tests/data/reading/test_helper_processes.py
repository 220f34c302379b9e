"""Large files are read in several processes, with the same result."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data.reading import data_file, helper_processes
from trainer.data.reading.helper_processes import Helpers
from trainer.data.reading.jsonl import read
from trainer.tasks import Task


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_processes, "available_cores", lambda: 3)
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # pytest-xdist has threads of its own


def label_of(task: Task, number: int) -> Any:
    name = f"class {number % 7}"
    if task is Task.CLASSIFICATION:
        return name
    if task is Task.MULTILABEL:
        return [name, "all"] if number % 5 else []
    corners = {"topX": 0.1, "topY": number / 1000, "bottomX": 0.5, "bottomY": 0.9}
    outline = {"polygon": [[0.1, 0.1, 0.5, 0.1, 0.5, number / 1000]] * (1 + number % 3)}
    return [{"label": name, **(corners if task is Task.DETECTION else outline)}] * (number % 4)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.usefixtures("three_cores")
def test_several_processes_read_the_same(
    task: Task, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[Any] = [
        {
            "image_url": f"folder {number // 60}/{'é' * (number % 3)}{number}.jpg",
            "label": label_of(task, number),
        }
        for number in range(300)
    ]
    lines[0]["image_details"] = {"width": "40px", "height": 30}
    lines[120]["weather"] = "rain"  # unknown keys, other types and errors are left to this process
    lines[130]["image_details"] = {"width": 40.0}
    lines[201] = "{"
    path = write_lines(lines)
    alone = read([path], task)
    monkeypatch.setattr(data_file, "_LARGE_BYTES", 0)
    monkeypatch.setattr(data_file, "_CHUNK_BYTES", 1500)
    results = spy_on_results(monkeypatch)
    together = read([path], task)
    assert sum(result is not None for result in results) >= 3
    assert together.problems == alone.problems
    assert len(together.problems) == 3
    assert together.skipped == alone.skipped
    for field in dataclasses.fields(alone.records):
        one, other = (getattr(result.records, field.name) for result in (alone, together))
        if field.name == "polygons" and one is not None:
            one, other = (dataclasses.astuple(each) for each in (one, other))
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        else:
            assert type(one) is type(other)
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


def spy_on_results(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The list of what helpers return from now on."""
    results: list[object] = []
    original = Helpers.result

    def result(self: Helpers[Any, Any], index: int) -> object:
        results.append(original(self, index))
        return results[-1]

    monkeypatch.setattr(Helpers, "result", result)
    return results


def squared(number: int) -> int:
    if number == 7:
        os._exit(1)
    return number * number


@pytest.mark.usefixtures("three_cores")
def test_results_come_in_turn_until_a_helper_dies() -> None:
    with Helpers(lambda: range(12), squared) as helpers:
        helpers.start()
        results = [helpers.result(number) for number in range(12)]
    assert results == [None, 1, 4, None, 16, 25, None, None, 64, None, None, 121]


@pytest.mark.usefixtures("three_cores")
def test_helpers_end_although_nobody_takes_their_results() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    with Helpers(endless, bytes) as helpers:
        helpers.start()
        processes = [helper.process for helper in helpers._helpers if helper is not None]
        assert helpers.result(1) == bytes(1 << 20)
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ChildProcessError):
            os.waitpid(process, 0)


def test_a_process_with_threads_forks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_processes, "available_cores", lambda: 3)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    with Helpers(lambda: range(4), squared) as helpers:
        helpers.start()
        assert [helpers.result(number) for number in range(4)] == [None] * 4


@pytest.mark.usefixtures("three_cores")
def test_a_process_that_may_not_fork_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", forbidden)
    with Helpers(lambda: range(4), squared) as helpers:
        helpers.start()
        assert [helpers.result(number) for number in range(4)] == [None] * 4


def test_small_files_are_read_in_this_process(
    write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Helpers, "start", lambda self: pytest.fail("started"))
    path = write_lines([json.dumps({"image_url": "a.jpg", "label": "x"})])
    assert len(read([path], Task.CLASSIFICATION).records) == 1
