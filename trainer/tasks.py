"""The four tasks: their names, metrics, default models and labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from trainer.errors import JobError, Problem


class Task(StrEnum):
    """A task; its value is its name on the command line, such as `object-detection`."""

    CLASSIFICATION = "image-classification"
    MULTILABEL = "image-classification-multilabel"
    DETECTION = "object-detection"
    SEGMENTATION = "instance-segmentation"

    @property
    def job_name(self) -> str:
        """The task's name in Azure's job files, such as `image_object_detection`."""
        return _FACTS[self].job_name

    @property
    def primary_metric(self) -> str:
        """The default primary metric; `trainer.metric_names` has all that a job may choose."""
        return _FACTS[self].primary_metric

    @property
    def default_model(self) -> str:
        """The model of jobs that name none."""
        return _FACTS[self].default_model

    @property
    def label_shape(self) -> str:
        """The content of `label` in a JSON line, in words."""
        return _FACTS[self].label_shape

    @property
    def is_classification(self) -> bool:
        """Whether images have labels instead of labelled objects."""
        return self in (Task.CLASSIFICATION, Task.MULTILABEL)

    @property
    def has_boxes(self) -> bool:
        """Whether images have objects with boxes."""
        return not self.is_classification

    @classmethod
    def parse(cls, text: str) -> Task:
        """Read a task's name in any spelling: of the commands, job files, the REST form or the studio.

        Raises:
            JobError: no task has this name.
        """
        for task in cls:
            if _letters(text) in (_letters(task.value), _letters(task.job_name)):
                return task
        known = ", ".join(cls)
        raise JobError("unknown task", [Problem("--task", "", f"must be one of {known}", repr(text))])


def _letters(name: str) -> str:
    """Reduce image_object_detection, image-object-detection and ImageObjectDetection to the same letters."""
    return re.sub(r"[\W_]", "", name).lower()


@dataclass(frozen=True, slots=True)
class _Facts:
    job_name: str
    primary_metric: str
    default_model: str
    label_shape: str


_FACTS = {
    Task.CLASSIFICATION: _Facts("image_classification", "accuracy", "seresnext", "one class name"),
    Task.MULTILABEL: _Facts("image_classification_multilabel", "iou", "seresnext", "a list of class names"),
    Task.DETECTION: _Facts(
        "image_object_detection",
        "mean_average_precision",
        "fasterrcnn_resnet50_fpn",
        "a list of boxes {label, topX, topY, bottomX, bottomY, isCrowd}",
    ),
    Task.SEGMENTATION: _Facts(
        "image_instance_segmentation",
        "mean_average_precision",
        "maskrcnn_resnet50_fpn",
        "a list of objects {label, isCrowd, polygon: [[x1, y1, x2, y2, …]]}",
    ),
}
