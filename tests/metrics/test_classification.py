"""Classification metrics against scikit-learn and against values computed by hand."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as sk

from trainer import metrics
from trainer.annotations import Classification, Detections
from trainer.errors import TrainingError
from trainer.metrics.classification import MulticlassEvaluator, MultilabelEvaluator
from trainer.tasks import Task

Array = npt.NDArray[np.float64]
AVERAGES = ("macro", "micro", "weighted")
SCENARIOS = (
    "random",
    "ties",
    "constant",
    "absent class",
    "one class true",
    "perfect",
    "two classes",
    "one image",
)


def multiclass(scenario: str, seed: int) -> tuple[npt.NDArray[np.int64], Array]:
    rng = np.random.default_rng(seed)
    images = 1 if scenario == "one image" else 60
    classes = 2 if scenario == "two classes" else 5
    targets = rng.integers(0, classes, images)
    probs = rng.dirichlet(np.ones(classes), images)
    if scenario == "ties":
        probs = rng.integers(1, 3, (images, classes)).astype(np.float64)
    if scenario == "constant":
        probs = np.ones((images, classes))
    if scenario == "absent class":
        targets[targets == 3] = 1
    if scenario == "one class true":
        targets[:] = 2
    if scenario == "perfect":
        probs = np.eye(classes)[targets]
    return targets, (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32).astype(np.float64)


def multilabel(scenario: str, seed: int) -> tuple[npt.NDArray[np.bool_], Array]:
    rng = np.random.default_rng(seed)
    images = 1 if scenario == "one image" else 60
    classes = 2 if scenario == "two classes" else 5
    targets = rng.random((images, classes)) < 0.4
    probs = rng.random((images, classes))
    if scenario == "ties":
        probs = rng.integers(0, 3, (images, classes)) / 2
    if scenario == "constant":
        probs = np.full((images, classes), 0.5)
    if scenario == "absent class":
        targets[:, 3] = False
        probs[:, 3] = 0.1
    if scenario == "one class true":
        targets[:] = np.arange(classes) == 2
    if scenario == "perfect":
        probs = targets.astype(np.float64)
    return targets, probs.astype(np.float32).astype(np.float64)


def ranking_oracle(targets: npt.NDArray[np.bool_], probs: Array) -> dict[str, float]:
    """scikit-learn on the classes for which each figure is defined."""
    with_positives = targets.any(axis=0)
    with_both = with_positives & ~targets.all(axis=0)
    expected = {}
    for average in AVERAGES:
        expected[f"AUC_{average}"] = math.nan
        expected[f"average_precision_score_{average}"] = math.nan
        if average == "micro":
            if targets.any() and not targets.all():
                expected["AUC_micro"] = sk.roc_auc_score(targets.ravel(), probs.ravel())
            if targets.any():
                expected["average_precision_score_micro"] = sk.average_precision_score(
                    targets, probs, average="micro"
                )
            continue
        if with_both.any():
            expected[f"AUC_{average}"] = sk.roc_auc_score(
                targets[:, with_both], probs[:, with_both], average=average
            )
        if with_positives.any():
            expected[f"average_precision_score_{average}"] = sk.average_precision_score(
                targets[:, with_positives], probs[:, with_positives], average=average
            )
    return expected


def decision_oracle(targets: npt.NDArray[np.generic], predicted: npt.NDArray[np.generic]) -> dict[str, float]:
    expected = {"accuracy": sk.accuracy_score(targets, predicted)}
    for average in AVERAGES:
        for name in ("f1_score", "precision_score", "recall_score"):
            expected[f"{name}_{average}"] = getattr(sk, name)(
                targets, predicted, average=average, zero_division=0
            )
    return expected


def norm_macro_recall(
    targets: npt.NDArray[np.generic], predicted: npt.NDArray[np.generic], labels: Any, chance: float
) -> float:
    """Azure's definition: the mean recall of the classes that images have, 0 at chance and 1 at best."""
    recall = sk.recall_score(targets, predicted, labels=labels, average="macro")
    return max(0.0, (recall - chance) / (1 - chance))


