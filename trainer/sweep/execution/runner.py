"""A sweep from its job to the best trial's packaged model; and workers that join one from other machines."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path
from threading import Lock
from typing import Any

import optuna

from trainer.automode import plan as auto
from trainer.automode.data_statistics import machine, measure
from trainer.data.training_data import Data, load
from trainer.errors import RunError
from trainer.job.job import Job
from trainer.runs import Result, Run
from trainer.sweep.execution import study_setup as studies
from trainer.sweep.execution import trial_table as table
from trainer.sweep.execution.storage import open_storage
from trainer.sweep.execution.trial_queue import Outcome, Record, SweepStudy
from trainer.sweep.execution.worker import Worker, places, watch
from trainer.sweep.setup import Setup, make, random_seed
from trainer.training import tracking
from trainer.training.mlflow_store import OFF
from trainer.training.origin import library_versions
from trainer.training.packaging import package
from trainer.training.report_writing import report
from trainer.training.run_log import logging_to

log = logging.getLogger("trainer")


def sweep(job: Job, *, progress: bool = False) -> Run:
    """Run a job's trials, and package the best one's model.

    The run's directory holds the best model as a single training's does, `trials/` with a run's directory for
    each trial, `trials.csv`, and `study.db` unless the job names a storage.

    Raises:
        JobError: the job, its search space or its storage cannot be used; all problems at once.
        DataError: the data break the schema.
        RunError: the output directory is taken, or no trial came to an end.
    """
    planned = auto.is_automatic(job)
    setup = make(auto.check(job) if planned else job)
    studies.check(job)
    with tempfile.TemporaryDirectory() as scratch:
        skipped = Path(scratch) / "skipped.jsonl"
        data = _load(job, skipped, progress)
        room = places(job, job.limits.max_concurrent_trials)
        if planned:
            plan = auto.plan(job, measure(data), machine(job, room), len(room))
            job, setup = plan.job, make(plan.job)
        if job.output is not None:
            run = Run.create_at(job.output)
        else:
            run = Run.create(Path("runs"), job.name or f"{job.task}-sweep")
        if skipped.exists():
            shutil.copyfile(skipped, run.skipped)
    with run.lock(), logging_to(run.log):
        if planned:
            plan.write(run.directory)
            for reason in plan.reasons:
                log.info("%s", reason)
        job, storage = studies.begin(job, run)
        run.write_job(job.to_yaml())
        study = studies.create(job, setup, storage, run)
        auto.enqueue(study, setup.space, run.directory, job.limits.max_trials)
        return _Sweep(job, setup, data, run, SweepStudy(study, job.limits.max_trials), storage).run(
            room, progress
        )


def resume(run: Run, job: Job, *, progress: bool = False) -> Run:
    """Resume a sweep that was stopped, or extend one by more trials.

    Trials that were running resume from their last checkpoints.

    Args:
        run: of the sweep.
        job: the run's own, perhaps with other limits or devices.

    Raises:
        RunError: the sweep is running, or all of its trials have ended.
        Others as `sweep`.
    """
    setup = make(job, str(run.job))
    storage = studies.storage_of(job, run)
    with run.lock(), logging_to(run.log):
        study = SweepStudy(studies.find(job, setup, storage, run), job.limits.max_trials)
        study.stop_running("the sweep was stopped")
        ended = len(study.records())
        if run.result.exists() and study.is_over() and not study.has_more:
            rule = (
                "a grid has no more"
                if ended < job.limits.max_trials
                else f"--max-trials over {ended} adds more"
            )
            raise RunError(f"{run.directory}: all of its {ended} trials have ended; {rule}")
        data = _load(job, None, progress)
        run.write_job(job.to_yaml())
        auto.enqueue(study.study, setup.space, run.directory, job.limits.max_trials)
        log.info("going on with %d trials of %d", ended, job.limits.max_trials)
        room = places(job, job.limits.max_concurrent_trials)
        return _Sweep(job, setup, data, run, study, storage).run(room, progress)


def work(
    storage: str, name: str, *, output: Path | None = None, gpus: int | str = "auto", concurrent: int = 1
) -> int:
    """Take trials of a sweep that another machine began, until there are none left.

    Args:
        storage: where the study is kept; this machine must see the job's data under the same paths.
        name: of the study.
        output: gets the trials' directories; None: the sweep's own if this machine sees it, else a new one.
        concurrent: trials at a time.

    Returns:
        How many trials ended here.

    Raises:
        JobError: there is no such study, its storage cannot be reached, or more GPUs are asked for than
            there are.
        DataError: this machine does not see the data, or they break the schema.
    """
    attributes = studies.attributes(storage, name)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.yaml"
        file.write_text(attributes[studies.JOB], encoding="utf-8")
        job = Job.read(file, where=f"the job of study {name}", gpus=gpus)
    setup = make(job)
    _load(job, None, progress=False)  # on a machine that does not see them every trial would fail
    study = optuna.load_study(
        study_name=name, storage=open_storage(storage), sampler=setup.sampler, pruner=setup.pruner
    )
    shared = Path(attributes[studies.DIRECTORY])
    directory = output or (shared if shared.is_dir() else Path("runs") / name) / "trials"
    count = 0

    def told(number: int, outcome: Outcome) -> None:
        nonlocal count
        count += outcome.state in ("complete", "pruned")
        _tell(number, outcome, job.metric)

    address, parent = attributes.get(studies.TRACKING, (OFF, None))
    if address.startswith("sqlite") and not shared.is_dir():
        address, parent = OFF, None  # that file lies on the other machine
    worker = Worker(
        SweepStudy(study, job.limits.max_trials), job.model_copy(update={"tracking_uri": address}), setup,
        storage, directory, places(job, concurrent), deadline=attributes.get(studies.DEADLINE),
        parent_run=parent, told=told,
    )  # fmt: skip
    log.info("working at study %s, trials in %s", name, directory)
    watch(worker)
    return count


def _load(job: Job, skipped: Path | None, progress: bool) -> Data:
    return load(
        job.task,
        job.training_data,
        job.validation_data,
        validation_size=job.validation_data_size,
        seed=random_seed(job) or 0,
        datastores=job.datastores,
        skip_invalid=job.skip_invalid,
        skipped_path=skipped,
        progress=progress,
    )


class _Sweep:
    """One sweep on its way to its best model."""

    def __init__(self, job: Job, setup: Setup, data: Data, run: Run, study: SweepStudy, storage: str) -> None:
        self.job, self.setup, self.data, self.directory = job, setup, data, run
        self.study, self.storage = study, storage
        self._writing = Lock()

    def run(self, room: Any, progress: bool) -> Run:
        started = time.perf_counter()
        run, job, limits = self.directory, self.job, self.job.limits
        log.info(
            "a sweep for %s: %d trials, %d at a time, %d training and %d validation images",
            job.task, limits.max_trials, len(room), len(self.data.train), len(self.data.validation),
        )  # fmt: skip
        log.info("run directory: %s", run.directory)
        if job.storage is not None:
            name = self.study.study.study_name
            log.info("others join by: trainer worker --storage … --study %s", name)
        late = time.time() + 60 * limits.timeout_minutes if limits.timeout_minutes else None
        store = tracking.find(job.tracking_uri, run.directory)
        address = store.uri if store else OFF
        tags = tracking.tags_of(job, self.data, library_versions())
        with tracking.start(store, run.directory, job, self._params(), tags) as tracker:
            studies.open_to_workers(
                self.study.study, job, run, deadline=late, tracking=(address, tracker.run_id)
            )
            worker = Worker(
                self.study, job.model_copy(update={"tracking_uri": address}), self.setup, self.storage,
                run.directory / "trials", room, deadline=late, parent_run=tracker.run_id, told=self._tell,
            )  # fmt: skip
            try:
                watch(worker, self._show if progress and sys.stdout.isatty() else None)
            finally:
                records = self._write_table()
            self._finish(records, started)
            report(run, job, self.data)
            result = run.read_result()
            tracker.log(limits.max_trials, {f"best_{job.metric}": result.value})
            best = {"model": result.model, "best_trial": str(result.best_trial)}
            tracker.tag({"model_path": str(run.model.absolute()), **best})
            if job.register_model is not None:
                tracker.register(job.register_model, run.model)
        return run

    def _params(self) -> dict[str, Any]:
        """What the sweep's run in MLflow says of it; its children have the settings."""
        content = self.job.to_dict()
        return {"primary_metric": self.job.metric, **content["limits"], **content.get("sweep", {})}

    def _tell(self, number: int, outcome: Outcome) -> None:
        _tell(number, outcome, self.job.metric)
        self._write_table()  # a sweep that is killed leaves it, too

    def _write_table(self) -> list[Record]:
        with self._writing:  # trials end beside each other
            records = self.study.records()
            table.write_csv(self.directory.directory / "trials.csv", records, self.job.metric)
            return records

    def _show(self) -> Any:
        return table.render(self.study.records(), self.job.metric, self.job.max_latency_ms)

    def _finish(self, records: list[Record], started: float) -> None:
        """Package the best trial's model and write the result.

        Raises:
            RunError: no trial came to an end, or the best one's directory is not on this machine.
        """
        run, job = self.directory, self.job
        best = table.best_of(records, job.max_latency_ms)
        if best is None:
            bound = f" within {job.max_latency_ms:g} ms" if job.max_latency_ms else ""
            raise RunError(
                f"{run.directory}: no trial came to an end{bound}; trials.csv says why each ended as it did"
            )
        trial = _trial_run(best)
        trained = time.perf_counter()
        package(trial, self.data, into=run, on_gpu=not job.processes and job.gpus != 0)
        ended = time.perf_counter()
        of_trial = trial.read_result()
        spent = {"train": trained - started, "package": ended - trained, "total": ended - started}
        durations = of_trial.durations.model_copy(update=spent)
        run.write_result(
            Result(**{**of_trial.model_dump(), "durations": durations, "best_trial": best.number})
        )
        if not sys.stdout.isatty():
            from rich.console import Console

            Console(width=160).print(table.render(records, job.metric, job.max_latency_ms))
        log.info(
            "%s %.4f by trial %d, the best of %d, in %.0f s",
            job.metric, best.values[0], best.number, len(records), ended - started,
        )  # fmt: skip


def _trial_run(best: Record) -> Run:
    """
    Raises:
        RunError: its directory lies on another machine.
    """
    directory = Path(best.attributes["directory"])
    if not directory.is_dir():
        raise RunError(
            f"the best trial, {best.number}, lies in {directory} on {best.attributes['host']}; copy that "
            "directory here, under the same path, and go on by --resume"
        )
    return Run.open(directory, needs=("checkpoints/best.ckpt",))


def _tell(number: int, outcome: Outcome, metric: str) -> None:
    if outcome.state in ("complete", "pruned"):
        more = f", {outcome.values[1]:.1f} ms" if len(outcome.values) > 1 else ""
        seconds = outcome.attributes.get("seconds", 0)
        log.info(
            "trial %d: %s, %s %.4f%s, %.0f s", number, outcome.state, metric, outcome.values[0], more, seconds
        )
    elif outcome.state == "failed":
        again = "; it is tried again" if outcome.may_succeed else ""
        log.warning("trial %d: failed, %s%s", number, outcome.reason, again)
