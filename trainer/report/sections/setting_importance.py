"""How much each setting of a sweep matters for its primary metric."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.report.charts.scale import needs_log
from trainer.report.trials_csv import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 10
"""Number of complete trials below which importance says nothing."""
_TREES = 64


def setting_importance(trials: Sequence[Trial]) -> dict[str, float] | str:
    """Estimate the importance of each setting that all complete trials have, by fANOVA.

    All sub-spaces are pooled: a setting is taken as the trials had it, whatever sub-space they are from, and
    the model is a setting like others.

    Returns:
        The importance of each setting, highest first, in [0, 1] and summing up to 1; or a sentence that says
        why there is none.
    """
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    if len(complete) < MIN_TRIALS:
        return (
            f"Importance needs at least {MIN_TRIALS} complete trials; there are {len(complete)}. "
            "trainer fit --resume with a higher --max-trials adds trials."
        )
    shared = set.intersection(*(set(trial.settings) for trial in complete))
    distributions = {
        name: distribution
        for name in sorted(shared)
        if (distribution := _distribution([trial.settings[name] for trial in complete])) is not None
    }
    if not distributions:
        return "No setting that all trials share has more than one value."
    if len({trial.value for trial in complete}) == 1:
        return "All trials have the same metric."
    return _fanova(complete, distributions)


def _fanova(trials: Sequence[Trial], distributions: dict[str, BaseDistribution]) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    frozen_trials = [
        optuna.create_trial(
            params={
                name: _as_parameter(trial.settings[name], distribution)
                for name, distribution in distributions.items()
            },
            distributions=distributions,
            value=trial.value,
        )
        for trial in trials
    ]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about experimental features
            study = optuna.create_study(direction="maximize")
            study.add_trials(frozen_trials)
            evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
            importance = get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(value) for name, value in importance.items()}


def _distribution(values: Sequence[Any]) -> BaseDistribution | None:
    """Return the range of the values that were tried; None for a single value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if len({str(value) for value in values}) < 2:
        return None
    if all(isinstance(value, int | float) for value in values):
        numbers = [float(value) for value in values]
        return FloatDistribution(min(numbers), max(numbers), log=needs_log(numbers))
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _as_parameter(value: Any, distribution: BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution

    return str(value) if isinstance(distribution, CategoricalDistribution) else float(value)
