"""Tracking in MLflow: one run per training run, and a parent run for a sweep.

    store = tracking.find(job.tracking_uri, directory)
    with tracking.start(store, directory, job, params={...}, tags={...}) as sweep:
        ...  # each trial: fit(its_job, parent_run_id=sweep.run_id), with its tracking_uri set to store.uri
        sweep.log(1, {"mean_average_precision": 0.5})

MLflow's global state is neither used nor changed. Metrics are sent in the background. If the server does not
answer, the log gets a warning and training continues; they are sent once it answers again or, from the run's
metrics.csv, when the run is resumed. Neither torch nor Lightning is imported here, and MLflow only if needed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.fingerprint import fingerprint
from trainer.errors import RunError, TrackingError
from trainer.files import write_atomically
from trainer.full_disk import full_disk_reason
from trainer.metric_names import BY_CLASS
from trainer.models.weights.choice import BEST_CHILD_TAG, MODEL_ARTIFACT
from trainer.training.mlflow_store import DATABASE, OFF, Store, metric_key, quiet, short_waits, sqlite_uri
from trainer.training.origin import origin_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as MlflowRun

    from trainer.data.training_data import Data
    from trainer.job.job import Job

log = logging.getLogger("trainer")

NOTE = "mlflow.json"  # in a run's directory; names its run in MLflow
_DIRECTORY_TAG, _FAILURE_TAG = "run_directory", "failure"
_ARTIFACTS = ("job.yaml", "metrics.csv", "metrics_by_class.csv", "result.json", "metrics.json", "trials.csv",
              "report.html", "report")  # fmt: skip
_SENT_LAST = "learning_rate"  # metrics of single classes are sent before it: with it, MLflow has them, too
_LONGEST_PARAMETER, _LONGEST_TAG = 500, 5000  # characters; all servers accept these
_SECONDS_TO_FINISH = 10.0


def find(choice: str | None, directory: Path) -> Store | None:
    """The MLflow store of a run; None if the run is not tracked.

    Args:
        choice: the store's address or "none"; None takes MLFLOW_TRACKING_URI, else the store that tracked
            the run before, else the database next to the run's directory.
        directory: the run's, which need not exist yet.

    Raises:
        RunError: the directory's note of its earlier tracking cannot be read.
    """
    if choice == OFF:
        return None
    uri = choice or os.environ.get("MLFLOW_TRACKING_URI") or _read_note(directory).get("tracking_uri")
    return Store(uri or _default_database(directory))


@contextmanager
def start(
    store: Store | None,
    directory: Path,
    job: Job,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent_run_id: str | None = None,
) -> Iterator[Tracker]:
    """Start a run in MLflow, or resume the one that the directory's note or MLFLOW_RUN_ID names.

    At the end of the context the run in MLflow is FINISHED, KILLED by Ctrl-C, or FAILED.

    Args:
        store: None tracks nothing.
        directory: its name becomes the run's name, its files the run's artifacts.
        job: names the experiment of a run without a parent.
        params: stored as text. MLflow never changes a parameter: a value that differs when the run is resumed
            becomes the tag `changed.NAME`.

    Raises:
        TrackingError: the store does not answer, or rejects the run.
    """
    if store is None:
        yield Tracker()
        return
    with store.use() as client:
        run, is_new = _create_or_resume(client, store, directory, job, parent_run_id)
        _describe(client, run, params, {**tags, **origin_tags(), _DIRECTORY_TAG: str(directory.absolute())})
        if not is_new:
            client.update_run(run.info.run_id, status="RUNNING")
            if _FAILURE_TAG in run.data.tags:
                client.delete_tag(run.info.run_id, _FAILURE_TAG)
    _write_note(directory, store, run)
    log.info("tracking: %s", store.where_to_look(run))
    with quiet(), ExitStack() as waits:
        waits.enter_context(short_waits())  # here, because threads share the environment
        tracker = MlflowTracker(store, directory, run.info.run_id, is_new, waits)
        status = "FINISHED"
        try:
            yield tracker
        except TrackingError:
            raise  # the model is trained, even if it could not be registered
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except BaseException as error:
            status = "FAILED"
            tracker.tag({_FAILURE_TAG: f"{type(error).__name__}: {error}"})
            raise
        finally:
            tracker.end(status)


def tags_of(job: Job, data: Data, versions: Mapping[str, str]) -> dict[str, str]:
    """Tags for finding runs: the task, the data's fingerprint and the libraries' versions."""
    return {
        "task": job.task.value,
        "data_fingerprint": fingerprint(data),
        **{f"version.{name}": version for name, version in versions.items()},
    }


class Tracker:
    """Receives a run's metrics. This base class, for runs that are not tracked, ignores them.

    Attributes:
        run_id: MLflow's; None if the run is not tracked.
    """

    run_id: str | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send metrics in the background, except those that MLflow has from before the run was resumed.

        Args:
            step: the epoch, counted from 1, or a sweep's trial.
            metrics: by name; characters that MLflow does not allow in names become "_".
        """

    def tag(self, tags: Mapping[str, str]) -> None:
        """Add tags when the run ends."""

    def publish(self, model: Path, trial: Path | None = None, *, register_as: str | None = None) -> None:
        """Store a packaged model where Azure's notebooks look for the best one, and register it there.

        That is the artifact `outputs/mlflow-model` of the run that the tag `automl_best_child_run_id` of this
        run names. A model that was registered from there before keeps its files: a new child run gets the
        new one. If the store does not accept the model, the log gets a warning.

        Args:
            trial: directory of the trial of a sweep that the model comes from; the model is stored with its
                run. None stores it with this run, which the tag then names itself.
            register_as: the registered model whose newest version it becomes.

        Raises:
            TrackingError: `register_as` is given, and the store does not accept the model.
        """


