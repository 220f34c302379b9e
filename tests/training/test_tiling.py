"""Training runs with tiles: what is trained, that evaluation and serving agree, and what it is good for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import trainer
from tests.training.conftest import SMALL, job, rows
from trainer import metrics
from trainer.annotations import Detections, Example, Objects
from trainer.data.datasets import RecordExamples, ValidationDataset
from trainer.data.reading.jsonl import read
from trainer.data.samples import SampleData
from trainer.data.tiles import TiledExamples
from trainer.errors import JobError
from trainer.metrics.detection import DetectionEvaluator
from trainer.models import Family, create, specify
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw, Progress
from trainer.scoring import ScoringParameters
from trainer.settings import Settings
from trainer.tasks import Task
from trainer.training.evaluation import Evaluation


def made(task: Task, model: str, classes: tuple[str, ...], **values: Any) -> tuple[Family, Settings]:
    settings = resolve(task, model, {**SMALL[model], **values})
    return create(specify(task, model, settings, classes, pretrained=False)), settings


def examples_of(data: SampleData, task: Task) -> RecordExamples:
    records = read([data.validation], task).records
    return RecordExamples(records, records.classes)


def test_a_training_with_tiles(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    grid = {"tile_grid_size": "(2, 2)", "box_score_threshold": 0.001}
    run = trainer.fit(job(digits, Task.DETECTION, "yolo11n", tmp_path / "run", **grid))
    records = read([digits[Task.DETECTION].train], Task.DETECTION).records
    tiles = len(TiledExamples(RecordExamples(records, records.classes), ScoringParameters(**grid))) - len(
        records
    )
    assert f"tile_grid_size 2x2: training on {tiles} tiles, too" in run.log.read_text("utf-8")
    assert tiles > len(records), "the digits are spread over the tiles"
    assert (
        json.loads((run.model / "artifacts" / "spec.json").read_text())["parameters"]["tile_grid_size"]
        == "2x2"
    )
    examples = examples_of(digits[Task.DETECTION], Task.DETECTION)
    assert len(run.predictions.read_text("utf-8").splitlines()) == len(examples)
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]


class Seen(DetectionEvaluator):
    """An evaluator that keeps what it is given."""

    def __init__(self) -> None:
        self.predictions: list[Any] = []

    def reset(self) -> None:
        self.predictions.clear()

    def update(self, prediction: Any, target: Any, rles: Any = None) -> None:
        self.predictions.append(prediction)

    def compute(self) -> dict[str, float]:
        return {}

    def by_class(self) -> dict[str, dict[str, float]]:
        return {}


@pytest.mark.parametrize(
    ("task", "model"), [(Task.DETECTION, "yolo11n"), (Task.SEGMENTATION, "maskrcnn_resnet18_fpn")]
)
def test_evaluation_sees_what_serving_answers(task: Task, model: str, digits: dict[Task, SampleData]) -> None:
    examples = examples_of(digits[task], task)
    few = {"box_score_threshold": 0.0, "box_detections_per_image": 20}
    torch.manual_seed(1)
    network: nn.Module | None = None
    losses = []
    for grid in ("2x2", None):
        family, settings = made(task, model, examples.records.classes, tile_grid_size=grid, **few)
        network = network or family.build().eval()
        items = ValidationDataset(examples, family, with_losses=True)
        assert len(items) == len(examples) * (5 if grid else 1)
        evaluation = Evaluation(family, examples.targets, settings)
        evaluation.evaluator = seen = Seen()
        torch.manual_seed(2)  # from which R-CNN's losses draw proposals
        with torch.inference_mode():
            # Batches that mix images and tiles.
            for start in range(0, len(items), 3):
                batch = [items[index] for index in range(start, min(start + 3, len(items)))]
                evaluation.add(network, items.collate(batch))
            answers = family.predict(network, [examples[index].image for index in range(len(examples))])
        losses.append(evaluation.compute(ranks=1)["log_loss"])
        assert len(seen.predictions) == len(answers) == len(examples)
        for evaluated, answer in zip(seen.predictions, answers, strict=True):
            assert isinstance(answer, Detections)
            assert evaluated.labels.tolist() == answer.labels.tolist()
            np.testing.assert_allclose(evaluated.boxes, answer.boxes, atol=1e-4)
            np.testing.assert_allclose(evaluated.scores, answer.scores, atol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5), "tiles have no part in the validation loss"


def test_mask_rcnn_learns_from_tiles(digits: dict[Task, SampleData]) -> None:
    examples = examples_of(digits[Task.SEGMENTATION], Task.SEGMENTATION)
    family, settings = made(
        Task.SEGMENTATION, "maskrcnn_resnet18_fpn", examples.records.classes, tile_grid_size="2x2"
    )
    tiled = TiledExamples(examples, settings)
    dataset: Any = family.training_dataset(tiled, settings, seed=0)
    assert len(tiled) > len(examples)
    torch.manual_seed(1)
    network = family.build().train()
    batch = dataset.collate([dataset.item(Draw(0, len(examples))), dataset.item(Draw(0, len(tiled) - 1))])
    for target in batch["targets"]:
        assert len(target["boxes"]) == len(target["masks"]) >= 1
        assert target["masks"].any(dim=(1, 2)).all(), "each object has pixels in its tile"
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    losses = family.losses(network, batch)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_classifier_has_no_tiles() -> None:
    for name, value in (("tile_grid_size", "3x2"), ("tile_overlap_ratio", 0.2)):
        with pytest.raises(JobError, match=name):
            resolve(Task.CLASSIFICATION, "resnet18", {name: value})
    with pytest.raises(JobError, match=r"tile_grid_size.*1x1"):
        resolve(Task.DETECTION, "yolo11n", {"tile_grid_size": "1x1"})


class TinyObjects:
    """Large images (trainer.annotations.Examples) strewn with tiny squares in three colours, the classes."""

    COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 230))
    SIDE, OBJECT = 320, 18

    def __init__(self, images: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.images, self.targets = [], []
        for _ in range(images):
            image = generator.integers(90, 140, (self.SIDE, self.SIDE, 3), dtype=np.uint8)
            # Twelve of the places of a grid, so that none hides another.
            places = generator.permutation(64)[:12]
            corners = np.stack([places % 8, places // 8], axis=1) * 40 + generator.integers(2, 20, (12, 2))
            labels = generator.integers(0, 3, 12)
            for (x, y), label in zip(corners.tolist(), labels.tolist(), strict=True):
                end = (x + self.OBJECT - 1, y + self.OBJECT - 1)
                cv2.rectangle(image, (x, y), end, self.COLOURS[label], thickness=-1)
            boxes = np.concatenate([corners, corners + self.OBJECT], axis=1) / self.SIDE
            self.images.append(image)
            self.targets.append(Objects(boxes.astype(np.float32), labels, np.zeros(12, dtype=bool)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.targets[index])


@pytest.mark.slow
def test_tiling_finds_tiny_objects_in_large_images() -> None:
    """Trained with tiles and scored with them, a network finds far more than without."""
    classes = ("blue", "green", "red")
    training, unseen = TinyObjects(6, seed=1), TinyObjects(4, seed=2)
    values: dict[str, dict[str, Any]] = {"tiled": {"tile_grid_size": "4x4"}, "whole": {}}
    found = {}
    for name, more in values.items():
        family, settings = made(Task.DETECTION, "yolo11n", classes, image_size=64, number_of_epochs=1, **more)
        network = trained(family, TiledExamples(training, settings), settings, steps=150)
        for scored in (None, "4x4") if name == "tiled" else (None,):
            parameters = family.spec.parameters.model_copy(update={"tile_grid_size": scored})
            evaluator = metrics.create(Task.DETECTION, classes)
            with torch.inference_mode():
                predictions = family.predict(network, unseen.images, parameters)
            for prediction, target in zip(predictions, unseen.targets, strict=True):
                evaluator.update(prediction, target)
            found[name, scored] = evaluator.compute()["mean_average_precision"]
    assert found["tiled", "4x4"] > 0.8
    assert found["tiled", "4x4"] > found["tiled", None] + 0.3
    assert found["tiled", "4x4"] > found["whole", None] + 0.3


def trained(family: Family, examples: TiledExamples, settings: Settings, steps: int) -> nn.Module:
    torch.manual_seed(0)
    network = family.build().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # ultralytics' slow statistics would take hundreds of steps
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    dataset: Any = family.training_dataset(examples, settings, seed=0)
    generator = np.random.default_rng(0)
    for _ in range(steps):
        items = [dataset.item(Draw(0, int(index))) for index in generator.integers(0, len(examples), 8)]
        optimizer.zero_grad()
        torch.stack(
            list(family.losses(network, dataset.collate(items), Progress(0, 1)).values())
        ).sum().backward()
        optimizer.step()
    return network.eval()
