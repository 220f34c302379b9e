"""The MLflow PythonModel that a packaged model loads as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from serving.answers import Answer, to_lists
from serving.payload import COLUMN, parse_rows
from serving.scorer import Scorer
from serving.wording import shown
from trainer.errors import RequestError
from trainer.tasks import Task

ANSWER_COLUMNS = {
    Task.CLASSIFICATION: ("probs", "labels"),
    Task.MULTILABEL: ("probs", "labels"),
    Task.DETECTION: ("boxes",),
    Task.SEGMENTATION: ("boxes",),
}


class ImageModel(PythonModel):
    """Scores a table with one column, `image`; loads its network when MLflow loads the model."""

    scorer: Scorer | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Load the artifacts that serving.package wrote."""
        self.scorer = Scorer.load(Path(context.artifacts["spec"]).parent)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score every row.

        Args:
            model_input: each row's `image` is base64 text, bytes, or the explainability form.
            params: the scoring parameters in the model's signature.

        Returns:
            One row an image, in order: columns `probs` and `labels`, or `boxes`; `visualizations` and
            `attributions` where a row asks to be explained.

        Raises:
            MlflowException: a row or a parameter is wrong; says which, and HTTP servers answer 400.
        """
        assert self.scorer is not None, "MLflow calls load_context first"
        task = self.scorer.spec.task
        try:
            rows = parse_rows(_values(model_input), task)
            answers = self.scorer.score(rows, params or {})
        except RequestError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return _table(answers, ANSWER_COLUMNS[task])


def _table(answers: Sequence[Answer], columns: Sequence[str]) -> pd.DataFrame:
    """A row an answer, in order; with explanations, a column for each kind that any row asked for."""
    asked = [name for name in ("visualizations", "attributions") if any(name in each for each in answers)]
    table = _Answers if asked else pd.DataFrame
    return table([to_lists(each) for each in answers], columns=[*columns, *asked])


class _Answers(pd.DataFrame):
    """A table whose records, which are what MLflow's servers answer, lack what is missing in their row.

    Rows that asked for no explanation are answered as if no other row had.
    """

    def to_dict(self, orient: Any = "dict", **more: Any) -> Any:
        found = super().to_dict(orient, **more)
        if orient != "records":
            return found
        missing = self.isna()
        return [
            {name: value for name, value in record.items() if not missing.at[row, name]}
            for row, record in zip(self.index, found, strict=True)
        ]


def _values(table: pd.DataFrame) -> list[Any]:
    if COLUMN not in table.columns:
        raise RequestError(f"the table must have the column {COLUMN!r}, got {shown(list(table.columns))}")
    values = table[COLUMN].tolist()
    # MLflow makes a single row of the dictionary {"image": [first, second]}.
    if len(values) == 1 and isinstance(values[0], (list, np.ndarray)) and len(values[0]) > 1:
        return list(values[0])
    return values