class MlflowTracker(Tracker):
    """Sends the metrics, tags and files of a run to MLflow.

    Args:
        is_new: MLflow has no metrics of the run yet.
        waits: the context that shortens MLflow's waits; closed for the upload of a model.
    """

    run_id: str

    def __init__(self, store: Store, directory: Path, run_id: str, is_new: bool, waits: ExitStack) -> None:
        self.store, self.directory, self.run_id = store, directory, run_id
        self._is_new, self._waits = is_new, waits
        self._known_steps: dict[str, set[int]] = {}
        self._tags: dict[str, str] = {}
        self._lock = threading.Lock()  # guards the four below
        self._pending: list[Metric] = []
        self._sender: threading.Thread | None = None
        self._had_outage = self._is_ending = self._has_failed = False
        self._monitor: Any = None
        with quiet(ignore_warnings=True):
            self._attempt("the system metrics", self._start_system_monitor)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._lock:
            self._pending += [Metric(metric_key(name), float(v), now, step) for name, v in metrics.items()]
            if self._sender is None:  # it lives until everything is sent or the server fails
                self._sender = threading.Thread(target=self._send_pending, name="tracking", daemon=True)
                self._sender.start()

    def tag(self, tags: Mapping[str, str]) -> None:
        self._tags.update(tags)

    def publish(self, model: Path, trial: Path | None = None, *, register_as: str | None = None) -> None:
        with quiet(ignore_warnings=True):
            if register_as is None:
                self._attempt("the model", lambda: self._publish(model, trial))
                return
            try:
                version = self.store.register(self._publish(model, trial), MODEL_ARTIFACT, register_as)
            except Exception as error:
                raise TrackingError(
                    f"the model is trained and is in {model}, but could not be registered as {register_as} "
                    f"in {self.store.shown}: {self.store.reason(error)}"
                ) from error
        self.tag({"registered_model": f"{register_as}/{version}"})
        log.info("registered: models:/%s/%s", register_as, version)

    def _publish(self, model: Path, trial: Path | None) -> str:
        """Store the model with a run; return the run's ID."""
        noted = _read_note(trial).get("run_id") if trial is not None else None
        # A trial of another machine may be tracked elsewhere, or not at all.
        best = noted if noted and self.store.active_run(noted) is not None else self.run_id
        self.store.client.get_run(best)  # fails fast if the server is gone
        if not self._is_new and self.store.is_registered(best, MODEL_ARTIFACT):
            with self._lock:  # the server may not have this run's last metrics yet
                metrics = {metric.key: metric.value for metric in self._pending if best == self.run_id}
            best = self.store.create_child(self.run_id, best, metrics)
        self._waits.close()  # the upload may take long
        self.store.client.log_artifacts(best, str(model), MODEL_ARTIFACT)
        self.tag({BEST_CHILD_TAG: best})
        log.info("model in MLflow: runs:/%s/%s", best, MODEL_ARTIFACT)
        return best

    def end(self, status: str) -> None:
        """Send what is left, then the run's final status."""
        deadline = time.monotonic() + _SECONDS_TO_FINISH
        self._has_failed = status == "FAILED"
        with self._lock:
            self._is_ending, threads = True, [self._sender] if self._sender else []
        with short_waits(), quiet(ignore_warnings=True):
            if self._monitor is not None:  # it waits for the server, hence the thread
                threads.append(threading.Thread(target=self._monitor.finish, daemon=True))
                threads[-1].start()
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            with self._lock:
                # The sender may still be waiting for the server; sending a metric twice does no harm.
                pending, self._pending = self._pending, []
            if not self._attempt("the last metrics", lambda: self._send(pending)):
                return
            if self._had_outage:
                log.info("tracking: %s answers again and has all metrics", self.store.shown)
            self._attempt("the tags", self._send_tags)
            self._attempt("the files", self._send_files)
            self._attempt("the final status", lambda: self.store.client.set_terminated(self.run_id, status))

    def _send_pending(self) -> None:
        """Send metrics until none are pending or the server fails: the sender thread."""
        try:
            while batch := self._next_batch():
                self._send(batch)
                with self._lock:
                    del self._pending[: len(batch)]
        except Exception as error:
            with self._lock:
                self._sender = None  # the next epoch starts another one, which tries again
                is_news, self._had_outage = not (self._had_outage or self._is_ending), True
            if is_news and full_disk_reason(error) is None:  # which ends the run, or is reported at its end
                text = "tracking: %s: %s; training continues, and the metrics are sent later"
                log.warning(text, self.store.shown, self.store.reason(error))
            log.debug("tracking failed", exc_info=True)

    def _next_batch(self) -> list[Metric]:
        with self._lock:
            batch = [] if self._is_ending else list(self._pending)
            if not batch:
                self._sender = None
            return batch

    def _send(self, metrics: list[Metric]) -> None:
        unsent = metrics if self._is_new else [metric for metric in metrics if not self._has(metric)]
        self.store.client.log_batch(self.run_id, metrics=unsent)

    def _has(self, metric: Metric) -> bool:
        """Whether MLflow has this step of the metric from before the run was resumed."""
        key = _SENT_LAST if BY_CLASS in metric.key else metric.key
        if key not in self._known_steps:
            history = self.store.client.get_metric_history(self.run_id, key)
            self._known_steps[key] = {entry.step for entry in history}
        return metric.step in self._known_steps[key]

    def _send_tags(self) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value[:_LONGEST_TAG]) for name, value in self._tags.items()]
        self.store.client.log_batch(self.run_id, tags=tags)

    def _send_files(self) -> None:
        for path in map(self.directory.joinpath, _ARTIFACTS):
            if path.exists():
                self.store.client.log_artifact(self.run_id, str(path))

    def _attempt(self, what: str, send: Callable[[], object]) -> bool:
        """Call `send`, and log a warning if it fails. Returns whether it succeeded."""
        try:
            send()
        except Exception as error:
            # A full disk has ended the run with an error of its own.
            level = logging.DEBUG if self._has_failed and full_disk_reason(error) else logging.WARNING
            text = "tracking: %s did not accept %s of the run (kept in %s): %s"
            log.log(level, text, self.store.shown, what, self.directory, self.store.reason(error))
            log.debug("tracking failed", exc_info=True)
            return False
        return True

    def _start_system_monitor(self) -> None:
        """Let MLflow record the use of CPU, memory and GPU."""
        is_off = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("false", "0")
        if is_off:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self.run_id, resume_logging=not self._is_new, tracking_uri=self.store.uri
        )
        self._monitor.start()


