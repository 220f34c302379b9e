"""The metrics that evaluations report, by task: their names, and which of them are better if lower."""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.errors import did_you_mean
from trainer.fields import enum_member
from trainer.tasks import Task

COCO = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)
"""COCO's metrics in the order of the COCO API's summary, with torchmetrics' names.

Mean average precision over IoU .50 to .95, at .50, at .75, and for small, medium and large objects. Mean
average recall for at most 1, 10 and 100 detections per class and image, then by object size.
"""
VOC = ("mean_average_precision", "precision", "recall")
CLASSWISE = "iou_classwise."
"""What the names of a multilabel model's metrics for single classes begin with; the class's name follows."""

BY_CLASS = "_by_class/"
"""What is between a metric's name and a class's in the names by which single classes are tracked."""
_MOST_CLASS_VALUES = 1000
WHY_UNDEFINED = (
    "the validation data lack what it measures; add such images, or choose another --primary-metric"
)
"""What to say of a primary metric that no evaluation could compute."""

_SCORES = ("AUC", "average_precision_score", "f1_score", "precision_score", "recall_score")
_CLASSIFICATION = (
    "accuracy",
    *(f"{score}_{average}" for score in _SCORES for average in ("macro", "micro", "weighted")),
    "norm_macro_recall",
)
_LOSSES = ("log_loss", "log_loss_train")
_NAMES = {
    Task.CLASSIFICATION: (*_CLASSIFICATION, *_LOSSES),
    Task.MULTILABEL: ("iou", "iou_micro", "iou_macro", "iou_weighted", *_CLASSIFICATION, *_LOSSES),
    Task.DETECTION: (*VOC, *COCO, *_LOSSES),
    Task.SEGMENTATION: (*VOC, *COCO, *_LOSSES),
}
_AT_IOU = re.compile(r"(?:meanaverageprecision|m?ap)(\d+)")
_OF_IOU = {"5095": "map", "500595": "map", "50": "map50", "75": "map75"}
"""Digits of the IoU thresholds, as in mAP@[.5:.95] or mAP@0.5:0.05:0.95 → letters of COCO's metric."""


def names_of(task: Task) -> tuple[str, ...]:
    """The metrics of a task's evaluations, without those of single classes."""
    return _NAMES[task]


def named_by_class(by_class: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Name the metrics of single classes as trackers show them: {"recall_by_class/cat": 0.5}.

    At most 1,000 values, which is what MLflow takes at once: if there are more, the first metric of each
    class, and with more classes than that, none.

    Args:
        by_class: class name → metric → value; each class has the same metrics. Characters of a class's name
            that trackers do not allow become "_", and a number tells apart names that become equal.
    """
    if len(by_class) > _MOST_CLASS_VALUES:
        return {}
    metrics = list(next(iter(by_class.values()), {}))
    if len(metrics) * len(by_class) > _MOST_CLASS_VALUES:
        metrics = metrics[:1]
    named: dict[str, str] = {}
    for name in by_class:
        text = shown = re.sub(r"[^\w. -]|^\.+$", "_", name)[:150]
        number = 1
        while shown in named:
            number += 1
            shown = f"{text}_{number}"
        named[shown] = name
    return {
        f"{metric}{BY_CLASS}{shown}": by_class[name][metric]
        for metric in metrics
        for shown, name in named.items()
    }


def is_minimised(name: str) -> bool:
    """Whether lower values of a metric are better."""
    return name in _LOSSES


def parse_metric(text: str, task: Task) -> str:
    """The name of a metric of a task, given in any spelling: of evaluations, Azure's REST form or its SDK.

    mean_average_precision with the range of IoU thresholds, such as mAP@0.5:0.95, is `map`.

    Raises:
        ValueError: the task has no such metric.
    """
    if task is Task.MULTILABEL and text.startswith(CLASSWISE) and len(text) > len(CLASSWISE):
        return text
    member = str(enum_member(text.strip()))
    letters = _letters(re.sub(r"0?[.,](\d\d?)", lambda match: match[1].ljust(2, "0"), member))
    if match := _AT_IOU.fullmatch(letters):
        letters = _OF_IOU.get(match[1], letters)
    name = {_letters(known): known for known in names_of(task)}.get(letters)
    if name is None:
        hint = did_you_mean(member, names_of(task), otherwise=f"there are {', '.join(names_of(task))}")
        raise ValueError(f"must be a metric of {task}, got {text!r}; {hint}")
    return name


def _letters(name: str) -> str:
    """Reduce AUC_weighted, AUCWeighted and auc_weighted to the same letters."""
    return re.sub(r"[\W_]", "", name).lower()
