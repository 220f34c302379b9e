"""The grid: each combination once, whoever works at it, and no more than that."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from trainer.sweep import sampling
from trainer.sweep.sampling import create_sampler
from trainer.sweep.sampling.grid import Grid
from trainer.sweep.space import search_space as spaces

CONTENT: list[dict[str, Any]] = [
    {"model_name": "a", "optimizer": "choice('sgd', 'adam')", "layers": "choice(1, 2, True)"},
    {"model_name": "choice('b', 'c')", "learning_rate": "choice(0.1, 0.2)"},
]
SPACE = spaces.parse(CONTENT)
COMBINATIONS = [
    *({"model_name": "a", "optimizer": o, "layers": n} for o in ("sgd", "adam") for n in (1, 2, True)),
    *({"model_name": m, "learning_rate": r} for m in ("b", "c") for r in (0.1, 0.2)),
]


def texts(settings: Any) -> list[str]:
    """Of which True is another than 1."""
    return sorted(map(str, settings))


def test_combinations_are_numbered_without_being_made() -> None:
    grid = Grid(SPACE)
    assert grid.size == 10
    suggested = [SPACE.suggest(optuna.trial.FixedTrial(grid[number])) for number in range(10)]
    assert list(map(str, suggested)) == list(map(str, COMBINATIONS))
    with pytest.raises(IndexError):
        grid[10]
    large = Grid(spaces.parse({f"x{i}": "choice(range(1000))" for i in range(9)}))
    assert large.size == 10**27
    assert large[10**27 - 1] == {f"x{i}": 999 for i in range(9)}
    with pytest.raises(TypeError, match="x is a uniform, a grid needs choices"):
        Grid(spaces.parse({"x": "uniform(0, 1)"}))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_study_tries_every_combination_once_and_stops(seed: int | None) -> None:
    sampler = create_sampler("grid", seed=seed, space=SPACE)
    study = optuna.create_study(sampler=sampler)

    study.optimize(lambda trial: float(bool(SPACE.suggest(trial))), n_trials=100)

    tried = [SPACE.suggest(trial) for trial in study.trials]
    assert len(tried) == 10
    assert texts(tried) == texts(COMBINATIONS)
    assert (list(map(str, tried)) == list(map(str, COMBINATIONS))) is (seed is None)


def test_a_space_of_fixed_values_is_one_combination() -> None:
    for content in ({"optimizer": "sgd"}, [{"optimizer": "sgd"}, {"optimizer": "adam"}]):
        space = spaces.parse(content)
        study = optuna.create_study(sampler=create_sampler("grid", seed=0, space=space))
        study.optimize(lambda trial, space=space: float(bool(space.suggest(trial))), n_trials=9)
        assert len(study.trials) == len(space.sub_spaces)


def test_a_grid_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def run(trials: int) -> optuna.Study:
        study = optuna.create_study(
            storage=f"sqlite:///{tmp_path}/s.db",
            study_name="s",
            sampler=create_sampler("grid", seed=7, space=SPACE),
            load_if_exists=True,
        )
        study.optimize(lambda trial: float(bool(SPACE.suggest(trial))), n_trials=trials)
        return study

    run(4)
    study = run(50)
    assert texts(SPACE.suggest(trial) for trial in study.trials) == texts(COMBINATIONS)


def test_threads_share_a_grid() -> None:
    study = optuna.create_study(sampler=create_sampler("grid", space=SPACE))

    def objective(trial: optuna.Trial) -> float:
        SPACE.suggest(trial)
        time.sleep(0.01)
        return 0.0

    study.optimize(objective, n_trials=50, n_jobs=3)
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    assert texts(map(SPACE.suggest, finished)) == texts(COMBINATIONS)
    # one that asked just after the last combination was taken
    assert all(not trial.params for trial in study.get_trials(states=(TrialState.PRUNED,)))


WORKER = """
import json, sys
import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from trainer.sweep.sampling import create_sampler
from trainer.sweep.space import search_space as spaces

kind, path, content = sys.argv[1:]
storage = RDBStorage("sqlite:///" + path) if kind == "sqlite" else JournalStorage(JournalFileBackend(path))
space = spaces.parse(json.loads(content))
sampler = create_sampler("grid", space=space)
study = optuna.load_study(storage=storage, study_name="s", sampler=sampler)
print("ready", flush=True)
sys.stdin.readline()
while not sampler.is_exhausted(study):
    trial = study.ask()
    try:
        space.suggest(trial)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, 1.0)
"""


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_processes_share_a_grid_without_duplicates(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "study")
    storage = (
        RDBStorage(f"sqlite:///{path}") if kind == "sqlite" else JournalStorage(JournalFileBackend(path))
    )
    study = optuna.create_study(storage=storage, study_name="s")
    command = [sys.executable, "-c", WORKER, kind, path, json.dumps(CONTENT)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for worker in workers:  # so that neither is through before the other has begun
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=120)
        assert worker.returncode == 0

    finished = study.get_trials(states=(TrialState.COMPLETE,))
    assert texts(map(SPACE.suggest, finished)) == texts(COMBINATIONS)
    assert len(study.trials) <= 11  # at most one came too late


def test_a_trial_that_comes_too_late_is_pruned_without_parameters() -> None:
    sampler = create_sampler("grid", space=SPACE)
    assert isinstance(sampler, sampling.GridSampler)
    study = optuna.create_study(sampler=sampler)
    assert not sampler.is_exhausted(study)
    for _ in range(10):
        study.ask()
    assert sampler.is_exhausted(study)
    with pytest.raises(optuna.TrialPruned, match="every combination of the grid has its trial"):
        SPACE.suggest(study.ask())


def test_retries_and_queued_trials_take_no_combination_from_others() -> None:
    sampler = create_sampler("grid", space=SPACE)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(Grid(SPACE)[8])
    queued, first = study.ask(), study.ask()
    assert SPACE.suggest(queued) == COMBINATIONS[8]
    assert SPACE.suggest(first) == COMBINATIONS[0]
    lost = study.ask()  # whose process dies before it has asked for parameters
    study.tell(lost, state=TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)
    retry(study, study.trials[lost.number])

    settings = [SPACE.suggest(study.ask()) for _ in range(10 - 1)]

    assert settings[0] == COMBINATIONS[1]  # the retry
    assert texts(settings) == texts(COMBINATIONS[1:])
    assert isinstance(sampler, sampling.GridSampler)
    assert sampler.is_exhausted(study)


def test_a_queued_trial_must_say_all_of_its_parameters() -> None:
    study = optuna.create_study(sampler=create_sampler("grid", space=SPACE))
    study.enqueue_trial({"sub_space": 0})
    with pytest.raises(ValueError, match="must fix all parameters, 0/optimizer is missing"):
        SPACE.suggest(study.ask())
