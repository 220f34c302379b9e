"""Explanations by way of MLflow, and by a server, next to plain rows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.answers import encode
from serving.payload import MAX_EXPLAINED_ROWS, parse_rows
from serving.scorer import Scorer
from tests.serving.explain.conftest import explain, row, scene
from trainer.errors import RequestError
from trainer.tasks import Task

IMAGE = scene(0, 3)[0]
QUICK = {"xai_algorithm": "guided_backprop"}


def test_mlflows_answers_have_no_key_that_a_row_did_not_ask_for(
    load_model: Callable[[Task], Any],
) -> None:
    from mlflow.pyfunc.scoring_server import predictions_to_json

    plain = row(IMAGE)["image_base64"]
    rows = [
        plain,
        json.dumps(row(IMAGE, **QUICK)),
        json.dumps(row(IMAGE, attributions=True, visualizations=False, **QUICK)),
    ]
    table = load_model(Task.CLASSIFICATION).predict(pd.DataFrame({"image": rows}))
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == ["probs", "labels", "visualizations", "attributions"]
    assert np.shape(table["attributions"][2]) == (3, 32, 32)
    written = StringIO()
    predictions_to_json(table, written)
    answers = json.loads(written.getvalue(), parse_constant=pytest.fail)["predictions"]
    assert [list(answer) for answer in answers] == [
        ["probs", "labels"],
        ["probs", "labels", "visualizations"],
        ["probs", "labels", "attributions"],
    ]
    assert len({str(answer["probs"]) for answer in answers}) == 1
    assert list(load_model(Task.CLASSIFICATION).predict(pd.DataFrame({"image": [plain]})).columns) == [
        "probs",
        "labels",
    ]


def test_a_list_without_explained_classes_stays_an_empty_list(load_model: Callable[[Task], Any]) -> None:
    asked = json.dumps(row(IMAGE, confidence_score_threshold_multilabel=1.0, attributions=True, **QUICK))
    table = load_model(Task.MULTILABEL).predict(pd.DataFrame({"image": [asked, row(IMAGE)["image_base64"]]}))
    first, second = table.to_dict(orient="records")
    assert (first["visualizations"], first["attributions"]) == ([], [])
    assert list(second) == ["probs", "labels"]


def test_attributions_are_written_as_nested_lists(packaged: Callable[..., Path]) -> None:
    scorer = Scorer.load(packaged(Task.CLASSIFICATION) / "artifacts", device="cpu")
    answer = explain(scorer, IMAGE, attributions=True, visualizations=False, **QUICK)
    read = json.loads(encode([answer]), parse_constant=pytest.fail)[0]
    np.testing.assert_array_equal(np.array(read["attributions"], np.float32), answer["attributions"])


def test_scoring_continues_during_explanations(packaged: Callable[..., Path]) -> None:
    scorer = Scorer.load(packaged(Task.CLASSIFICATION) / "artifacts", device="cpu")
    parameters = scorer.spec.parameters
    expected = scorer.score_images([IMAGE], parameters)[0]
    slow = {"xai_algorithm": "integrated_gradients", "n_steps": 150, "visualizations": False}
    found: list[Any] = []

    def work() -> None:
        found.append(explain(scorer, IMAGE, attributions=True, **slow))
        found.append(explain(scorer, IMAGE, attributions=True, visualizations=False, **QUICK))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    scored = 0
    while any(thread.is_alive() for thread in threads):
        assert scorer.score_images([IMAGE], parameters)[0] == expected
        scored += 1
    assert scored > 5
    assert len(found) == 4
    sums = {round(float(np.abs(each["attributions"]).sum()), 4) for each in found}
    assert len(sums) == 2


def test_number_of_explained_rows_is_limited() -> None:
    asking = row(IMAGE)
    assert len(parse_rows([asking] * MAX_EXPLAINED_ROWS, Task.CLASSIFICATION)) == MAX_EXPLAINED_ROWS
    with pytest.raises(RequestError, match="at most 64 rows") as caught:
        parse_rows([asking] * (MAX_EXPLAINED_ROWS + 1), Task.CLASSIFICATION)
    assert (caught.value.status, caught.value.row) == (413, MAX_EXPLAINED_ROWS)
    plain = [asking["image_base64"]] * 200
    assert len(parse_rows([*plain, asking], Task.CLASSIFICATION)) == 201
