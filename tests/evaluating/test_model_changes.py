"""Score thresholds and calibrations from an evaluation, applied to a served model."""

from __future__ import annotations

import base64
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from serving.payload import ImageRow
from serving.scorer import Scorer, read_spec
from tests.evaluating.conftest import CLASSES, image_file
from trainer import cli
from trainer.data.images import decode
from trainer.errors import JobError, RunError
from trainer.evaluating.evaluate import evaluate_model
from trainer.evaluating.model_changes import apply_calibration, apply_thresholds
from trainer.models.score_calibration import ScoreCalibration
from trainer.tasks import Task

Boxes = list[dict[str, Any]]


@pytest.fixture
def model(packaged: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(packaged(Task.DETECTION), tmp_path / "run" / "model"))


def answer(model: Path, **parameters: float) -> Boxes:
    boxes: Boxes = Scorer.load(model / "artifacts", "cpu").score([ImageRow(image_file(3))], parameters)[0][
        "boxes"
    ]
    return boxes


def test_each_class_has_its_threshold_unless_a_request_sets_one(model: Path) -> None:
    before = answer(model)
    label = before[len(before) // 2]["label"]
    middle = sorted(box["score"] for box in before if box["label"] == label)[-1]
    assert apply_thresholds(model.parent, {label: middle}) == model
    spec = read_spec(model / "artifacts")
    assert spec.class_score_thresholds == {name: middle if name == label else 0.0 for name in CLASSES}
    expected = [box for box in before if box["label"] != label or box["score"] >= middle]
    assert 0 < len(expected) < len(before)
    assert answer(model) == expected
    scorer = Scorer.load(model / "artifacts", "cpu")  # as the service asks it, which scores batch by batch
    tensor, geometry = scorer.preprocess(decode(image_file(3)))
    (output,) = scorer.infer([tensor], scorer.spec.parameters)
    assert json.loads(scorer.encoded(output, geometry, scorer.spec.parameters))["boxes"] == expected
    assert answer(model, box_score_threshold=0.001) == before
    # applied once more, a class that has no new one keeps the one it has
    other = next(name for name in CLASSES if name != label)
    apply_thresholds(model, {other: 1.0})
    assert read_spec(model / "artifacts").class_score_thresholds[label] == middle
    assert {box["label"] for box in answer(model)}.isdisjoint({other})


def test_a_request_for_the_models_own_threshold_replaces_those_of_the_classes(
    model: Path, targets: Callable[[Task], Path]
) -> None:
    before = answer(model)
    apply_thresholds(model, {before[0]["label"]: 1.0})
    own = read_spec(model / "artifacts").parameters.box_score_threshold
    assert answer(model) != before
    assert answer(model, box_score_threshold=own) == answer(model, box_score_thresh=own) == before
    # a request that sets something else leaves the classes' thresholds in effect
    assert answer(model, tile_overlap_ratio=0.5) == answer(model)
    at_own = evaluate_model(model, [targets(Task.DETECTION)], box_score_threshold=own, device="cpu").analysis
    below = evaluate_model(model, [targets(Task.DETECTION)], box_score_threshold=1e-6, device="cpu").analysis
    assert (at_own.score_threshold, at_own.metrics) == (own, below.metrics)


def test_an_exported_graph_contains_the_thresholds(model: Path) -> None:
    import torch

    from serving.onnx_export import _graph
    from serving.scorer import load_network

    before = answer(model)
    label = before[0]["label"]
    apply_thresholds(model, {label: 1.0})
    family, network = load_network(model / "artifacts", "cpu")
    tensor, _ = family.preprocess(decode(image_file(3)))
    with torch.no_grad():
        _, scores, labels = _graph(family, network, normalize=False).eval()(tensor[None])
    expected = [box for box in before if box["label"] != label]
    assert [CLASSES[index] for index in labels.tolist()] == [box["label"] for box in expected]
    assert scores.tolist() == pytest.approx([box["score"] for box in expected], abs=1e-4)


def test_thresholds_work_in_mlflow_and_in_a_copy(model: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

        copy = apply_thresholds(model, dict.fromkeys(CLASSES, 1.0) | {CLASSES[0]: 0.0}, tmp_path / "copy")
        assert read_spec(model / "artifacts").class_score_thresholds == {}
        loaded = mlflow.pyfunc.load_model(str(copy))
        row = {"image": [base64.b64encode(image_file(3)).decode()]}
        # MLflow itself fills in the signature's defaults, which must not pass for a request's own
        assert loaded.predict(row)["boxes"][0] == [box for box in answer(model) if box["label"] == CLASSES[0]]
        # a request's own counts, though it equals that of the model
        assert loaded.predict(row, params={"box_score_threshold": 0.0})["boxes"][0] == answer(model)


def test_best_thresholds_of_an_evaluation_are_applied(model: Path, targets: Callable[[Task], Path]) -> None:
    found = evaluate_model(model, [targets(Task.DETECTION)], device="cpu").analysis
    apply_thresholds(model, {name: best.score for name, best in found.thresholds.items()})
    again = evaluate_model(model, [targets(Task.DETECTION)], device="cpu").analysis
    # what is looked at stays the same, and the model now answers with the best of it
    assert again.metrics == found.metrics
    for name, best in found.thresholds.items():
        assert again.served[name] == best
        assert best.f1 >= found.served[name].f1


def test_models_without_thresholds_are_errors(packaged: Callable[..., Path], model: Path) -> None:
    with pytest.raises(RunError, match="has no score thresholds"):
        apply_thresholds(packaged(Task.CLASSIFICATION), {"can": 0.5})
    with pytest.raises(RunError, match="there is no threshold to apply"):
        apply_thresholds(model, {})


CALIBRATION = ScoreCalibration(temperature=2.5, bias=-0.7)


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_a_temperature_divides_the_logits_of_a_classifier(
    packaged: Callable[..., Path], tmp_path: Path, task: Task
) -> None:
    plain = packaged(task)
    model = apply_calibration(plain, ScoreCalibration(temperature=2.5), tmp_path / "calibrated")
    before, after = answers(plain)["probs"], answers(model)["probs"]
    logits = np.log(before) - (0 if task is Task.CLASSIFICATION else np.log1p(-np.array(before)))
    expected = softmax(logits / 2.5) if task is Task.CLASSIFICATION else expit(logits / 2.5)
    assert after == pytest.approx(expected, abs=1e-5)
    assert after != pytest.approx(before, abs=1e-5)
    assert "calibration" not in json.loads((plain / "artifacts" / "spec.json").read_text("utf-8"))


@pytest.mark.parametrize("task", [Task.DETECTION, Task.SEGMENTATION])
def test_calibrated_boxes_are_the_same_with_other_scores(
    packaged: Callable[..., Path], tmp_path: Path, task: Task
) -> None:
    plain = packaged(task)
    model = apply_calibration(plain, CALIBRATION, tmp_path / "calibrated")
    before, after = answers(plain)["boxes"], answers(model)["boxes"]
    assert [{**box, "score": 0} for box in after] == [{**box, "score": 0} for box in before]
    expected = CALIBRATION.apply(np.array([box["score"] for box in before]))
    assert [box["score"] for box in after] == pytest.approx(expected.tolist(), abs=1e-6)


def answers(model: Path, **parameters: float) -> dict[str, Any]:
    """The answer to an image, which every way to ask the model must give."""
    scorer = Scorer.load(model / "artifacts", "cpu")
    (answer,) = scorer.score([ImageRow(image_file(3))], parameters)
    checked = scorer.parameters(parameters)
    tensor, geometry = scorer.preprocess(decode(image_file(3)))  # as the service asks it
    (output,) = scorer.infer([tensor], checked)
    assert json.loads(scorer.encoded(output, geometry, checked)) == answer
    return answer


def test_thresholds_are_compared_with_calibrated_scores(model: Path) -> None:
    before = answer(model)
    apply_calibration(model, CALIBRATION)
    after = answer(model)
    assert len(after) == len(before)
    middle = after[len(after) // 2]["score"]
    reaching = [box for box in after if box["score"] >= middle]
    assert answers(model, box_score_threshold=middle)["boxes"] == reaching
    above = float(np.nextafter(np.float32(middle), np.float32(1)))
    higher = [box for box in after if box["score"] > middle]
    assert answers(model, box_score_threshold=above)["boxes"] == higher
    assert answers(model, box_score_threshold=1.0)["boxes"] == []


def test_thresholds_of_classes_are_calibrated_with_the_scores(model: Path) -> None:
    before = answer(model)
    label = before[0]["label"]
    middle = sorted(box["score"] for box in before if box["label"] == label)[-1] - 1e-6
    apply_thresholds(model, {label: middle})
    kept = answer(model)
    assert 0 < len(kept) < len(before)
    apply_calibration(model, CALIBRATION)
    spec = read_spec(model / "artifacts")
    assert spec.class_score_thresholds[label] == pytest.approx(CALIBRATION.apply(np.array([middle]))[0])
    assert [box["box"] for box in answers(model)["boxes"]] == [box["box"] for box in kept]
    apply_calibration(model, CALIBRATION)  # once more
    assert read_spec(model / "artifacts").calibration == CALIBRATION.then(CALIBRATION)
    assert [box["box"] for box in answers(model)["boxes"]] == [box["box"] for box in kept]


def test_evaluation_ranks_calibrated_boxes_the_same(model: Path, targets: Callable[[Task], Path]) -> None:
    data = [targets(Task.DETECTION)]
    before = evaluate_model(model, data, device="cpu").analysis
    assert before.calibration is not None
    apply_calibration(model, before.calibration.fitted)
    after = evaluate_model(model, data, box_score_threshold=0.0, device="cpu").analysis
    assert after.metrics == pytest.approx(before.metrics)


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL, Task.DETECTION])
def test_an_exported_graph_is_calibrated(packaged: Callable[..., Path], tmp_path: Path, task: Task) -> None:
    import torch

    from serving.onnx_export import _graph, describe
    from serving.scorer import load_network

    calibration = CALIBRATION if task.has_boxes else ScoreCalibration(temperature=2.5)
    model = apply_calibration(packaged(task), calibration, tmp_path / "calibrated")
    family, network = load_network(model / "artifacts", "cpu")
    tensor, _ = family.preprocess(decode(image_file(3)))
    with torch.no_grad():
        outputs = _graph(family, network, normalize=False).eval()(tensor[None])
    answered = answers(model)
    if task.has_boxes:
        assert outputs[1].tolist() == pytest.approx([box["score"] for box in answered["boxes"]], abs=1e-4)
    else:
        assert outputs[0][0].tolist() == pytest.approx(answered["probs"], abs=1e-5)
    assert describe(family, normalize=False)["calibration"] == calibration.model_dump()


def test_command_calibrates_a_model_on_data(
    packaged: Callable[..., Path],
    targets: Callable[[Task], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "copy"
    arguments = [packaged(Task.DETECTION), "--data", targets(Task.DETECTION), "--device", "cpu"]
    flags = ["--calibrate", "--apply-thresholds", "--model-output", str(copy)]
    cli.app(["evaluate", *map(str, arguments), *flags], result_action="return_value")
    assert "expected calibration error" in capsys.readouterr().out
    plain = evaluate_model(packaged(Task.DETECTION), [targets(Task.DETECTION)], device="cpu").analysis
    spec = read_spec(copy / "artifacts")
    assert plain.calibration is not None
    assert spec.calibration == plain.calibration.fitted
    for name, best in plain.thresholds.items():
        expected = spec.calibration.threshold_after(best.score)
        assert spec.class_score_thresholds[name] == pytest.approx(expected)
    with pytest.raises(JobError, match="--calibrate: needs one model to change, got 0"):
        cli.app(
            ["evaluate", "--calibrate", "--task", "object-detection", "--predictions", "p", "--data", "d"]
        )
    with pytest.raises(JobError, match="--calibrate: cannot learn from classes that the model cannot name"):
        cli.app(["evaluate", "m", "--data", "d", "--calibrate", "--unknown-classes", "missed"])
    with pytest.raises(JobError, match="cannot be combined with --box-score-threshold"):
        cli.app(["evaluate", "m", "--data", "d", "--calibrate", "--box-score-threshold", "0.5"])
