"""The four tasks: their names, metric and default model. Everything that depends on a task asks here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from trainer.errors import JobError, Problem


class Task(StrEnum):
    """A task, valued as the commands spell it (`object-detection`)."""

    CLASSIFICATION = "image-classification"
    MULTILABEL = "image-classification-multilabel"
    DETECTION = "object-detection"
    SEGMENTATION = "instance-segmentation"

    @property
    def job_name(self) -> str:
        """Its name in an Azure job file (`image_object_detection`)."""
        return _FACTS[self].job_name

    @property
    def primary_metric(self) -> str:
        """The metric that the best epoch has the highest value of, unless the job names another."""
        return _FACTS[self].primary_metrics[0]

    @property
    def primary_metrics(self) -> tuple[str, ...]:
        """The metrics a job may name as primary, the default first."""
        return _FACTS[self].primary_metrics

    @property
    def default_model(self) -> str:
        return _FACTS[self].default_model

    @property
    def label_shape(self) -> str:
        """What `label` holds in one JSON line, in words."""
        return _FACTS[self].label_shape

    @property
    def is_classification(self) -> bool:
        return self in (Task.CLASSIFICATION, Task.MULTILABEL)

    @property
    def has_boxes(self) -> bool:
        return not self.is_classification

    @classmethod
    def parse(cls, text: str) -> Task:
        """Read a task's name as the commands, job files, the REST form or the studio spell it.

        Raises:
            JobError: no task has that name.
        """
        for task in cls:
            if _letters(text) in (_letters(task.value), _letters(task.job_name)):
                return task
        known = ", ".join(cls)
        raise JobError("unknown task", [Problem("--task", "", f"must be one of {known}", repr(text))])


def _letters(name: str) -> str:
    """What image_object_detection, image-object-detection and ImageObjectDetection have in common."""
    return re.sub(r"[\W_]", "", name).lower()


@dataclass(frozen=True, slots=True)
class _Facts:
    job_name: str
    primary_metrics: tuple[str, ...]
    default_model: str
    label_shape: str


_FACTS = {
    Task.CLASSIFICATION: _Facts("image_classification", ("accuracy",), "seresnext", "one class name"),
    Task.MULTILABEL: _Facts(
        "image_classification_multilabel", ("iou", "accuracy"), "seresnext", "a list of class names"
    ),
    Task.DETECTION: _Facts(
        "image_object_detection",
        ("mean_average_precision",),
        "fasterrcnn_resnet50_fpn",
        "a list of boxes {label, topX, topY, bottomX, bottomY, isCrowd}",
    ),
    Task.SEGMENTATION: _Facts(
        "image_instance_segmentation",
        ("mean_average_precision",),
        "maskrcnn_resnet50_fpn",
        "a list of objects {label, isCrowd, polygon: [[x1, y1, x2, y2, …]]}",
    ),
}
