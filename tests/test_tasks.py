"""The tasks by name, and the facts that hang on them."""

from __future__ import annotations

import pytest

from trainer.errors import JobError
from trainer.models import catalog
from trainer.tasks import Task


@pytest.mark.parametrize(
    ("spelled", "task"),
    [
        ("image-classification", Task.CLASSIFICATION),
        ("image_classification", Task.CLASSIFICATION),
        ("image-classification-multilabel", Task.MULTILABEL),
        ("image_classification_multilabel", Task.MULTILABEL),
        ("object-detection", Task.DETECTION),
        ("object_detection", Task.DETECTION),
        ("image_object_detection", Task.DETECTION),
        ("image-object-detection", Task.DETECTION),
        ("IMAGE_OBJECT_DETECTION", Task.DETECTION),
        ("instance-segmentation", Task.SEGMENTATION),
        ("image_instance_segmentation", Task.SEGMENTATION),
        ("ImageClassification", Task.CLASSIFICATION),
        ("ImageClassificationMultilabel", Task.MULTILABEL),
        ("ImageObjectDetection", Task.DETECTION),
        ("Image instance segmentation", Task.SEGMENTATION),
    ],
)
def test_parse_reads_every_spelling_of_a_task(spelled: str, task: Task) -> None:
    assert Task.parse(spelled) is task


@pytest.mark.parametrize("spelled", ["", "detection", "image_classification_multi", "forecasting", "이미지"])
def test_unknown_task_is_rejected_with_the_known_ones(spelled: str) -> None:
    with pytest.raises(JobError) as caught:
        Task.parse(spelled)
    assert repr(spelled) in str(caught.value)
    assert all(task.value in str(caught.value) for task in Task)


def test_metrics_and_default_models_are_those_of_the_reference() -> None:
    facts = {task: (task.job_name, task.primary_metric, task.default_model) for task in Task}
    assert facts == {
        Task.CLASSIFICATION: ("image_classification", "accuracy", "seresnext"),
        Task.MULTILABEL: ("image_classification_multilabel", "iou", "seresnext"),
        Task.DETECTION: ("image_object_detection", "mean_average_precision", "fasterrcnn_resnet50_fpn"),
        Task.SEGMENTATION: (
            "image_instance_segmentation",
            "mean_average_precision",
            "maskrcnn_resnet50_fpn",
        ),
    }


@pytest.mark.parametrize("task", Task)
def test_default_model_fits_the_task(task: Task) -> None:
    assert catalog.find(task.default_model, task).name == task.default_model
    assert task.is_classification is not task.has_boxes
    assert task.label_shape
