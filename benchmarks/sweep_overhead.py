"""Measures the time that a sweep adds to each trial's training.

    python benchmarks/sweep_overhead.py [--trials 4] [--concurrent 1] [--keep DIRECTORY]

The goal is under 5 % of a trial of 5 minutes, which is under 15 seconds per trial, in a sweep of few trials
that share the one-time costs of reading the data and packaging the best model.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

import optuna
import yaml

from benchmarks import measuring
from trainer.data.samples import make
from trainer.runs import Run
from trainer.sweep.execution.storage import open_storage
from trainer.tasks import Task

GOAL_SECONDS = 0.05 * 300


def write_job(directory: Path, trials: int, concurrent: int, tiny: bool = False) -> Path:
    """Write the job of a sweep over a small classifier with short training runs, so that overhead shows."""
    data = make(Task.CLASSIFICATION, directory / "data", images=20 if tiny else 100, seed=1)
    job = {
        "type": "automl",
        "task": "image_classification",
        "training_data": {"path": str(data.train), "type": "mltable"},
        "validation_data": {"path": str(data.validation), "type": "mltable"},
        "limits": {"max_trials": trials, "max_concurrent_trials": concurrent},
        "sweep": {"sampling_algorithm": "bayesian", "early_termination": {"type": "median_stopping"}},
        "training_parameters": {
            "model_name": "timm/test_resnet" if tiny else "resnet18",
            "number_of_epochs": 1 if tiny else 3,
            "training_batch_size": 16,
            "training_crop_size": 64,
            "validation_crop_size": 64,
            "validation_resize_size": 72,
        },
        "search_space": [
            {"learning_rate": {"type": "loguniform", "min_value": -9.2, "max_value": -4.6}},
            {
                "learning_rate": {"type": "uniform", "min_value": 1e-3, "max_value": 1e-2},
                "optimizer": {"type": "choice", "values": ["adam", "adamw"]},
            },
        ],
        "local": {"weights": "none"},
    }
    path = directory / "job.yml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


def parts(run: Path) -> Iterator[dict[str, float]]:
    """Yield each trial's seconds by part, from the timestamps of its files."""
    study = optuna.load_study(study_name=run.name, storage=open_storage(f"sqlite:///{run / 'study.db'}"))
    for trial in study.get_trials():
        directory = Path(trial.user_attrs["directory"])
        durations = Run(directory).read_result().durations
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        asked, told = trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()
        ordered = directory.with_suffix(".json").stat().st_mtime
        begun = (directory / "job.yaml").stat().st_mtime
        finished = (directory / "result.json").stat().st_mtime
        yield {
            "proposal": ordered - asked,
            "process start and imports": begun - ordered - durations.prepare,
            "data and network": durations.prepare,
            "training": durations.train + durations.evaluate,
            "process end and record": told - finished,
        }


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=None)
    parser.add_argument("--trials", type=int, default=4, help="[default: 4]")
    parser.add_argument("--concurrent", type=int, default=1, help="[default: 1]")
    parser.add_argument("--keep", type=Path, help="new directory in which to keep the run")
    options = parser.parse_args()
    print(measuring.heading("Sweeps", "torch", "lightning", "optuna", "mlflow"), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=options.keep is None)
        run = directory / "run"
        job = write_job(directory, options.trials, options.concurrent, options.tiny)
        command = [sys.executable, "-m", "trainer", "fit", "--config", job, "--output", run]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - started
        trials = list(parts(run))
        result = json.loads((run / "result.json").read_text("utf-8"))
    count = len(trials)
    training = mean(trial["training"] for trial in trials)
    overhead = wall * options.concurrent / count - training
    costs = {name: mean(trial[name] for trial in trials) for name in trials[0] if name != "training"}
    package = result["durations"]["package"] * options.concurrent / count
    costs[f"packaging the best, shared by {count}"] = package
    costs[f"the rest: start, end and waiting, shared by {count}"] = overhead - sum(costs.values())
    rows = [[name, f"{seconds:.1f}", f"{seconds / 3:.1f} %"] for name, seconds in costs.items()]
    rows.append(["**all but training**", f"**{overhead:.1f}**", f"**{overhead / 3:.1f} %**"])
    rows.append(["training", f"{training:.1f}", "–"])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (used.ru_utime + used.ru_stime) / count
    rows.append(["CPU time of everything, training too", f"{processor:.1f}", "–"])
    print(f"{count} trials, {options.concurrent} at a time, in {wall:.0f} s.\n")
    print(measuring.table(("part of a trial", "mean seconds", "of 300 s"), rows))
    met = overhead < GOAL_SECONDS
    print(
        f"\nGoal, under 5 % of a trial of 5 minutes, {GOAL_SECONDS:.0f} s: {'met' if met else '**missed**'}."
    )


if __name__ == "__main__":
    main()
