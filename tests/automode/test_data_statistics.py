"""The data in numbers, computed by hand for a few images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.automode.data_statistics import DataStatistics, measure_data
from trainer.data.training_data import Data, load
from trainer.tasks import Task

ORIENTATION = 0x0112
TURNED = 6  # a quarter


def box(
    left: float, top: float, right: float, bottom: float, label: str = "a", **more: Any
) -> dict[str, Any]:
    return {"label": label, "topX": left, "topY": top, "bottomX": right, "bottomY": bottom, **more}


def read(folder: Path, task: Task, images: list[tuple[tuple[int, int], int, Any]]) -> Data:
    """Data with these images, (width, height) as stored, with their EXIF orientation and label."""
    lines = []
    for number, (size, orientation, label) in enumerate(images):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.new("RGB", size).save(folder / f"{number}.jpg", exif=exif)
        lines.append(json.dumps({"image_url": f"{number}.jpg", "label": label}))
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return load(task, [folder / "data.jsonl"], [folder / "data.jsonl"], progress=False)


@pytest.mark.filterwarnings("ignore")
def test_objects_are_measured_by_their_images_long_side(tmp_path: Path) -> None:
    crowd = box(0, 0, 1, 1, isCrowd=True)
    data = read(
        tmp_path,
        Task.DETECTION,
        [
            ((400, 200), 1, [box(0, 0, 0.1, 0.2), crowd]),  # 40 x 40 of 400: 0.1
            ((200, 400), 1, [box(0.5, 0.5, 0.7, 0.9)]),  # 40 x 160, as large as 80 x 80: 0.2
            ((300, 600), TURNED, [box(0, 0, 0.1, 0.2, "b")] * 3),  # upright 600 x 300: 60 x 60: 0.1
            ((50, 50), 1, []),  # not looked at
        ],
    )
    facts = measure_data(data)
    # sides 0.1, 0.2, 0.1, 0.1, 0.1; widths 400, 200, 600 and heights 200, 400, 300
    assert (facts.images, facts.classes) == (4, 2)
    assert (facts.width, facts.height, facts.long_side, facts.short_side) == (400, 300, 400, 300)
    assert facts.most_objects == 3
    assert facts.object_side == pytest.approx(0.1)
    assert facts.small_object_side == pytest.approx(0.1)
    assert facts.imbalance == pytest.approx(1.0)  # a: 3 with the crowd, b: 3
    assert "a quarter smaller than 10 %" in facts.in_words(Task.DETECTION)


@pytest.mark.filterwarnings("ignore")
def test_quartiles_of_objects(tmp_path: Path) -> None:
    boxes = [box(0, 0, side, side) for side in (0.1, 0.2, 0.3, 0.4, 0.5)]
    crowds = [box(0, 0, 1, 1, isCrowd=True)] * 5
    facts = measure_data(read(tmp_path, Task.DETECTION, [((100, 100), 1, boxes + crowds)] * 2))
    assert facts.object_side == pytest.approx(0.3)
    assert facts.small_object_side == pytest.approx(0.2)
    assert facts.most_objects == 5


@pytest.mark.filterwarnings("ignore")
def test_classes_are_counted(tmp_path: Path) -> None:
    labels = ["a"] * 5 + ["b"] * 2
    facts = measure_data(read(tmp_path, Task.CLASSIFICATION, [((40, 30), 1, label) for label in labels]))
    assert facts == DataStatistics(images=7, classes=2, width=40, height=30, imbalance=2.5)
    assert facts.in_words(Task.CLASSIFICATION) == "7 training images of 40 × 30 pixels, 2 classes"
    several = [["a", "b"], ["a"], ["a"]]
    folder = tmp_path / "several"
    folder.mkdir()
    facts = measure_data(read(folder, Task.MULTILABEL, [((40, 30), 1, label) for label in several]))
    assert (facts.imbalance, facts.most_objects) == (3.0, 0)


def test_only_a_sample_of_many_images_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read(tmp_path, Task.CLASSIFICATION, [((10 + n, 10), 1, "ab"[n % 2]) for n in range(20)])
    opened: list[object] = []
    monkeypatch.setattr("trainer.automode.data_statistics._SAMPLE_SIZE", 3)
    monkeypatch.setattr(
        "trainer.automode.data_statistics.probe", lambda path: (opened.append(path), (7, 5))[1]
    )
    facts = measure_data(data)
    assert (facts.images, facts.width, facts.height) == (20, 7, 5)
    assert sorted(Path(str(path)).stem for path in opened) == ["0", "19", "9"]
