"""`trainer fit` and `trainer worker`."""

from __future__ import annotations

import logging
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from trainer.cli.application import app
from trainer.cli.arguments import (
    DATA_ASSET,
    Count,
    DataAssets,
    Datastores,
    Switch,
    a_task,
    gpu_count,
    mapping,
)
from trainer.cli.hyperparameters import Hyperparameters
from trainer.errors import JobError, Problem

if TYPE_CHECKING:
    from trainer.runs import Run

log = logging.getLogger("trainer")


@app.command
def fit(
    *,
    task: Annotated[str | None, a_task("What to train for; needed unless --config says it.")] = None,
    data: list[str] | None = None,
    validation_data: list[str] | None = None,
    validation_data_size: float | None = None,
    model: str | None = None,
    config: Path | None = None,
    resume: Path | None = None,
    output: Path | None = None,
    weights: str | None = None,
    datastore: Datastores = None,
    data_asset: DataAssets = None,
    gpus: str | None = None,
    processes: Count | None = None,
    nodes: Count | None = None,
    max_trials: Count | None = None,
    max_concurrent_trials: Count | None = None,
    timeout_minutes: Count | None = None,
    objective: str | None = None,
    max_latency_ms: float | None = None,
    storage: str | None = None,
    study: str | None = None,
    skip_invalid: bool | None = None,
    tracking_uri: str | None = None,
    register_model: str | None = None,
    dry_run: Switch = False,
    check_data: Switch = False,
    hyperparameters: Hyperparameters | None = None,
) -> None:
    """Train a model, or many in a sweep, package the best, and score the validation data with it.

    A job with a search space is a sweep of --max-trials trials. With --max-trials over 1 and no search space
    it is AutoMode: models and settings are chosen for the data, the hardware and the time (docs/automode.md).

    Examples:

        trainer fit --task object-detection --data train.jsonl --model yolo11n
        trainer fit --task object-detection --data train.jsonl --max-trials 10
        trainer fit --config job.yml --number-of-epochs 5

    Parameters
    ----------
    data
        Training data: a .jsonl file or an MLTable folder; may be given several times.
    validation_data
        Validation data, likewise. Without it a stratified part of the training data is split off.
    validation_data_size
        Share of the training data to split off, in (0, 1). [default: 0.2]
    model
        A name from `trainer models`. [default: the task's usual model]
    config
        A job file of Azure's, as the command line, the Python SDK or the REST interface write it; flags
        override what it says.
    resume
        Go on with the run in this directory, which was stopped, or extend a finished one: a training by
        --number-of-epochs, a sweep by --max-trials. Of the other flags it takes --gpus, --processes, --nodes,
        --timeout-minutes, --tracking-uri and --register-model; for a training hyperparameters, too, unless
        they change the network; for a sweep --max-concurrent-trials.
    output
        The run's directory, new or empty. [default: a new one under runs/]
    weights
        What to start from: pretrained, none (from scratch), a directory of published files, a file, an
        earlier run's directory, or runs:/ID/model in MLflow; also the environment variable TRAINER_WEIGHTS.
        [default: pretrained]
    gpus
        How many GPUs, 0 for the CPU, or auto for all there are. [default: auto]
    processes
        Train in this many processes on the CPU instead of on GPUs.
    nodes
        How many machines train one model together, each with so many GPUs or processes. torchrun and srun say
        it by themselves; docs/many-machines.md shows how. [default: 1]
    max_trials
        How many trials a sweep runs, 1 to 1000; over 1 without a search space: AutoMode. [default: 1]
    max_concurrent_trials
        How many of them at a time, 1 to 100; this machine's GPUs are divided among them. [default: 1]
    timeout_minutes
        End the training with the first evaluation after this time, which begins once the data are read;
        packaging and the report follow; --resume trains the epochs that are left. In a sweep no trial begins
        after this time, and those that run end likewise. [default: none]
    objective
        latency: a sweep looks for short answers beside a high primary metric; its table marks the trials that
        no other beats in both.
    max_latency_ms
        A sweep's best model is the best of those that answer within this time, one image on this machine.
    storage
        Where a sweep keeps its trials, for several machines to share: postgresql://USER:PASSWORD@HOST/NAME.
        [default: a file in the run's directory]
    study
        The sweep's name in the storage, by which `trainer worker` joins. [default: that of the directory]
    skip_invalid
        Go on without invalid lines and images instead of refusing; skipped.jsonl says which and why.
    tracking_uri
        The MLflow server or database to track the run in, or none; also MLFLOW_TRACKING_URI. [default:
        mlflow.db beside the run's directory]
    register_model
        Register the packaged model under this name in MLflow.
    dry_run
        Train nothing; print as YAML the job with every setting, the search space, and what its first trials
        would be.
    check_data
        With --dry-run: also read the data and count them.
    """
    from trainer.job.job import Job, override

    given: dict[str, Any] = {
        "task": task,
        "training_data": tuple(data) if data else None,
        "validation_data": tuple(validation_data) if validation_data else None,
        "validation_data_size": validation_data_size,
        "model": model,
        "output": output,
        "weights": weights,
        "datastores": mapping(datastore) if datastore else None,
        "data_assets": mapping(data_asset, DATA_ASSET) if data_asset else None,
        "gpus": gpus if gpus in (None, "auto") else gpu_count(gpus),
        "processes": processes,
        "nodes": nodes,
        "objective": objective,
        "max_latency_ms": max_latency_ms,
        "storage": storage,
        "study": study,
        "limits": _limits(max_trials, max_concurrent_trials, timeout_minutes) or None,
        "skip_invalid": skip_invalid,
        "tracking_uri": tracking_uri,
        "register_model": register_model,
    }
    given = {name: value for name, value in given.items() if value is not None}
    flags = {flag.name: getattr(hyperparameters, flag.name, None) for flag in fields(Hyperparameters)}
    settings = {name: value for name, value in flags.items() if value is not None}
    if check_data and not dry_run:
        rule = "goes with --dry-run; a training always checks its data"
        raise JobError("the job cannot be run:", [Problem("--check-data", "", rule)])
    if resume is not None and dry_run:
        rule = "cannot go with --resume; the run's job.yaml says what it trains"
        raise JobError("the job cannot be run:", [Problem("--dry-run", "", rule)])
    if resume is not None:
        own = Job.read(config).settings if config is not None else {}
        _go_on(resume, given, override(own, settings))
        return
    missing = [flag for flag, name in (("--task", "task"), ("--data", "training_data")) if name not in given]
    if missing and config is None:
        rule = "must be given, as a flag or by --config"
        raise JobError("the job cannot be run:", [Problem(flag, "", rule) for flag in missing])
    where = str(config or "")
    job = (
        Job.of(settings=settings, **given) if config is None else Job.read(config, settings=settings, **given)
    )
    if dry_run:
        from trainer.cli.dry_run import preview

        print(preview(job, where, check_data=check_data), end="")
        return
    if job.ignored_keys:
        log.info("%s: without effect here: %s", config, ", ".join(job.ignored_keys))
    from_file = config is not None and not settings
    if not job.sweeps:
        job.resolve_settings(where if from_file else "")  # before the slow imports
    from trainer.fitting import fit as run_job

    _show(run_job(job, progress=True))


