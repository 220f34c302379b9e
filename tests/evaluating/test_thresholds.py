"""Score thresholds from an evaluation, applied to a served model."""

from __future__ import annotations

import base64
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.payload import ImageRow
from serving.scorer import Scorer, read_spec
from tests.evaluating.conftest import CLASSES, image_file
from trainer.data.images import decode
from trainer.errors import RunError
from trainer.evaluating import thresholds
from trainer.evaluating.evaluate import evaluate_model
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
    assert thresholds.apply(model.parent, {label: middle}) == model
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
    thresholds.apply(model, {other: 1.0})
    assert read_spec(model / "artifacts").class_score_thresholds[label] == middle
    assert {box["label"] for box in answer(model)}.isdisjoint({other})


def test_a_request_for_the_models_own_threshold_replaces_those_of_the_classes(
    model: Path, targets: Callable[[Task], Path]
) -> None:
    before = answer(model)
    thresholds.apply(model, {before[0]["label"]: 1.0})
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
    thresholds.apply(model, {label: 1.0})
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

        copy = thresholds.apply(model, dict.fromkeys(CLASSES, 1.0) | {CLASSES[0]: 0.0}, tmp_path / "copy")
        assert read_spec(model / "artifacts").class_score_thresholds == {}
        loaded = mlflow.pyfunc.load_model(str(copy))
        row = {"image": [base64.b64encode(image_file(3)).decode()]}
        # MLflow itself fills in the signature's defaults, which must not pass for a request's own
        assert loaded.predict(row)["boxes"][0] == [box for box in answer(model) if box["label"] == CLASSES[0]]
        # a request's own counts, though it equals that of the model
        assert loaded.predict(row, params={"box_score_threshold": 0.0})["boxes"][0] == answer(model)


def test_best_thresholds_of_an_evaluation_are_applied(model: Path, targets: Callable[[Task], Path]) -> None:
    found = evaluate_model(model, [targets(Task.DETECTION)], device="cpu").analysis
    thresholds.apply(model, {name: best.score for name, best in found.thresholds.items()})
    again = evaluate_model(model, [targets(Task.DETECTION)], device="cpu").analysis
    # what is looked at stays the same, and the model now answers with the best of it
    assert again.metrics == found.metrics
    for name, best in found.thresholds.items():
        assert again.served[name] == best
        assert best.f1 >= found.served[name].f1


def test_models_without_thresholds_are_errors(packaged: Callable[..., Path], model: Path) -> None:
    with pytest.raises(RunError, match="has no score thresholds"):
        thresholds.apply(packaged(Task.CLASSIFICATION), {"can": 0.5})
    with pytest.raises(RunError, match="there is no threshold to apply"):
        thresholds.apply(model, {})
