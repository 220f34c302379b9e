"""Runs a study's trials on this machine, one at a time in each slot."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import Any

from optuna import TrialPruned
from optuna.trial import Trial

from trainer.data.quality.known_scans import KNOWN_SCANS, SCANS_FILE
from trainer.errors import FullDiskError, TrainerError
from trainer.full_disk import make_room
from trainer.job.job import Job
from trainer.sweep.attempts import MICRO_BATCHES, trial_number
from trainer.sweep.execution.fork_client import ForkServer, run_trial
from trainer.sweep.execution.messages import Order, Outcome
from trainer.sweep.execution.slots import Slot
from trainer.sweep.execution.storage import HEARTBEAT_SECONDS
from trainer.sweep.execution.trial_queue import TrialQueue
from trainer.sweep.search import Search

log = logging.getLogger("trainer")

_POLL_SECONDS = 1.0


@dataclass(eq=False)
class Worker:
    """Runs trials until the queue is empty, `stop` is set, or the deadline has passed.

    Attributes:
        storage: address of the study's storage, for the trials' processes.
        directory: gets a run's directory for each trial, named by its number.
        deadline: UNIX time after which no trial starts and running ones end at their next evaluation.
        parent_run: ID of the sweep's run in MLflow, the parent of the trials' runs.
        on_trial_end: called in a slot's thread with a trial's number and how its attempt ended.
    """

    queue: TrialQueue
    job: Job
    search: Search
    storage: str
    directory: Path
    slots: Sequence[Slot]
    deadline: float | None
    parent_run: str | None
    on_trial_end: Callable[[int, Outcome], None]

    def __post_init__(self) -> None:
        self.stop = Event()
        self._taking = Lock()
        self._slots_ended = Event()
        self._running: dict[int, Trial] = {}  # by Optuna's ID
        self._lost: set[int] = set()  # IDs of trials that another worker took over
        self._slot_threads = [Thread(target=self._guarded, args=(self._work, slot)) for slot in self.slots]
        self._heartbeat = Thread(target=self._guarded, args=(self._beat,))
        self._errors: list[BaseException] = []
        environment = {**self.slots[0].thread_variables(), KNOWN_SCANS: str(self.directory / SCANS_FILE)}
        self._server = ForkServer(environment, self.directory / "fork_server.out")

    def start(self) -> None:
        """Start the threads; `wait` waits for their end."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for thread in (*self._slot_threads, self._heartbeat):
            thread.start()

    @property
    def is_over(self) -> bool:
        """Whether no slot runs trials any more."""
        return not any(thread.is_alive() for thread in self._slot_threads)

    def wait(self) -> None:
        """Wait for the running trials.

        Raises:
            BaseException: the first error in the worker's own threads; a trial's error is its outcome.
        """
        for thread in self._slot_threads:
            thread.join()
        self._slots_ended.set()
        self._server.close()
        self._heartbeat.join()
        if self._errors:
            raise self._errors[0]

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001  `wait` raises it in the main thread
            self._errors.append(error)
            self.stop.set()

    def _work(self, slot: Slot) -> None:
        while not self.stop.is_set():
            is_late = self.deadline is not None and time.time() >= self.deadline
            trial = None if is_late else self._take()
            if trial is not None:
                self._run_and_tell(trial, slot)
            elif self.queue.is_over(after_deadline=is_late):
                return
            else:  # a trial of another worker may still fail and be retried here
                self.stop.wait(_POLL_SECONDS)

    def _take(self) -> Trial | None:
        with self._taking:
            trial = self.queue.next()
            if trial is not None:
                self._running[trial._trial_id] = trial
            return trial

    def _run_and_tell(self, trial: Trial, slot: Slot) -> None:
        try:
            ended = self._run(trial, slot)
            outcome = self.queue.tell(trial, ended)
        except TrialPruned:  # another worker got the last combination of a grid
            self.queue.drop(trial)
            return
        finally:
            self._running.pop(trial._trial_id)
        if ended.disk_full:  # the other trials would fail, too
            step = "resume the sweep with `trainer fit --resume`"
            raise FullDiskError(make_room(self.directory, os.strerror(errno.ENOSPC), step))
        self.on_trial_end(trial_number(trial), outcome)

    def _beat(self) -> None:
        while True:
            self._lost |= self.queue.beat(list(self._running.values()))
            if self._slots_ended.wait(HEARTBEAT_SECONDS):
                return

    def _run(self, trial: Trial, slot: Slot) -> Outcome:
        started = time.monotonic()
        try:
            order, path = self._prepare(trial, slot)
        except TrainerError as error:
            return Outcome(state="failed", reason=str(error))
        outcome = run_trial(
            self._server,
            order,
            path,
            slot.variables(),
            should_stop=lambda: self.stop.is_set() or trial._trial_id in self._lost,
        )
        seconds = round(time.monotonic() - started, 1)
        return outcome.model_copy(update={"attributes": {**outcome.attributes, "seconds": seconds}})

    def _prepare(self, trial: Trial, slot: Slot) -> tuple[Order, Path]:
        """Sample the trial's settings and write its job file.

        Returns:
            The order for its process, and the path for the order.

        Raises:
            TrainerError: the settings cannot be used.
            TrialPruned: the grid has no combination left.
        """
        number = trial_number(trial)
        run = self.directory / f"{number:04d}"
        settings = self.search.space.suggest(trial)
        trial.set_user_attr("parameters", settings)
        trial.set_user_attr("directory", str(run.resolve()))
        job = self.job.for_trial(settings)
        job = job.model_copy(update={"gpus": len(slot.gpus), "output": run})
        job.resolve_settings()
        file = self.directory / f"{number:04d}.yaml"
        file.write_text(job.to_yaml(), encoding="utf-8")
        if run.exists() and not (run / "job.yaml").exists():
            shutil.rmtree(run)  # an earlier attempt ended before it wrote anything that can be resumed
        order = Order(
            job=file,
            directory=run,
            storage=self.storage,
            study=self.queue.study.study_name,
            trial_id=trial._trial_id,
            policy=self.job.sweep.early_termination if self.job.sweep else None,
            deadline=self.deadline,
            parent_run=self.parent_run,
            micro_batches=trial.user_attrs.get(MICRO_BATCHES, 1),
            measures_latency=self.job.measures_latency,
        )
        return order, file.with_suffix(".json")


def watch(worker: Worker, show: Callable[[], Any] | None = None) -> None:
    """Start a worker and wait for its end; Ctrl-C ends its trials first.

    Args:
        show: returns what a terminal displays meanwhile: anything that rich can render.
    """
    worker.start()
    try:
        with _sigterm_as_ctrl_c():
            if show is None:
                while not worker.is_over:
                    time.sleep(0.2)
            else:
                from rich.live import Live

                with Live(show(), refresh_per_second=1) as live:
                    while not worker.is_over:
                        time.sleep(1)
                        live.update(show())
                    live.update(show())
    except KeyboardInterrupt:
        log.warning("stopping the trials; other workers or `trainer fit --resume` will resume them")
        worker.stop.set()
        worker.wait()
        raise
    worker.wait()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM, by which schedulers and container runtimes end a process, like Ctrl-C."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
