"""`trainer evaluate` as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluating.conftest import write_lines
from trainer import cli
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")

BOX = {"topX": 0.1, "topY": 0.1, "bottomX": 0.5, "bottomY": 0.5}


def test_a_model_in_a_process_of_its_own(
    packaged: Callable[..., Path], targets: Callable[[Task], Path], tmp_path: Path
) -> None:
    arguments = [
        "evaluate", packaged(Task.DETECTION), "--data", targets(Task.DETECTION), "--output", tmp_path / "out",
        "--slice-by", "camera", "--device", "cpu", "--apply-thresholds", "--model-output", tmp_path / "best",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from trainer.cli import main; main()", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=300, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))["figures"]
    assert f"mean_average_precision  {metrics['mean_average_precision']:.4f}" in done.stdout
    titles = ["kinds of errors", "best score thresholds", "slices", "of each class", "metrics on 6 images"]
    places = [done.stdout.index(title) for title in titles]
    assert places == sorted(places)  # the metrics come last, where a terminal ends
    assert "왼쪽" in done.stdout
    assert "camera: is no key" not in done.stderr
    assert done.stdout.endswith(f"thresholds applied: {tmp_path / 'best'}\n")
    spec = json.loads((tmp_path / "best" / "artifacts" / "spec.json").read_text("utf-8"))
    assert len(spec["class_score_thresholds"]) == 3


def test_answers_without_any_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    details = {"format": "png", "width": 100, "height": 100}
    label = [{"label": "[red]can", "isCrowd": 0, **BOX}]
    data = write_lines(
        tmp_path / "test.jsonl", [{"image_url": "a.png", "image_details": details, "label": label}]
    )
    answers = write_lines(
        tmp_path / "answers.jsonl", [{"boxes": [{"box": BOX, "label": "[red]can", "score": 0.8}]}]
    )
    with pytest.raises(SystemExit) as ended:
        cli.app(
            [
                "evaluate",
                "--task",
                "image_object_detection",
                "--predictions",
                str(answers),
                "--data",
                str(data),
            ]
        )
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "[red]can" in printed  # a class's name is no markup
    assert "mean_average_precision  1.0000" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "d.jsonl"], "give either a run or model, or --predictions, got neither"),
        (
            ["run", "--predictions", "a.jsonl", "--data", "d"],
            "give either a run or model, or --predictions, got",
        ),
        (["--predictions", "a.jsonl", "--data", "d"], "--task: is required with --predictions"),
        (
            ["--predictions", "p", "--task", "x", "--data", "d", "--device", "cuda:7"],
            "--device: applies only to a model, not to --predictions, got cuda:7",
        ),
        (
            ["--predictions", "p", "--task", "x", "--data", "d", "--box-score-thresh", "0.4"],
            "--box-score-threshold: applies only to a model, not to --predictions, got 0.4",
        ),
        (
            ["run", "--data", "d", "--validation-iou-threshold", "7"],
            r"--iou-threshold: must be in \[0.1, 1\], got 7",
        ),
        (
            ["run", "--data", "d", "--task", "x"],
            "--task: applies only to --predictions; a model knows its task",
        ),
        (["run", "--data", "d", "--model-output", "m"], "--model-output: needs --apply-thresholds"),
    ],
)
def test_flags_that_cannot_be_combined_are_errors(arguments: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        cli.app(["evaluate", *arguments])