def evaluate(task: Task, targets: npt.NDArray[np.generic], probs: Array) -> metrics.Evaluator:
    evaluator = metrics.create(task, [f"클래스 {label}" for label in range(probs.shape[1])])
    for row, target in zip(probs, targets, strict=True):
        evaluator.update(Classification(row.astype(np.float32)), target)  # type: ignore[arg-type]
    return evaluator


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seed", range(3))
def test_multiclass_metrics_equal_scikit_learns(scenario: str, seed: int) -> None:
    targets, probs = multiclass(scenario, seed)
    labels = np.arange(probs.shape[1])
    expected = ranking_oracle(targets[:, None] == labels, probs) | decision_oracle(
        targets, probs.argmax(axis=1)
    )
    normalised = probs / probs.sum(axis=1, keepdims=True)
    expected["log_loss"] = sk.log_loss(targets, normalised, labels=labels)
    answers, seen = probs.argmax(axis=1), np.unique(targets)
    expected["norm_macro_recall"] = norm_macro_recall(targets, answers, seen, 1 / len(labels))
    evaluator = evaluate(Task.CLASSIFICATION, targets, probs)
    assert evaluator.compute() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert isinstance(evaluator, MulticlassEvaluator)
    matrix = sk.confusion_matrix(targets, probs.argmax(axis=1), labels=labels)
    np.testing.assert_array_equal(evaluator.confusion_matrix(), matrix)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seed", range(3))
def test_multilabel_metrics_equal_scikit_learns(scenario: str, seed: int) -> None:
    targets, probs = multilabel(scenario, seed)
    predicted = probs >= 0.5
    expected = ranking_oracle(targets, probs) | decision_oracle(targets, predicted)
    losses = [
        sk.log_loss(targets[:, label], probs[:, label], labels=[False, True])
        for label in range(targets.shape[1])
    ]
    expected["log_loss"] = float(np.mean(losses))
    expected["iou"] = sk.jaccard_score(targets, predicted, average="samples", zero_division=1)
    for average in AVERAGES:
        expected[f"iou_{average}"] = sk.jaccard_score(targets, predicted, average=average, zero_division=0)
    seen = np.flatnonzero(targets.any(axis=0))
    expected["norm_macro_recall"] = norm_macro_recall(targets, predicted, seen, 0.5)
    evaluator = evaluate(Task.MULTILABEL, targets, probs)
    assert evaluator.compute() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert isinstance(evaluator, MultilabelEvaluator)
    classwise = sk.jaccard_score(targets, predicted, average=None, zero_division=0)
    assert list(evaluator.iou_classwise().values()) == pytest.approx(classwise.tolist(), abs=1e-9)
    np.testing.assert_array_equal(
        evaluator.confusion_matrix(), sk.multilabel_confusion_matrix(targets, predicted)
    )


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_report_by_class(task: Task) -> None:
    targets, probs = (multiclass if task is Task.CLASSIFICATION else multilabel)("absent class", 5)
    evaluator = evaluate(task, targets, probs)
    labels = range(probs.shape[1])
    one_hot = targets if targets.ndim == 2 else targets[:, None] == np.arange(len(labels))
    predicted = probs.argmax(axis=1) if task is Task.CLASSIFICATION else probs >= 0.5
    report = sk.classification_report(
        targets, predicted, labels=list(labels), output_dict=True, zero_division=0
    )
    for label, (name, result) in zip(labels, evaluator.per_class().items(), strict=True):
        assert name == f"클래스 {label}"
        assert {key: result[key] for key in report[str(label)]} == pytest.approx(report[str(label)])
        quick = ("f1-score", "precision", "recall")
        assert evaluator.by_class()[name] == {key: result[key] for key in quick}
        if label == 3:  # no image shows it
            assert math.isnan(result["auc"])
            assert math.isnan(result["average_precision"])
        else:
            assert result["auc"] == pytest.approx(sk.roc_auc_score(one_hot[:, label], probs[:, label]))
        assert ("iou" in result) is (task is Task.MULTILABEL)


def test_multiclass_by_hand() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    result = evaluate(Task.CLASSIFICATION, np.array([0, 1, 2, 2]), probs).compute()
    assert result["accuracy"] == 0.5  # the second image ties, the first of equals is predicted
    assert result["precision_score_macro"] == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert result["recall_score_weighted"] == pytest.approx((1 + 0 + 2 * 0.5) / 4)
    assert result["log_loss"] == pytest.approx(-np.log([0.7, 0.4, 0.7, 0.25]).mean(), abs=1e-6)
    assert result["norm_macro_recall"] == pytest.approx(((1 + 0 + 0.5) / 3 - 1 / 3) / (1 - 1 / 3))


