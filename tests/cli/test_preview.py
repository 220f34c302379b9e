"""`trainer preview` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from trainer import cli
from trainer.cli.preview import _task_of
from trainer.data.samples import make
from trainer.errors import JobError
from trainer.tasks import Task

OBJECT: dict[str, Any] = {"label": "a", "topX": 0, "topY": 0, "bottomX": 1, "bottomY": 1}


def run(*arguments: object) -> None:
    cli.app(["preview", *map(str, arguments)], exit_on_error=False, result_action="return_value")


@pytest.mark.parametrize(
    ("label", "task"),
    [
        ("a", Task.CLASSIFICATION),
        (3, Task.CLASSIFICATION),
        (["a", "b"], Task.MULTILABEL),
        ([OBJECT], Task.DETECTION),
        ([{"label": "a", "polygon": [[0, 0, 1, 0, 1, 1]]}], Task.SEGMENTATION),
    ],
)
def test_first_label_that_is_not_empty_shows_the_task(tmp_path: Path, label: Any, task: Task) -> None:
    lines = ["", *(json.dumps({"image_url": "x.jpg", "kind": each}) for each in ([], label))]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), "utf-8")
    assert _task_of(str(tmp_path / "train.jsonl"), "kind") is task


def test_sheet_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(Task.MULTILABEL, tmp_path / "digits", images=10, seed=1)
    sheet = tmp_path / "sheet.jpg"
    model = (
        "--model",
        "timm/test_resnet",
        "--recipe",
        "reference",
        "--training-crop-size",
        48,
        "--validation-crop-size",
        48,
    )
    run("--data", data.train, *model, "--images", 1, "--draws", 1, "--random-seed", 3, "--output", sheet)
    assert capsys.readouterr().out == f"timm/test_resnet, recipe reference\npreview  {sheet}\n"
    with PILImage.open(sheet) as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "image-classification"), "--data: must be given"),
        (("--data", "none.jsonl"), "--task: must be given: only the labels in a local .jsonl file"),
        (
            ("--data", "x", "--images", "0", "--draws", "-1"),
            r"--images: must be at least 1, got 0\n.*--draws",
        ),
        (("--data", "x", "--output", "sheet.gif"), "--output: must end in one of .png"),
        (
            ("--data", "x", "--task", "image-classification", "--augmentation", "none.yaml"),
            "augmentation: must be a readable file",
        ),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=message):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []
