"""Examples decoded on access, and the items of validation."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch.utils.data import DataLoader

from trainer.annotations import Image, Objects
from trainer.data.datasets import RecordExamples, ValidationDataset
from trainer.data.reading.jsonl import read
from trainer.errors import DataError
from trainer.models.geometry import Geometry
from trainer.models.spec import Spec
from trainer.models.tiling import View, views
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

BOX = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}


class Halves:
    """The part of a family that validation data need: images at half their size."""

    def __init__(self, tile_grid_size: str | None = None) -> None:
        self.spec = Spec(
            family="halves",
            model="halves",
            task=Task.DETECTION,
            classes=("w", "x", "y"),
            options={},
            parameters=ScoringParameters(tile_grid_size=tile_grid_size),
        )

    def preprocess(self, image: Image) -> tuple[torch.Tensor, Geometry]:
        height, width = image.shape[:2]
        tensor = torch.from_numpy(image[::2, ::2].copy()).permute(2, 0, 1).float()
        return tensor, Geometry((height, width), (height // 2, width // 2), (0.5, 0.5))

    def validation_item(self, image: torch.Tensor, target: Objects, geometry: Geometry) -> Any:
        return image, target

    def collate(self, items: Sequence[Any]) -> dict[str, Any]:
        images, targets = zip(*items, strict=True)
        return {"images": images, "truths": targets}


@pytest.fixture
def examples(write_lines: Callable[..., Path]) -> RecordExamples:
    lines = [{"image_url": f"{n}.jpg", "label": [{**BOX, "label": "xy"[n % 2]}]} for n in range(4)]
    path = write_lines(lines, images=True)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (8, 6), "red").save(path.parent / "1.jpg", exif=exif)
    return RecordExamples(read([path], Task.DETECTION).records, ("w", "x", "y"))


def test_examples(examples: RecordExamples) -> None:
    assert len(examples) == 4
    assert examples[0].image.shape == (6, 8, 3)
    assert examples[1].image.shape == (8, 6, 3), "upright"
    target = examples[1].target
    assert isinstance(target, Objects)
    assert target.labels.tolist() == [2], "counted in the classes given"


def test_targets_need_no_images(examples: RecordExamples) -> None:
    for path in Path(examples.records.source(0)).parent.glob("*.jpg"):
        path.unlink()
    targets = examples.targets
    assert [target.labels.tolist() for target in targets] == [[1], [2], [1], [2]]  # type: ignore[union-attr]
    assert len(targets) == 4
    assert len(targets[1:3]) == 2
    assert targets[-1].labels.tolist() == [2]  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        targets[4]


def test_an_image_lost_after_the_check_is_an_error(examples: RecordExamples) -> None:
    Path(examples.records.source(2)).unlink()
    with pytest.raises(
        DataError, match=r"train\.jsonl:3: image_url: must be readable \(the image file does not"
    ):
        examples[2]


def test_validation_items_in_worker_processes(examples: RecordExamples) -> None:
    dataset: Any = ValidationDataset(examples, Halves())  # type: ignore[arg-type]
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    items = list(loader)
    assert [item["index"] for item in items] == [0, 1, 2, 3]
    assert items[1]["tensor"].shape == (3, 4, 3)
    assert items[1]["geometry"].image_size == (8, 6)


def test_items_with_losses_are_the_familys_and_a_batch_holds_both(examples: RecordExamples) -> None:
    dataset = ValidationDataset(examples, Halves("2x1"), with_losses=True)  # type: ignore[arg-type]
    assert [("tensor" in item, "validation_item" in item) for item in map(dataset.__getitem__, range(6))] == (
        [(False, True)] * 4 + [(True, False)] * 2
    ), "a tile has no loss"
    batch = dataset.collate([dataset[index] for index in (1, 4, 3)])
    assert [item["index"] for item in batch["whole"]] == [1, 3]
    assert [item["index"] for item in batch["plain"]] == [0]
    assert [image.shape for image in batch["batch"]["images"]] == [
        (3, 4, 3),
        dataset[3]["validation_item"][0].shape,
    ]
    np.testing.assert_allclose(batch["batch"]["truths"][0].boxes, [[0.1, 0.2, 0.5, 0.6]], rtol=1e-6)
    assert dataset.collate([dataset[4]])["batch"] is None


def test_validation_items_are_the_images_and_then_their_tiles(examples: RecordExamples) -> None:
    dataset = ValidationDataset(examples, Halves("2x1"))  # type: ignore[arg-type]
    assert dataset.images == 4
    assert len(dataset) == 12
    items = list(DataLoader(dataset, batch_size=None))
    assert [item["index"] for item in items] == [0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3]
    assert {item["views"] for item in items} == {3}
    # Image 1 is upright: 6 × 8 pixels, in tiles of 3.43.
    seen = [item["view"] for item in items if item["index"] == 1]
    assert seen == [View(0, 0, 6, 8), View(0, 0, 3, 8), View(3, 0, 6, 8)]
    assert seen == views((8, 6), ScoringParameters(tile_grid_size="2x1"))
    assert items[6]["geometry"].image_size == (8, 3)
    # A rank scores some of the images, with all of their tiles.
    assert list(dataset.items_of(range(1, 4, 2))) == [1, 3, 6, 7, 10, 11]
    assert list(ValidationDataset(examples, Halves()).items_of(range(4))) == [0, 1, 2, 3]  # type: ignore[arg-type]


def test_an_image_is_decoded_once_for_all_its_tiles(
    examples: RecordExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    read_one = RecordExamples.__getitem__
    monkeypatch.setattr(
        RecordExamples, "__getitem__", lambda self, index: decoded.append(index) or read_one(self, index)
    )
    dataset = ValidationDataset(examples, Halves("3x2"))  # type: ignore[arg-type]
    for item in range(4, len(dataset)):
        dataset[item]
    assert decoded == [0, 1, 2, 3]


def test_examples_pickle(examples: RecordExamples) -> None:
    assert len(pickle.loads(pickle.dumps(examples))) == 4
