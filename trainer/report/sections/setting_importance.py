"""How much each setting of a sweep matters for its primary metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report.charts.scale import needs_log
from trainer.report.trials_csv import Trial

MIN_TRIALS = 10
"""Minimum number of complete trials for a meaningful estimate."""
_TREES = 64


def setting_importance(trials: Sequence[Trial]) -> dict[str, float] | str:
    """Estimate the importance of each setting that all complete trials have, by fANOVA.

    The trials of all sub-spaces are pooled, and the model is a setting like any other.

    Returns:
        The importance of each setting in [0, 1], highest first and adding up to 1; or a sentence that says
        why there is none.
    """
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    if len(complete) < MIN_TRIALS:
        return (
            f"Importance needs at least {MIN_TRIALS} complete trials; there are {len(complete)}. "
            "To add trials, run trainer fit --resume with a higher --max-trials."
        )
    shared = set.intersection(*(set(trial.settings) for trial in complete))
    columns = {name: [trial.settings[name] for trial in complete] for name in sorted(shared)}
    varied = {name: values for name, values in columns.items() if len(set(map(str, values))) > 1}
    if not varied:
        return "No setting that all trials share has more than one value."
    if len({trial.value for trial in complete}) == 1:
        return "All trials have the same metric."
    return _fanova(varied, [trial.value for trial in complete])


def _fanova(columns: Mapping[str, Sequence[Any]], metrics: Sequence[float | None]) -> dict[str, float]:
    """Estimate the importance of settings from their values and the metric in each trial."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions: dict[str, BaseDistribution] = {}
    parameters: dict[str, Sequence[float | str]] = {}
    for name, values in columns.items():
        if all(isinstance(value, int | float) for value in values):
            parameters[name] = numbers = [float(value) for value in values]
            distributions[name] = FloatDistribution(min(numbers), max(numbers), log=needs_log(numbers))
        else:
            parameters[name] = names = [str(value) for value in values]
            distributions[name] = CategoricalDistribution(sorted(set(names)))
    trials = [
        optuna.create_trial(
            params=dict(zip(columns, row, strict=True)), distributions=distributions, value=metric
        )
        for row, metric in zip(zip(*parameters.values(), strict=True), metrics, strict=True)
    ]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        study.add_trials(trials)
        evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
        importance = get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(value) for name, value in importance.items()}
