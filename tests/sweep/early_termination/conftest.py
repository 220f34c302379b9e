"""Trials with the metric that they have reported, in real studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from trainer.sweep import early_termination

Ends = Callable[..., bool]


def report(trial: optuna.Trial, values: Sequence[float | None]) -> None:
    """The metric at steps 1, 2, 3 …; None: nothing at this step."""
    for step, value in enumerate(values, start=1):
        if value is not None:
            trial.report(value, step)


@pytest.fixture(params=["memory", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    if request.param == "memory":
        return optuna.storages.InMemoryStorage()
    return JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))


@pytest.fixture
def ends() -> Ends:
    """ends(policy, values, others, maximise=True): whether a trial is ended after its last value.

    `others` are the values of trials before it; a pair of values and a state, of those that do not run.
    """

    def judge(
        policy: dict[str, Any],
        values: Sequence[float | None],
        others: Sequence[Any] = (),
        *,
        maximise: bool = True,
    ) -> bool:
        study = optuna.create_study(
            pruner=early_termination.create_pruner(policy),
            direction="maximize" if maximise else "minimize",
        )
        for other in others:
            reported, state = other if isinstance(other, tuple) else (other, None)
            trial = study.ask()
            report(trial, reported)
            if state is TrialState.COMPLETE:
                study.tell(trial, reported[-1])
            elif state is not None:
                study.tell(trial, state=state)
        trial = study.ask()
        report(trial, values)
        return trial.should_prune()

    return judge
