"""One run in MLflow while it goes on."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainer.errors import TrackingError
from trainer.training.mlflow_store import Store, brief, calm, quiet

if TYPE_CHECKING:
    from mlflow.entities import Metric

log = logging.getLogger("trainer")

DIRECTORY_TAG, FAILURE_TAG = "run_directory", "failure"
_FILES = ("job.yaml", "metrics.csv", "result.json", "metrics.json", "trials.csv", "report.html")
_FOLDERS = ("report",)
"""The report's charts and tables."""
_SECONDS_TO_FINISH = 10.0
_LONGEST_NAME, _LONGEST_TAG = 250, 5000


class Tracker:
    """Tells MLflow of a run's course and, left as a context, how it ended: FINISHED, FAILED or KILLED.

    Attributes:
        run_id: MLflow's; None where nothing is tracked.
    """

    def __init__(
        self, store: Store | None, directory: Path, run_id: str | None = None, is_new: bool = True
    ) -> None:
        """`is_new`: MLflow has no figures of the run yet."""
        self.store = store
        self.directory = directory
        self.run_id = run_id
        self._id = run_id or ""
        self._is_new = is_new
        self._steps: dict[str, set[int]] = {}
        self._tags: dict[str, str] = {}
        self._lock = threading.Lock()
        self._waiting: list[Metric] = []
        self._thread: threading.Thread | None = None
        self._failed = self._ending = False
        self._monitor: Any = None
        self._quiet, self._brief = ExitStack(), ExitStack()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send figures in the background.

        Args:
            step: the epoch, from 1, or a sweep's trial. What MLflow has of a step from before the run was
                stopped is not sent again.
            metrics: by name; characters that no name in MLflow can have become "_".
        """
        if self.store is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        made = [Metric(_allowed(name), float(value), now, step) for name, value in metrics.items()]
        with self._lock:
            self._waiting += made
            if self._thread is None:
                # One for each epoch rather than one for all, so that mostly there is none.
                self._thread = threading.Thread(target=self._send_waiting, name="tracking", daemon=True)
                self._thread.start()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Add tags when the run ends."""
        self._tags.update(tags)

    def register(self, name: str, model: Path) -> None:
        """Log a packaged model with the run, and register it as the newest version under a name.

        Raises:
            TrackingError: that cannot be done.
        """
        assert self.store is not None, "the job is refused otherwise"
        from mlflow.exceptions import MlflowException

        try:
            client = self.store.client
            with calm():
                artifacts = client.get_run(self._id).info.artifact_uri  # fails soon, if at all
            self._brief.close()  # the model may be large
            with calm():
                # Another version's files stay as they are.
                taken = {file.path for file in client.list_artifacts(self._id)}
                names = ["model", *(f"model-{number}" for number in range(2, len(taken) + 3))]
                place = next(each for each in names if each not in taken)
                client.log_artifacts(self._id, str(model), place)
                try:
                    client.create_registered_model(name)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                source = posixpath.join(artifacts, place)
                version = client.create_model_version(name, source, self._id).version
        except Exception as error:
            raise TrackingError(
                f"the model is trained and lies in {model}, but could not be registered as {name} in "
                f"{self.store.shown}: {self.store.reason(error)}"
            ) from error
        self.tag({"registered_model": f"{name}/{version}"})
        log.info("registered: models:/%s/%s", name, version)

    def __enter__(self) -> Tracker:
        if self.store is not None:
            self._quiet.enter_context(quiet())
            self._brief.enter_context(brief())  # the environment is no thread's own
            self._watch_system()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.store is None:
            return
        # A model that could not be registered is a good model nevertheless.
        if error is None or isinstance(error, TrackingError):
            status = "FINISHED"
        elif isinstance(error, KeyboardInterrupt):
            status = "KILLED"
        else:
            status = "FAILED"
            self._tags[FAILURE_TAG] = f"{type(error).__name__}: {error}"
        self._brief.close()
        with self._quiet, brief():
            self._finish(status)

    def _finish(self, status: str) -> None:
        until = time.monotonic() + _SECONDS_TO_FINISH
        with self._lock:
            self._ending, thread = True, self._thread
        threads = [each for each in (thread, self._end_of_watch()) if each is not None]
        for each in threads:
            each.join(max(0.0, until - time.monotonic()))
        with self._lock:
            # A thread that still waits for its server: sending the same figures again changes nothing there.
            waiting, self._waiting = self._waiting, []
        with calm():
            if not self._try("the last figures", lambda: self._send(waiting)):
                return
            if self._failed:
                log.info("%s answers again and has all figures", self._shown)
            self._try("the tags", self._send_tags)
            self._try("the files", self._send_files)
            self._try("the end", lambda: self._client.set_terminated(self._id, status))

    def _send_waiting(self) -> None:
        while True:
            with self._lock:
                batch = list(self._waiting)
                if not batch or self._ending:
                    self._thread = None
                    return
            try:
                self._send(batch)
            except Exception as error:
                with self._lock:
                    self._thread = None  # the next epoch makes another, which tries again
                    is_news, self._failed = not (self._failed or self._ending), True
                if is_news:
                    log.warning(
                        "tracking: %s: %s; the training goes on, and the figures are sent when they can be",
                        self._shown, self._reason(error),
                    )  # fmt: skip
                log.debug("tracking failed", exc_info=True)
                return
            with self._lock:
                del self._waiting[: len(batch)]

    def _send(self, metrics: list[Metric]) -> None:
        unsent = metrics if self._is_new else [each for each in metrics if not self._has(each)]
        self._client.log_batch(self._id, metrics=unsent)

    def _has(self, metric: Metric) -> bool:
        """Whether MLflow has the figure from before the run went on."""
        if metric.key not in self._steps:
            history = self._client.get_metric_history(self._id, metric.key)
            self._steps[metric.key] = {each.step for each in history}
        return metric.step in self._steps[metric.key]

    def _send_tags(self) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value[:_LONGEST_TAG]) for name, value in self._tags.items()]
        self._client.log_batch(self._id, tags=tags)

    def _send_files(self) -> None:
        for name in _FILES:
            if (self.directory / name).exists():
                self._client.log_artifact(self._id, str(self.directory / name))
        for name in _FOLDERS:
            if (self.directory / name).is_dir():
                self._client.log_artifacts(self._id, str(self.directory / name), name)

    def _try(self, what: str, send: Callable[[], None]) -> bool:
        try:
            send()
        except Exception as error:
            log.warning(
                "tracking: %s does not take %s of the run, which %s has: %s",
                self._shown, what, self.directory, self._reason(error),
            )  # fmt: skip
            log.debug("tracking failed", exc_info=True)
            return False
        return True

    def _watch_system(self) -> None:
        """Record the use of processors, memory and GPUs, by MLflow's own means."""
        switched_off = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("false", "0")
        if switched_off or find_spec("psutil") is None:
            return
        with calm():
            self._try("the use of the system", self._start_monitor)

    def _start_monitor(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        assert self.store is not None, "it is tracked"
        self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self._id, resume_logging=not self._is_new, tracking_uri=self.store.uri
        )
        self._monitor.start()

    def _end_of_watch(self) -> threading.Thread | None:
        """The monitor's end, which waits for its server."""
        if self._monitor is None:
            return None
        thread = threading.Thread(target=self._monitor.finish, daemon=True)
        thread.start()
        return thread

    @property
    def _client(self) -> Any:
        assert self.store is not None, "it is tracked"
        return self.store.client

    @property
    def _shown(self) -> str:
        return self.store.shown if self.store is not None else ""

    def _reason(self, error: Exception) -> str:
        return self.store.reason(error) if self.store is not None else str(error)


def _allowed(name: str) -> str:
    """The name of a metric with only characters that MLflow's may have."""
    return re.sub(r"[^\w./ -]", "_", name)[:_LONGEST_NAME]
