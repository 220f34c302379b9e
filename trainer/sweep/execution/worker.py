"""Runs a study's trials on this machine, several at a time, each on devices of its own."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import Any

from optuna import TrialPruned
from optuna.trial import Trial

from trainer.errors import JobError, Problem, TrainerError
from trainer.job.job import Job
from trainer.sweep.execution import trial_process as process
from trainer.sweep.execution.attempts import PARTS, place_of
from trainer.sweep.execution.fork_server import WarmProcess
from trainer.sweep.execution.storage import HEARTBEAT_SECONDS
from trainer.sweep.execution.trial import Order
from trainer.sweep.execution.trial_queue import Outcome, SweepStudy
from trainer.sweep.setup import Setup

log = logging.getLogger("trainer")

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Place:
    """Where one trial at a time runs.

    Attributes:
        gpus: CUDA's names of the devices that it may see; empty: the CPU.
        threads: of the CPU, for each of its processes.
        cores: for all of them, and what loads their images.
    """

    gpus: tuple[str, ...]
    threads: int
    cores: int


def places(job: Job, count: int) -> list[Place]:
    """The machine's GPUs, or cores, divided among so many trials at a time; fewer if there are fewer GPUs.

    Raises:
        JobError: more GPUs are asked for than there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [] if job.processes else _gpus(job.gpus)
    if not gpus:
        return [Place((), max(1, cores // count // (job.processes or 1)), max(1, cores // count))] * count
    if count > len(gpus):
        log.warning("%d GPUs take %d trials at a time, not %d", len(gpus), len(gpus), count)
        count = len(gpus)
    share = len(gpus) // count
    if len(gpus) % count:
        log.warning("%d GPUs do not divide by %d trials; %d stay idle", len(gpus), count, len(gpus) % count)
    own = max(1, cores // count)
    return [Place(tuple(gpus[i * share : (i + 1) * share]), own, own) for i in range(count)]


def _gpus(wanted: int | str) -> list[str]:
    if wanted == 0:
        return []
    import torch

    there = torch.cuda.device_count()
    if wanted != "auto" and int(wanted) > there:
        got = f"{wanted}, but this machine has {there or 'none'}"
        raise JobError("the job cannot be run:", [Problem("--gpus", "", "asks for too many", got)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(there)]
    return names[: there if wanted == "auto" else int(wanted)]


class Worker:
    """Takes trials until there are none to take, `stop` is set, or the time is up.

    Args:
        directory: gets a run's directory for each trial, called by its number.
        parent_run: the sweep's run in MLflow, of which the trials' are children.
        deadline: UNIX time after which no trial begins and running ones end at their next evaluation.
        told: called after each trial with its number and what became of it.
    """

    def __init__(
        self,
        study: SweepStudy,
        job: Job,
        setup: Setup,
        storage: str,
        directory: Path,
        places: Sequence[Place],
        *,
        deadline: float | None = None,
        parent_run: str | None = None,
        told: Callable[[int, Outcome], None],
    ) -> None:
        self.study, self.job, self.setup, self.storage = study, job, setup, storage
        self.directory, self.places, self.deadline = directory, places, deadline
        self.parent_run, self.told = parent_run, told
        self.stop = Event()
        self._asking = Lock()
        self._ended = Event()
        self._running: dict[int, Trial] = {}
        self._lost: set[int] = set()
        self._threads: list[Thread] = []
        self._errors: list[BaseException] = []
        self._warm = WarmProcess(_threads(places[0]), directory / "warm.out")

    def start(self) -> None:
        """Begin; `wait` waits for the end."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._threads = [Thread(target=self._guarded, args=(self._work, place)) for place in self.places]
        self._threads.append(Thread(target=self._guarded, args=(self._beat,)))
        for thread in self._threads:
            thread.start()

    @property
    def is_over(self) -> bool:
        """Whether all of its places have ended."""
        return not any(thread.is_alive() for thread in self._threads[:-1])

    def wait(self) -> None:
        """Wait for the trials that run, and raise what broke the worker itself."""
        for thread in self._threads[:-1]:
            thread.join()
        self._ended.set()
        self._warm.close()
        self._threads[-1].join()
        if self._errors:
            raise self._errors[0]

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001  raised again by `wait`, in the main thread
            self._errors.append(error)
            self.stop.set()

    def _work(self, place: Place) -> None:
        while not self.stop.is_set():
            is_late = self._is_late()
            trial = None if is_late else self._next()
            if trial is not None:
                self._do(trial, place)
            elif self.study.is_over(late=is_late):
                return
            else:  # a trial of another process may yet be given up, and have to be run again
                self.stop.wait(_SECONDS_BETWEEN_LOOKS)

    def _next(self) -> Trial | None:
        with self._asking:
            trial = self.study.next()
            if trial is not None:
                self._running[trial._trial_id] = trial
            return trial

    def _do(self, trial: Trial, place: Place) -> None:
        try:
            outcome = self.study.tell(trial, self._run(trial, place))
        except TrialPruned:  # several processes asked at once for the last combination of a grid
            self.study.drop(trial)
            return
        finally:
            self._running.pop(trial._trial_id)
        self.told(place_of(trial), outcome)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.time() >= self.deadline

    def _beat(self) -> None:
        while True:
            self._lost |= self.study.beat(list(self._running.values()))
            if self._ended.wait(HEARTBEAT_SECONDS):
                return

    def _run(self, trial: Trial, place: Place) -> Outcome:
        number = place_of(trial)
        run = self.directory / f"{number:04d}"
        started = time.monotonic()
        try:
            proposal = self.setup.space.suggest(trial)
            trial.set_user_attr("parameters", proposal)
            trial.set_user_attr("directory", str(run.resolve()))
            job = self.job.for_trial(proposal)
            job = job.model_copy(update={"gpus": len(place.gpus), "output": run})
            job.resolve_settings()
            path = self._write_job(number, job)
        except TrainerError as error:
            return Outcome("failed", reason=str(error))
        if run.exists() and not (run / "job.yaml").exists():
            shutil.rmtree(run)  # an attempt that ended before it had begun
        sweep = self.job.sweep
        order = Order(
            job=path,
            directory=run,
            storage=self.storage,
            study=self.study.study.study_name,
            trial_id=trial._trial_id,
            policy=sweep.early_termination if sweep else None,
            deadline=self.deadline,
            parent_run=self.parent_run,
            parts=trial.user_attrs.get(PARTS, 1),
            measures_latency=len(self.study.study.directions) > 1,
        )
        environment = {
            **_threads(place),
            "TRAINER_CORES": str(place.cores),
            "CUDA_VISIBLE_DEVICES": ",".join(place.gpus),
        }
        outcome = process.run(
            self._warm,
            order,
            path.with_suffix(".json"),
            environment,
            lambda: self.stop.is_set() or trial._trial_id in self._lost,
        )
        seconds = round(time.monotonic() - started, 1)
        return replace(outcome, attributes={**outcome.attributes, "seconds": seconds})

    def _write_job(self, number: int, job: Job) -> Path:
        path = self.directory / f"{number:04d}.yaml"
        path.write_text(job.to_yaml(), encoding="utf-8")
        return path


def _threads(place: Place) -> dict[str, str]:
    """OpenMP's environment variables."""
    variables = {"OMP_NUM_THREADS": str(place.threads)}
    if not place.gpus:
        variables["OMP_WAIT_POLICY"] = "PASSIVE"  # trials beside each other must not spin
    return variables


def watch(worker: Worker, show: Callable[[], Any] | None = None) -> None:
    """Start a worker and wait for its end; Ctrl-C ends its trials first.

    Args:
        show: makes what a terminal is to show meanwhile.
    """
    worker.start()
    try:
        with _interrupted_by_sigterm():
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
        log.warning("ending the trials; other workers, or `trainer fit --resume`, go on with them")
        worker.stop.set()
        worker.wait()
        raise
    worker.wait()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM, with which schedulers and container runtimes end a process, does what Ctrl-C does."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