def _create_or_resume(
    client: MlflowClient, store: Store, directory: Path, job: Job, parent_run_id: str | None
) -> tuple[MlflowRun, bool]:
    """The run in MLflow, and whether it is new."""
    noted = _read_note(directory).get("run_id")
    if noted is not None:
        if (run := store.active_run(noted)) is not None:
            return run, False
        log.info("tracking: %s has no run %s any more; a new run replaces it", store.shown, noted)
    if parent_run_id is None and (given := os.environ.get("MLFLOW_RUN_ID")):
        run = client.get_run(given)
        if _DIRECTORY_TAG not in run.data.tags:
            return run, False
        parent_run_id = given  # it tracks another training run already
    if parent_run_id is not None:
        experiment_id = client.get_run(parent_run_id).info.experiment_id
        tags = {"mlflow.parentRunId": parent_run_id}
    else:
        experiment_id, tags = _experiment(store, job), {}
    return client.create_run(experiment_id, run_name=directory.absolute().name, tags=tags), True


def _experiment(store: Store, job: Job) -> str:
    """The experiment's id."""
    name = job.experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if name is None and (given := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return given
    return store.experiment(name or f"trainer-{job.task}")


def _describe(
    client: MlflowClient, run: MlflowRun, params: Mapping[str, Any], tags: Mapping[str, str]
) -> None:
    from mlflow.entities import Param, RunTag

    known = run.data.params
    values = {name: str(value)[:_LONGEST_PARAMETER] for name, value in params.items()}
    changed = {f"changed.{name}": value for name, value in values.items() if known.get(name, value) != value}
    client.log_batch(
        run.info.run_id,
        params=[Param(name, value) for name, value in values.items() if name not in known],
        tags=[RunTag(name, value) for name, value in {**tags, **changed}.items()],
    )


def _default_database(directory: Path) -> str:
    return sqlite_uri(directory.absolute().parent / DATABASE)


def _read_note(directory: Path) -> dict[str, str | None]:
    path = directory / NOTE
    try:
        note = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read: {error}; if you delete it, a new MLflow run starts"
        ) from error
    return note if isinstance(note, dict) else {}


def _write_note(directory: Path, store: Store, run: MlflowRun) -> None:
    note = {
        # Without an address, the default database is found even after moving it together with the directory.
        "tracking_uri": None if store.uri == _default_database(directory) else store.shown,
        "experiment_id": run.info.experiment_id,
        "run_id": run.info.run_id,
    }
    write_atomically(directory / NOTE, json.dumps(note, indent=2) + "\n")
