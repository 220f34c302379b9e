"""`validate` is fast: what it costs next to parsing alone, and next to a line that is not well-formed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.reading_lines import write_lines as write_benchmark_lines
from trainer.data.reading import jsonl
from trainer.data.validate import validate
from trainer.tasks import Task


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def test_validation_is_faster_than_parsing_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_benchmark_lines(path, 10_000)
    lines = path.read_bytes().splitlines()
    datastores = {"store": "https://example.org"}
    ratios = []
    for _ in range(4):
        parsing = seconds(lambda: [None for line in lines if json.loads(line) is None])
        ratios.append(seconds(lambda: validate(Task.DETECTION, [path], datastores=datastores)) / parsing)
    assert min(ratios) < 0.8, "0.63 when this was written, and at most 0.9 for any well-formed lines"


def test_one_odd_line_is_read_carefully_and_no_other(
    write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
    lines = [{"image_url": f"{number}.jpg", "label": [box, box]} for number in range(600)]
    lines[298]["label"] = [{**box, "isCrowd": "0"}]
    examined = []
    original = jsonl.examine_line
    monkeypatch.setattr(jsonl, "examine_line", lambda *values: examined.append(values) or original(*values))
    result = jsonl.read([write_lines(lines)], Task.DETECTION)
    assert len(examined) == 1
    assert result.records.lines.tolist() == list(range(1, 601))
    assert result.records.starts[[298, 299, 600]].tolist() == [596, 597, 1199]
    assert [problem.where.rsplit(":", 1)[1] for problem in result.problems] == ["299"]
