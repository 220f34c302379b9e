"""Every metric that evaluations report has its name, its direction, and the spellings of Azure's forms."""

from __future__ import annotations

import pytest

from trainer import metrics
from trainer.metric_names import is_minimised, named_by_class, names_of, parse_metric
from trainer.tasks import Task


@pytest.mark.parametrize("task", Task)
def test_names_are_those_that_evaluations_report(task: Task) -> None:
    reported = metrics.create(task, ["a", "b"], metric_type="coco_voc").compute().keys()
    assert {*reported, "log_loss", "log_loss_train"} == set(names_of(task))
    assert len(names_of(task)) == len(set(names_of(task)))
    assert task.primary_metric in names_of(task)


def test_only_losses_are_minimised() -> None:
    names = {name for task in Task for name in names_of(task)}
    assert {name for name in names if is_minimised(name)} == {"log_loss", "log_loss_train"}


@pytest.mark.parametrize(
    ("task", "spelling", "name"),
    [
        (Task.CLASSIFICATION, "AUC_weighted", "AUC_weighted"),
        (Task.CLASSIFICATION, "AUCWeighted", "AUC_weighted"),
        (Task.CLASSIFICATION, "auc_weighted", "AUC_weighted"),
        (Task.CLASSIFICATION, "ClassificationPrimaryMetrics.AUC_WEIGHTED", "AUC_weighted"),
        (Task.CLASSIFICATION, "AveragePrecisionScoreWeighted", "average_precision_score_weighted"),
        (Task.CLASSIFICATION, "PrecisionScoreWeighted", "precision_score_weighted"),
        (Task.CLASSIFICATION, "NormMacroRecall", "norm_macro_recall"),
        (Task.CLASSIFICATION, "log-loss", "log_loss"),
        (Task.MULTILABEL, "IOU", "iou"),
        (Task.MULTILABEL, "ClassificationMultilabelPrimaryMetrics.IOU", "iou"),
        (Task.MULTILABEL, "norm_macro_recall", "norm_macro_recall"),
        (Task.MULTILABEL, "iou_classwise.a b", "iou_classwise.a b"),
        (Task.DETECTION, "MeanAveragePrecision", "mean_average_precision"),
        (Task.DETECTION, "ObjectDetectionPrimaryMetrics.MEAN_AVERAGE_PRECISION", "mean_average_precision"),
        (Task.DETECTION, "recall", "recall"),
        (Task.DETECTION, "map", "map"),
        (Task.DETECTION, "mAP@0.5:0.95", "map"),
        (Task.DETECTION, "mAP@[.5:.95]", "map"),
        (Task.DETECTION, "mAP50-95", "map"),
        (Task.SEGMENTATION, "mean_average_precision@0.5:0.95", "map"),
        (Task.SEGMENTATION, "mean_average_precision_50_95", "map"),
        (Task.SEGMENTATION, "mAP@0.5", "map_50"),
        (Task.SEGMENTATION, "AP75", "map_75"),
        (Task.SEGMENTATION, "LogLoss", "log_loss"),
    ],
)
def test_spellings(task: Task, spelling: str, name: str) -> None:
    assert parse_metric(spelling, task) == name


@pytest.mark.parametrize(
    ("task", "text", "hint"),
    [
        (Task.CLASSIFICATION, "acuracy", r"got 'acuracy'; did you mean accuracy\?"),
        (Task.CLASSIFICATION, "iou", "there are accuracy, AUC_macro"),
        (Task.CLASSIFICATION, "iou_classwise.a", "must be a metric of image-classification"),
        (Task.MULTILABEL, "iou_classwise.", "must be a metric of image-classification-multilabel"),
        (Task.DETECTION, "accuracy", "there are mean_average_precision, precision, recall, map"),
        (Task.DETECTION, "mAP@0.6", "must be a metric of object-detection, got 'mAP@0.6'"),
        (Task.SEGMENTATION, "spearman_correlation", "must be a metric of instance-segmentation"),
    ],
)
def test_other_metrics_are_errors(task: Task, text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_metric(text, task)


def test_metrics_of_classes_are_named_as_trackers_take_them() -> None:
    names = ["cat", "a/b", "a:b", "..", "가위", "x" * 300]
    named = named_by_class({name: {"recall": index / 10} for index, name in enumerate(names)})
    shown = ["cat", "a_b", "a_b_2", "_", "가위", "x" * 150]
    assert named == {f"recall_by_class/{name}": index / 10 for index, name in enumerate(shown)}
    assert named_by_class({}) == {}


@pytest.mark.parametrize(("classes", "metrics_named"), [(333, 3), (334, 1), (1000, 1), (1001, 0)])
def test_metrics_of_many_classes_are_limited(classes: int, metrics_named: int) -> None:
    values = {"f1-score": 0.1, "precision": 0.2, "recall": 0.3}
    named = named_by_class({str(number): values for number in range(classes)})
    assert len(named) == classes * metrics_named
    assert all(name.startswith("f1-score_by_class/") for name in list(named)[:classes])
