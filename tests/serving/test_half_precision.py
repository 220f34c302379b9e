"""Scoring in half precision: the answers differ a little, and the service says by how much."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trainer
from serving.half_precision import difference
from serving.predict import predict_files
from serving.scorer import Scorer
from serving.service import launch
from serving.service.options import Options
from tests.serving.conftest import image_file
from trainer import cli
from trainer.data.images import decode
from trainer.errors import RunError
from trainer.models.precision import Precision
from trainer.tasks import Task

Packaged = Callable[..., Path]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    file.write_bytes(image_file())
    return file


def scores(answer: dict[str, object]) -> np.ndarray:
    boxes = answer.get("boxes")
    return np.array([box["score"] for box in boxes] if isinstance(boxes, list) else answer["probs"])


@pytest.mark.parametrize(
    ("task", "precision"),
    [(Task.CLASSIFICATION, "bf16"), (Task.CLASSIFICATION, "fp16"), (Task.DETECTION, "bf16")],
)
def test_answers_in_half_precision_are_close_to_those_in_float32(
    task: Task, precision: Precision, packaged: Packaged, image: Path
) -> None:
    whole, half = (
        next(predict_files(packaged(task), [image], precision=each)) for each in ("auto", precision)
    )
    assert whole.keys() == half.keys()
    count = min(len(scores(whole)), len(scores(half)))
    assert count
    apart = np.abs(scores(half)[:count] - scores(whole)[:count]).max()
    assert 0 < apart < 0.02
    scorer = Scorer.load(packaged(task) / "artifacts", "cpu", precision)
    tensor, geometry = scorer.preprocess(decode(image))
    for each in (scorer, scorer.replica()):  # as the service scores
        parameters = each.parameters({})
        (output,) = each.infer([tensor], parameters)
        assert scores(json.loads(each.encoded(output, geometry, parameters))) == pytest.approx(
            scores(half), abs=1e-4
        )


def test_service_says_how_far_half_precision_is_from_float32(
    packaged: Packaged, caplog: pytest.LogCaptureFixture
) -> None:
    for task, words in (
        (Task.CLASSIFICATION, r"probabilities differ by up to (0\.0\d*|\de-\d+);"),
        (Task.DETECTION, r"scores differ by up to (0\.0\d*|\de-\d+), and boxes by 0\.\d\d% of"),
    ):
        work = launch._Work(packaged(task) / "artifacts", Options(cores=1), None, False, "cpu", "bf16")
        scorer = launch._load(work)
        assert scorer.precision == "bf16"
        assert re.search(f"scoring in bf16: on images of coloured rectangles, {words}", caplog.text)
        assert "`trainer evaluate --precision bf16` has the metrics on your data" in caplog.text
    caplog.clear()
    launch._load(launch._Work(work.artifacts, work.options, None, False, "cpu", "float32"))
    assert not caplog.text
    assert "up to 0, and boxes by 0.00%" in difference(Scorer.load(work.artifacts, "cpu", "float32"))


def test_command_serves_in_the_precision(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(launch, "serve", lambda *_, **more: given.update(more))
    cli.app(
        ["serve", str(packaged(Task.CLASSIFICATION)), "--precision", "bf16"], result_action="return_value"
    )
    assert given["precision"] == "bf16"


def test_tf32_needs_a_gpu(packaged: Packaged) -> None:
    message = "--precision tf32: needs a GPU, not cpu; use float32, bf16 or fp16"
    with pytest.raises(RunError, match=message):
        Scorer.load(packaged(Task.CLASSIFICATION) / "artifacts", "cpu", "tf32")
    with pytest.raises(RunError, match=message):
        trainer.evaluate(packaged(Task.CLASSIFICATION), data="missing.jsonl", device="cpu", precision="tf32")
