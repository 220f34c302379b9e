"""`trainer fit` and `trainer worker`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from trainer.cli.application import ShortHelp, app, application
from trainer.cli.arguments import Count, Hyperparameters, JobFlags, LimitsFlags, Switch, flag_of, job_values
from trainer.cli.flags import heading, values_of, whole_number_or_word
from trainer.errors import JobError, Problem
from trainer.job import file as job_file
from trainer.job.changes import override
from trainer.job.former import replace_former
from trainer.job.job import Job

if TYPE_CHECKING:
    from trainer.runs import Run

_SHORT_HELP = (
    *("--config", "--resume", "--dry-run", "--help-all"),
    *("--task", "--data", "--validation-data", "--validation-data-size", "--data-asset", "--skip-invalid"),
    *("--model", "--weights", "--number-of-epochs", "--training-batch-size", "--early-stopping", "--recipe"),
    *("--learning-rate", "--optimizer", "--weight-decay", "--validation-crop-size", "--min-size"),
    *("--image-size", "--gpus", "--number-of-workers", "--random-seed", "--max-trials"),
    *("--max-concurrent-trials", "--timeout-minutes", "--output", "--tracking-uri", "--register-model"),
)
_RESUMABLE = (
    *("gpus", "processes", "precision", "nodes", "limits", "tracking_uri", "calibrate", "register_model"),
    *("loggers", "callbacks"),
)
_JOB = Parameter(group=heading("Job"))


@app.command(help_formatter=ShortHelp(_SHORT_HELP))
def fit(
    *,
    config: Annotated[Path | None, _JOB] = None,
    node: Annotated[str, _JOB] = "",
    resume: Annotated[Path | None, _JOB] = None,
    dry_run: Annotated[Switch, _JOB] = False,
    check_data: Annotated[Switch, _JOB] = False,
    help_all: Annotated[Switch, _JOB] = False,
    job: JobFlags | None = None,
    limits: LimitsFlags | None = None,
    hyperparameters: Hyperparameters | None = None,
) -> None:
    """Train a model, package it and score the validation data with it.

    With --max-trials over 1, a sweep trains that many models and packages the best. It uses the search space
    of --config; without one, AutoMode chooses models and settings for the data and the hardware
    (docs/automode.md).

    Examples:

        trainer fit --task object-detection --data train.jsonl --model fasterrcnn_resnet50_fpn
        trainer fit --task object-detection --data train.jsonl --max-trials 10
        trainer fit --config job.yml --number-of-epochs 5

    Parameters
    ----------
    config
        Azure job file, YAML or JSON. The forms of the command line, the Python SDK and the REST interface are
        read; flags override the file.
    node
        Of a pipeline in --config in which several nodes train image models, the one to run.
    resume
        Resume the stopped run in this directory, or extend a finished one. A single run is extended by
        --number-of-epochs and takes other hyperparameters that leave the network as it is; a sweep is
        extended by --max-trials and takes --max-concurrent-trials. Both take --gpus, --processes,
        --precision, --nodes, --timeout-minutes, --tracking-uri, --calibrate, --register-model, --logger and
        --callback.
    dry_run
        Train nothing; print the resolved job as YAML. It has every setting, the search space and the settings
        of the first trials.
    check_data
        With --dry-run, also read the data and count them.
    help_all
        Show every flag.
    """
    if help_all:
        complete = application("trainer fit", help_flags=(), version_flags=())
        complete.default(fit)
        complete.help_print([])
        return
    values, settings = job_values(job, limits), values_of(hyperparameters)
    if check_data and not dry_run:
        raise _unusable("needs --dry-run; training always checks its data", "--check-data")
    if node and config is None:
        raise _unusable("needs --config, a pipeline", "--node")
    if resume is not None and dry_run:
        raise _unusable("cannot be combined with --resume; job.yaml in the run has its settings", "--dry-run")
    if resume is not None:
        # Of the file only the settings count, so the rest need not be complete.
        own = {}
        if config is not None:
            given = ("training_data", "validation_data")
            own = replace_former(job_file.read(config, node, given)[0])["settings"]
        _resume(resume, values, override(own, settings))
        return
    if config is None:
        missing = [flag_of(name) for name in ("task", "training_data") if name not in values]
        if missing:
            raise _unusable("must be given, as a flag or by --config", *missing)
        wanted = Job.of(settings=settings, **values)
    else:
        wanted = Job.read(config, node=node, settings=settings, **values)
    where = str(config or "")
    if dry_run:
        from trainer.cli.dry_run import preview

        print(preview(wanted, where, check_data=check_data), end="")
        return
    if not wanted.sweeps:
        wanted.resolve_settings("" if settings else where)  # before the slow imports
    from trainer.fitting import fit as run_job

    _show(run_job(wanted, progress=True))


def _unusable(rule: str, *flags: str) -> JobError:
    return JobError("the job cannot be run:", [Problem(flag, "", rule) for flag in flags])


def _resume(directory: Path, values: dict[str, Any], settings: dict[str, Any]) -> None:
    fixed = [flag_of(name) for name in values if name not in _RESUMABLE]
    if fixed:
        rule = "cannot change when a run is resumed; start a new run for it"
        raise JobError("the run cannot be resumed:", [Problem(flag, "", rule) for flag in fixed])
    from trainer.fitting import resume

    _show(resume(directory, settings, progress=True, **values))


def _show(run: Run) -> None:
    if not run.is_rank_zero:
        return  # of the processes that torchrun or srun started, one prints
    result = run.read_result()
    typed = shlex.quote(str(run.directory))
    print(
        f"\nrun         {run.directory}\nbest epoch  {result.best_of_epochs}"
        f"\n{result.primary_metric:10}  {result.value:.4f}\nmodel       {run.model}"
        f"\n\nnext:  trainer serve {typed}\n       trainer predict {typed} IMAGE..."
    )


@app.command
def worker(
    *,
    storage: str,
    study: str,
    output: Path | None = None,
    gpus: Annotated[int | str, Parameter(converter=whole_number_or_word)] = "auto",
    concurrent: Count = 1,
) -> None:
    """Run trials of a sweep that another machine started with the same --storage, until none are left.

    Example:

        trainer worker --storage postgresql://USER:PASSWORD@HOST/DATABASE --study fridge --concurrent 4

    Parameters
    ----------
    storage
        Database that the machines share.
    study
        Name of the sweep in the storage; `trainer fit` prints it.
    output
        Directory for the trials' directories. [default: the sweep's own if this machine sees it]
    gpus
        Number of GPUs: 0 for the CPU, auto for all.
    concurrent
        Number of concurrent trials; the GPUs are divided among them.
    """
    from trainer.sweep.execution.join import join_sweep

    count = join_sweep(storage, study, output=output, gpus=gpus, concurrent=concurrent)
    print(f"{count} trials ended here; none are left")
