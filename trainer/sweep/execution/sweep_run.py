"""Runs a sweep, from its job to the packaged model of its best trial."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from trainer.data.fingerprint import changes, summarise
from trainer.data.quality.known_scans import SCANS_FILE, write_scans
from trainer.data.training_data import Data
from trainer.errors import RunError
from trainer.job.job import Job
from trainer.metric_names import WHY_UNDEFINED
from trainer.metrics.results import Calibration
from trainer.metrics.voc import UNDEFINED
from trainer.models.precision import float32_products
from trainer.runs import Run
from trainer.sweep.execution import study_setup, trial_records
from trainer.sweep.execution.inputs import Inputs, read_data, read_inputs
from trainer.sweep.execution.messages import Outcome
from trainer.sweep.execution.slots import Slot, make_slots
from trainer.sweep.execution.trial_queue import TrialQueue
from trainer.sweep.execution.trial_records import Record
from trainer.sweep.execution.worker import Worker, watch
from trainer.sweep.first_trials import FirstTrials
from trainer.sweep.search import Search, prepare_search
from trainer.training import tracking
from trainer.training.mlflow_store import OFF
from trainer.training.origin import library_versions
from trainer.training.packaging import package
from trainer.training.report_writing import report
from trainer.training.run_log import logging_to

log = logging.getLogger("trainer")


def sweep(job: Job, *, progress: bool = False) -> Run:
    """Run the trials of a job that has a search space, and package the model of the best trial.

    The run's directory holds the best model like the directory of a single run, `trials/` with a run's
    directory for each trial, `trials.csv`, and `study.db` unless the job names a storage.

    Raises:
        JobError: the job, its search space or its storage cannot be used; all problems at once.
        DataError: the data break the schema.
        RunError: the output directory is taken, or no trial finished.
    """
    search = prepare_search(job)
    with read_inputs(job, progress=progress) as inputs:
        return start(job, search, inputs, progress=progress)


def start(
    job: Job,
    search: Search,
    inputs: Inputs,
    first_trials: FirstTrials | None = None,
    *,
    progress: bool = False,
) -> Run:
    """Create the run of a sweep and its study, then run its trials.

    Args:
        first_trials: run before those of the sampler, and are kept in the run's directory.

    Raises:
        JobError: the storage cannot be used.
        RunError: the output directory is taken, or no trial finished.
    """
    if job.output is not None:
        run = Run.create_at(job.output)
    else:
        run = Run.create(Path("runs"), job.name or f"{job.task}-sweep")
    if inputs.skipped.exists():
        shutil.copyfile(inputs.skipped, run.skipped)
    with run.full_disk_told(), run.lock(), logging_to(run.log):
        inputs.data.log_findings(run.skipped)
        if first_trials is not None:
            first_trials.write(run.directory, job.search_space)
            for reason in first_trials.reasons:
                log.info("%s", reason)
        job, address = study_setup.keep_storage(job.with_augmentation_in(run.directory), run)
        run.write_job(job.to_yaml(run.directory))
        queue = study_setup.create_study(job, search, address, run)
        queue.study.set_user_attr(study_setup.DATA, summarise(inputs.data))
        (first_trials or FirstTrials()).enqueue_missing(queue.study, search.space, job.limits.max_trials)
        return _Sweep(job, search, inputs.data, run, queue, address).finish(inputs.slots, progress)


def resume(run: Run, job: Job, *, progress: bool = False) -> Run:
    """Resume a sweep that was stopped, or extend a finished one by more trials.

    Trials that were running resume from their last checkpoints.

    Args:
        job: the run's own, perhaps with other limits or devices.

    Raises:
        RunError: another process runs the sweep, or all of its trials have ended.
        Others as `sweep`.
    """
    search = prepare_search(job, str(run.job))
    address = study_setup.storage_address(job, run)
    with run.full_disk_told(), run.lock(), logging_to(run.log):
        queue = study_setup.find_study(job, search, address, run)
        queue.stop_orphans("the sweep was stopped")
        count = len(queue.records())
        if run.result.exists() and queue.is_over() and not queue.has_more:
            hint = f"--max-trials over {count} adds more"
            if count < job.limits.max_trials:
                hint = "the grid has no more combinations"
            raise RunError(f"{run.directory}: all of its {count} trials have ended; {hint}")
        data = read_data(job, run.skipped, progress=progress)
        data.log_findings(run.skipped)
        if changed := changes(queue.study.user_attrs.get(study_setup.DATA, {}), data):
            log.warning(
                "the data have changed since the sweep started: %s. Earlier and later trials do not compare",
                changed,
            )
        run.write_job(job.to_yaml(run.directory))
        FirstTrials.read(run.directory).enqueue_missing(queue.study, search.space, job.limits.max_trials)
        log.info("resuming the sweep: %d of %d trials exist", count, job.limits.max_trials)
        slots = make_slots(job, job.limits.max_concurrent_trials)
        return _Sweep(job, search, data, run, queue, address).finish(slots, progress)


@dataclass(frozen=True)
class _Sweep:
    """A sweep whose study exists."""

    job: Job
    search: Search
    data: Data
    run: Run
    queue: TrialQueue
    storage_address: str
    _writing: Lock = field(default_factory=Lock, init=False)  # trials end in several threads

    def finish(self, slots: Sequence[Slot], progress: bool) -> Run:
        """Run all trials, then package, report and track the best one.

        Raises:
            RunError: no trial has the primary metric, or the best trial's directory is on another machine.
        """
        started = time.perf_counter()
        job, run = self.job, self.run
        self._log_start(len(slots))
        minutes = job.limits.timeout_minutes
        deadline = time.time() + 60 * minutes if minutes else None
        store = tracking.find(job.tracking_uri, run.directory)
        address = store.uri if store else OFF
        tags = tracking.tags_of(job, self.data, library_versions())
        with tracking.start(store, run.directory, job, self._parameters(), tags) as tracker:
            study_setup.open_to_workers(
                self.queue.study, job, run, deadline=deadline, tracking=(address, tracker.run_id)
            )
            worker = Worker(
                self.queue,
                job.model_copy(update={"tracking_uri": address}),
                self.search,
                self.storage_address,
                run.directory / "trials",
                slots,
                deadline=deadline,
                parent_run=tracker.run_id,
                on_trial_end=self._on_trial_end,
            )
            worker.directory.mkdir(parents=True, exist_ok=True)
            write_scans(worker.directory / SCANS_FILE, [self.data.train, self.data.validation])
            try:
                watch(worker, self._table if progress and sys.stdout.isatty() else None)
            finally:
                records = self._write_trials()
            trial, calibration = self._package_best(records, started)
            report(run, job, self.data, calibration)
            result = run.read_result()
            tracker.log(job.limits.max_trials, {f"best_{job.metric}": result.value})
            best = {"model": result.model, "best_trial": str(result.best_trial)}
            tracker.tag({"model_path": str(run.model.absolute()), **best})
            tracker.publish(run.model, trial.directory, register_as=job.register_model)
        return run

    def _on_trial_end(self, number: int, outcome: Outcome) -> None:
        trial_records.log_outcome(number, outcome, self.job.metric)
        self._write_trials()

    def _write_trials(self) -> list[Record]:
        """Write trials.csv, after each trial, so that a sweep that is killed later has it too."""
        with self._writing:
            records = self.queue.records()
            trial_records.write_csv(self.run.directory / "trials.csv", records, self.job.metric)
            return records

    def _table(self) -> Any:
        return trial_records.render(self.queue.records(), self.job.metric, self.job.max_latency_ms)

    def _log_start(self, slots: int) -> None:
        train, validation = len(self.data.train), len(self.data.validation)
        log.info(
            "sweep for %s: %d trials, %d at a time, %d training and %d validation images",
            self.job.task, self.job.limits.max_trials, slots, train, validation,
        )  # fmt: skip
        log.info("run directory: %s", self.run.directory)
        if self.job.storage is not None:
            log.info(
                "other machines join by: trainer worker --storage … --study %s", self.queue.study.study_name
            )

    def _parameters(self) -> dict[str, Any]:
        """The parameters of the sweep's run in MLflow; its child runs have the settings."""
        content = self.job.to_dict()
        return {"primary_metric": self.job.metric, **content["limits"], **content.get("sweep", {})}

    def _package_best(self, records: Sequence[Record], started: float) -> tuple[Run, Calibration | None]:
        """Package the best trial's model and write the sweep's result.

        Returns:
            The best trial's run, and the calibration of its model if the job asks for one.

        Raises:
            RunError: no trial finished, or the best trial's directory is on another machine.
        """
        run, job = self.run, self.job
        best = trial_records.best_of(records, job.metric, job.max_latency_ms)
        if best is None:
            reason = trial_records.why_none_is_best(records, job.metric, job.max_latency_ms)
            raise RunError(f"{run.directory}: {reason}")
        trial = _run_of(best)
        trained = time.perf_counter()
        on_gpu = not job.processes and job.gpus != 0
        with float32_products(job.precision, on_gpu=on_gpu):
            calibration = package(trial, self.data, into=run, on_gpu=on_gpu, calibrate=job.calibrate)
        ended = time.perf_counter()
        result = trial.read_result()
        spent = {"train": trained - started, "package": ended - trained, "total": ended - started}
        durations = result.durations.model_copy(update=spent)
        update: dict[str, Any] = {"durations": durations, "best_trial": best.number}
        if calibration is not None:
            update["calibration"] = calibration.summary()
        run.write_result(result.model_copy(update=update))
        if not sys.stdout.isatty():
            from rich.console import Console

            Console(width=160).print(self._table())
        log.info(
            "%s %.4f in trial %d, the best of %d, after %.0f s",
            job.metric, best.values[0], best.number, len(records), ended - started,
        )  # fmt: skip
        if best.values[0] == UNDEFINED:
            log.warning("%s was undefined in every trial, so it chose none: %s", job.metric, WHY_UNDEFINED)
        log.info("settings of trial %d: %s", best.number, trial_records.settings_in_words(best))
        return trial, calibration


def _run_of(best: Record) -> Run:
    """The run of the best trial.

    Raises:
        RunError: its directory is on another machine.
    """
    directory = Path(best.attributes["directory"])
    if not directory.is_dir():
        raise RunError(
            f"the best trial, {best.number}, is in {directory} on {best.attributes['host']}; copy that "
            "directory to the same path on this machine, then use --resume"
        )
    return Run.open(directory, needs=("checkpoints/best.ckpt",))
