"""Decoded training images are kept within a bound, and the training does not see a difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import SMALL, job, rows
from trainer.data import datasets
from trainer.data.datasets import RecordExamples
from trainer.data.reading.jsonl import read
from trainer.data.samples import SampleData
from trainer.models import create, specify
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw
from trainer.tasks import Task
from trainer.training.fit import fit
from trainer.training.loading import SeededItems

AS_VALIDATED = {"advanced_settings": {"apply_automl_train_augmentations": False}}


def test_as_many_images_are_kept_as_fit(
    digits: dict[Task, SampleData], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read([digits[Task.CLASSIFICATION].train], Task.CLASSIFICATION).records
    sizes = [RecordExamples(records, records.classes)[index].image.nbytes for index in range(4)]
    decoded: list[str] = []
    decode = datasets.decode

    def counted(source: Any, **options: Any) -> Any:
        decoded.append(str(source))
        return decode(source, **options)

    monkeypatch.setattr(datasets, "decode", counted)
    examples = RecordExamples(records, records.classes, cache_bytes=sum(sizes[:3]))
    first = [examples[index].image for index in range(4)]
    assert len(decoded) == 4
    again = [examples[index].image for index in range(4)]
    assert len(decoded) == 5, "the fourth did not fit any more"
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("task", "model", "settings"),
    [
        (Task.CLASSIFICATION, "timm/test_resnet", {}),
        (Task.CLASSIFICATION, "timm/test_resnet", {"recipe": "modern"}),
        (Task.CLASSIFICATION, "timm/test_resnet", AS_VALIDATED),
        (Task.DETECTION, "yolo11n", {}),
        (Task.DETECTION, "rtdetr-l", {"image_size": 96}),
        (Task.SEGMENTATION, "maskrcnn_resnet18_fpn", {}),
        (Task.SEGMENTATION, "maskrcnn_resnet18_fpn", {"large_scale_jitter": True}),
    ],
)  # fmt: skip
def test_augmentation_leaves_the_kept_image_alone(
    task: Task, model: str, settings: dict[str, Any], digits: dict[Task, SampleData]
) -> None:
    records = read([digits[task].train], task).records
    resolved = resolve(task, model, {**SMALL[model], **settings})
    family = create(specify(task, model, resolved, records.classes, pretrained=False))
    examples = RecordExamples(records, records.classes, cache_bytes=2**28)
    before = [examples[index].image.copy() for index in range(len(examples))]
    items = SeededItems(family.training_dataset(examples, resolved, 0), 0)
    for epoch in range(4):
        for index in range(min(4, len(examples))):
            _ = items[Draw(epoch, index)]
    for index, image in enumerate(before):
        np.testing.assert_array_equal(examples[index].image, image)


def test_a_training_is_the_same_without(digits: dict[Task, SampleData], tmp_path: Path) -> None:
    losses = []
    for megabytes in (0, 256):
        wanted = job(
            digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / str(megabytes),
            image_cache_megabytes=megabytes,
        )  # fmt: skip
        run = fit(wanted.model_copy(update={"tracking_uri": "none"}), packages=False)
        losses.append([row["train_loss"] for row in rows(run)])
    assert losses[0] == losses[1]
