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
from serving.parameters import set_by_request
from serving.payload import COLUMN, parse_rows
from serving.scorer import Scorer
from serving.wording import shown
from trainer.errors import RequestError

_SCORES = ("probs", "labels", "boxes")
_EXPLANATIONS = ("visualizations", "attributions")


class ImageModel(PythonModel):
    """Scores a table with the column `image`. MLflow loads the network together with the model."""

    scorer: Scorer | None = None
    signature_has_defaults = False

    def load_context(self, context: PythonModelContext) -> None:
        """Load the artifacts written by serving.package."""
        self.scorer = Scorer.load(Path(context.artifacts["spec"]).parent)
        # Older versions wrote no settings, and the model's values into its signature.
        self.signature_has_defaults = "settings" not in context.artifacts

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score every row of a table.

        Args:
            model_input: `image` of each row is base64 text, bytes, or the explainability form.
            params: scoring parameters, as in the model's signature.

        Returns:
            One row per image, in order, with the columns `probs` and `labels`, or `boxes`; also
            `visualizations` and `attributions` if a row requests them.

        Raises:
            MlflowException: names the wrong row or parameter; MLflow's servers answer 400.
        """
        assert self.scorer is not None, "MLflow calls load_context first"
        try:
            rows = parse_rows(_values(model_input), self.scorer.spec.task)
            defaults = self.scorer.spec.parameters
            given = set_by_request(params or {}, defaults, are_filled_in=self.signature_has_defaults)
            answers = self.scorer.score(rows, given)
        except RequestError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return _table(answers)


def _table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per answer, with a column for each kind of explanation that any row requested."""
    names = set[str]().union(*answers)
    table = _Answers if names.intersection(_EXPLANATIONS) else pd.DataFrame
    columns = [name for name in (*_SCORES, *_EXPLANATIONS) if name in names]
    return table([to_lists(each) for each in answers], columns=columns)


class _Answers(pd.DataFrame):
    """A table whose records omit missing values; MLflow's servers answer with its records.

    So a row without an explanation is answered as if no other row had requested one.
    """

    def to_dict(self, orient: Any = "dict", **more: Any) -> Any:
        records = super().to_dict(orient, **more)
        if orient != "records":
            return records
        missing = self.isna()
        return [
            {name: value for name, value in record.items() if not missing.at[row, name]}
            for row, record in zip(self.index, records, strict=True)
        ]


def _values(table: pd.DataFrame) -> list[Any]:
    if COLUMN not in table.columns:
        raise RequestError(f"the table must have the column {COLUMN!r}, got {shown(list(table.columns))}")
    values = table[COLUMN].tolist()
    # MLflow turns the dictionary {"image": [first, second]} into a single row.
    if len(values) == 1 and isinstance(values[0], (list, np.ndarray)) and len(values[0]) > 1:
        return list(values[0])
    return values