_CHANGEABLE = ("gpus", "processes", "nodes", "limits", "tracking_uri", "register_model")


def _go_on(directory: Path, given: dict[str, Any], settings: dict[str, Any]) -> None:
    """`fit --resume`: with changes only to what a run may change as it goes on."""
    fixed = [name for name in given if name not in _CHANGEABLE]
    if fixed:
        rule = "cannot change when a run goes on; start a new run for it"
        flags = {"training_data": "--data"}
        raise JobError(
            "the run cannot go on:",
            [Problem(flags.get(name, f"--{name.replace('_', '-')}"), "", rule) for name in fixed],
        )
    from trainer.fitting import resume

    _show(resume(directory, settings, progress=True, **given))


def _show(run: Run) -> None:
    result = run.read_result()
    typed = shlex.quote(str(run.directory))
    print(
        f"\nrun         {run.directory}\nbest epoch  {result.best_epoch} of {result.epochs}"
        f"\n{result.primary_metric:10}  {result.value:.4f}\nmodel       {run.model}"
        f"\n\nnext:  trainer serve {typed}\n       trainer predict {typed} IMAGE..."
    )


def _limits(trials: int | None, concurrent: int | None, minutes: int | None) -> dict[str, int]:
    """Those that are given, by their names in a job file."""
    limits = {"max_trials": trials, "max_concurrent_trials": concurrent, "timeout_minutes": minutes}
    return {name: value for name, value in limits.items() if value is not None}


@app.command
def worker(
    *,
    storage: str,
    study: str,
    output: Path | None = None,
    gpus: str = "auto",
    concurrent: Count = 1,
) -> None:
    """Take trials of a sweep that another machine began with the same --storage, until none are left.

    Parameters
    ----------
    storage
        The database that the machines share.
    study
        The sweep's name in it, as `trainer fit` printed.
    output
        Gets the trials' directories. [default: the sweep's own where this machine sees it]
    gpus
        How many GPUs, 0 for the CPU, or auto for all there are.
    concurrent
        Trials at a time, among which the GPUs are divided.
    """
    from trainer.sweep.execution.runner import work

    count = work(
        storage, study, output=output, gpus=gpus if gpus == "auto" else gpu_count(gpus), concurrent=concurrent
    )
    print(f"{count} trials ended here; the sweep has no more")