def test_multilabel_by_hand_and_threshold_is_inclusive() -> None:
    targets = np.array([[True, False], [True, True], [False, False]])
    probs = np.array([[0.5, 0.49], [0.9, 0.1], [0.2, 0.3]])
    result = evaluate(Task.MULTILABEL, targets, probs).compute()
    assert result["iou"] == pytest.approx((1 + 0.5 + 1) / 3)  # nothing true, nothing predicted counts as 1
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["iou_micro"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_metrics_without_images_are_nan(task: Task) -> None:
    evaluator = metrics.create(task, ["a", "b"])
    result = evaluator.compute()
    assert task.primary_metric in result
    assert all(math.isnan(value) for value in result.values())
    assert evaluator.per_class()["a"]["support"] == 0


def test_a_single_class_raises_no_warning() -> None:
    result = evaluate(Task.CLASSIFICATION, np.array([0, 0]), np.ones((2, 1))).compute()
    assert result["accuracy"] == 1
    assert result["log_loss"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(result["AUC_macro"])
    assert math.isnan(result["norm_macro_recall"])
    assert result["average_precision_score_macro"] == 1


def test_loss_of_a_confident_mistake_is_finite() -> None:
    result = evaluate(Task.CLASSIFICATION, np.array([0]), np.array([[0.0, 1.0]])).compute()
    assert 30 < result["log_loss"] < 40


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_compute_has_no_side_effect_and_reset_removes_images(task: Task) -> None:
    targets, probs = (multiclass if task is Task.CLASSIFICATION else multilabel)("random", 0)
    evaluator = evaluate(task, targets, probs)
    first = evaluator.compute()
    assert evaluator.compute() == first
    evaluator.reset()
    assert math.isnan(evaluator.compute()["accuracy"])


def test_the_order_of_images_does_not_matter() -> None:
    targets, probs = multiclass("ties", 1)
    order = np.random.default_rng(0).permutation(len(targets))
    result = evaluate(Task.CLASSIFICATION, targets, probs).compute()
    assert evaluate(Task.CLASSIFICATION, targets[order], probs[order]).compute() == pytest.approx(
        result, abs=1e-12
    )


def test_predictions_are_copied() -> None:
    evaluator = metrics.create(Task.CLASSIFICATION, ["a", "b"])
    buffer = np.array([0.9, 0.1], dtype=np.float32)
    evaluator.update(Classification(buffer), 0)
    buffer[:] = buffer[::-1].copy()
    evaluator.update(Classification(buffer), 1)
    assert evaluator.compute()["accuracy"] == 1


def test_no_warning_escapes_in_half_precision() -> None:
    evaluator = metrics.create(Task.CLASSIFICATION, ["a", "b", "c"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for target in range(3):
            evaluator.update(Classification(np.array([0.333, 0.334, 0.334], dtype=np.float16)), target)  # type: ignore[arg-type]
        assert evaluator.compute()["accuracy"] == pytest.approx(1 / 3)


def test_a_diverged_network_is_an_error() -> None:
    evaluator = metrics.create(Task.CLASSIFICATION, ["a", "b"])
    with pytest.raises(TrainingError, match="diverged"):
        evaluator.update(Classification(np.array([np.nan, 0.5], dtype=np.float32)), 0)


@pytest.mark.parametrize(
    ("task", "probs", "target", "message"),
    [
        (Task.CLASSIFICATION, [0.5, 0.5], 2, r"in \[0, 1\], got 2"),
        (Task.CLASSIFICATION, [0.5, 0.5], -1, "got -1"),
        (Task.CLASSIFICATION, [0.5, 0.5], True, "class index"),
        (Task.CLASSIFICATION, [0.9, 0.9], 1, "sum to 1"),
        (Task.CLASSIFICATION, [0.2, 0.3, 0.5], 1, r"shape \(2,\)"),
        (Task.MULTILABEL, [0.2, 1.5], np.array([True, False]), r"in \[0, 1\]"),
        (Task.MULTILABEL, [0.2, 0.5], np.array([True]), r"shape \(2,\)"),
        (Task.MULTILABEL, [0.2, 0.5], 1, "bool array"),
    ],
)
def test_unfitting_predictions_and_targets_are_errors(
    task: Task, probs: list[float], target: object, message: str
) -> None:
    evaluator = metrics.create(task, ["a", "b"])
    with pytest.raises((TypeError, ValueError), match=message):
        evaluator.update(Classification(np.array(probs, dtype=np.float32)), target)  # type: ignore[arg-type]
    assert math.isnan(evaluator.compute()["accuracy"])  # and nothing was taken


def test_detections_are_errors() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), (4, 4))
    with pytest.raises(TypeError, match="Classification"):
        metrics.create(Task.CLASSIFICATION, ["a"]).update(nothing, 0)


def test_a_class_named_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="unique"):
        metrics.create(Task.CLASSIFICATION, ["a", "a"])
