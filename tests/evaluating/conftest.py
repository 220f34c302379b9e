"""Small packaged models, and data on which they are partly right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import CLASSES, image_file, packaged  # noqa: F401 (a fixture)
from trainer.tasks import Task

SIZES = ((60, 40), (80, 80), (48, 64), (40, 40), (700, 30), (64, 48))


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture(scope="session")
def targets(
    packaged: Callable[..., Path],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Task], Path]:
    """targets(task) → JSON lines of six images whose targets derive from the packaged model's predictions.

    Some are kept, some shifted, some renamed to another class, and some were not predicted.
    """
    from serving.predict import predict_files

    @cache
    def make(task: Task) -> Path:
        folder = tmp_path_factory.mktemp("targets")
        (folder / "images").mkdir()
        files = [folder / "images" / f"{number}.png" for number in range(len(SIZES))]
        for number, (file, size) in enumerate(zip(files, SIZES, strict=True)):
            file.write_bytes(image_file(number, size))
        lines = []
        for number, answer in enumerate(predict_files(packaged(task), files)):
            line = {
                "image_url": f"images/{number}.png",
                "camera": "왼쪽" if number % 2 else "right",
                "meta": {"lux": number * 1.5},
            }
            lines.append(line | {"label": _label(task, answer, number)})
        return write_lines(folder / "test.jsonl", lines)

    return make


def _label(task: Task, answer: dict[str, Any], number: int) -> Any:
    if task is Task.CLASSIFICATION:
        best = answer["labels"][answer["probs"].index(max(answer["probs"]))]
        return best if number in (0, 3, 5) else CLASSES[number % 3]
    if task is Task.MULTILABEL:
        named = [name for name, prob in zip(answer["labels"], answer["probs"], strict=True) if prob >= 0.5]
        return named[1:] or [CLASSES[0]] if number % 2 else named
    objects = []
    for place, found in enumerate(answer["boxes"][: 4 if number != 2 else 0]):
        label = CLASSES[(CLASSES.index(found["label"]) + (place == 2)) % 3]
        if task is Task.SEGMENTATION:
            objects.append({"label": label, "isCrowd": 0, "polygon": found["polygon"]})
        else:
            box = dict(found["box"])
            if place == 1:
                box["bottomX"] -= 0.3 * (box["bottomX"] - box["topX"])
            objects.append({"label": label, "isCrowd": int(place == 3), **box})
    return objects
