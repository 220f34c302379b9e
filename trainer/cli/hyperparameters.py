"""A flag for every hyperparameter, under all of its names."""

from __future__ import annotations

from typing import Any

from trainer.cli.flags import flags_of
from trainer.models.defaults import default_in_words, models_taking
from trainer.settings import Settings, aliases_of


def _models(name: str) -> str:
    models = models_taking(name)
    return f"Only {models}." if models else ""


Hyperparameters: Any = flags_of(
    Settings, group="Scoring", aliases=aliases_of, note=_models, default=default_in_words
)
