"""MLflow stores: a tracking server or database, used quietly and without long waits.

MLflow is imported when a store is used, not before.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import shlex
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from trainer.errors import TrackingError
from trainer.job.places import without_password
from trainer.metric_names import BY_CLASS
from trainer.training.run_log import log_level

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from sqlalchemy import URL

OFF = "none"
DATABASE = "mlflow.db"

_ARTIFACTS = "mlartifacts"
_LONGEST_NAME = 250  # characters; all servers accept these
_TIMEOUT_SECONDS = 10
_NO_REGISTRY = ("FEATURE_DISABLED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
"""MLflow's codes, and those of servers that speak its protocol, for a store without a model registry."""
_PRIVATE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_SHORT_WAITS = {
    # By default MLflow repeats a request for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_TIMEOUT_SECONDS),
}
# They log each step, and each failure that an exception reports anyway.
_LOUD = ("alembic", "mlflow.store", "mlflow.system_metrics", "urllib3.connectionpool")


@contextmanager
def quiet(*, ignore_warnings: bool = False) -> Iterator[None]:
    """Silence the loggers of MLflow and its libraries, and its telemetry. Errors are raised all the same.

    Args:
        ignore_warnings: ignore Python warnings, too. Only for short calls from the main thread, because the
            filters of `warnings` are global.
    """
    with _environment(_PRIVATE):
        import mlflow  # noqa: F401  # importing it sets up the loggers

        filters = warnings.catch_warnings(action="ignore") if ignore_warnings else nullcontext()
        with log_level(logging.CRITICAL + 1, *_LOUD), filters:
            yield


@contextmanager
def short_waits() -> Iterator[None]:
    """Give up within seconds if no server answers, unless the user's environment sets other limits."""
    with _environment({name: value for name, value in _SHORT_WAITS.items() if name not in os.environ}):
        yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Store:
    """An MLflow store. Creating the object does not open the store.

    Attributes:
        uri: as MLflow takes it, with absolute local paths.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def shown(self) -> str:
        """The address for messages and files, without a password."""
        return without_password(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether the store is a file or directory of this machine."""
        return self.uri.startswith("sqlite:") or "://" not in self.uri

    @contextmanager
    def use(self) -> Iterator[MlflowClient]:
        """Yield the client for calls that should take seconds at most.

        Raises:
            TrackingError: the store does not answer, or rejects a call.
        """
        try:
            with short_waits(), quiet(ignore_warnings=True):
                yield self.client
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(
                f"{self.shown}: MLflow's store cannot be used: {self.reason(error)}. Fix that, name another "
                "store by --tracking-uri or MLFLOW_TRACKING_URI, or train without one: --tracking-uri none"
            ) from error

    def reason(self, error: BaseException) -> str:
        """The cause of an error in one line, without a password."""
        cause = error
        chain: BaseException | None = error
        while chain is not None:
            # MLflow and SQLAlchemy wrap the message of the network or the database in much text.
            cause = getattr(chain, "orig", None) or (chain if isinstance(chain, OSError) else cause)
            chain = chain.__cause__ or chain.__context__
        text = (str(cause) or type(cause).__name__).split("\n", 1)[0]
        return text.replace(self.uri, self.shown)[:400]

    def check(self, *, registers: bool = False) -> None:
        """Check that the store answers.

        Args:
            registers: check its model registry, too.

        Raises:
            TrackingError: it does not.
        """
        with self.use() as client:
            client.search_experiments(max_results=1)
            if registers:
                client.search_registered_models(max_results=1)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; opens a database, and creates a SQLite database that does not exist."""
        from mlflow import MlflowClient

        if (file := self._sqlite_file()) is not None:
            _create_database(file, self.uri)
        elif (url := self._database()) is not None:
            _try_connection(url)
        return MlflowClient(self.uri)

    def experiment(self, name: str) -> str:
        """The id of the experiment with this name, which is created if needed.

        Raises:
            TrackingError: it was deleted.
        """
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                # Artifacts are stored next to a SQLite database; a server chooses their place itself.
                file = self._sqlite_file()
                artifacts = str(file.parent / _ARTIFACTS) if file is not None else None
                return self.client.create_experiment(name, artifact_location=artifacts)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(name)  # another process was faster
        assert experiment is not None, "it exists already"
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"{self.shown}: the experiment {name!r} was deleted; restore it with `mlflow experiments "
                f"restore --experiment-id {experiment.experiment_id}`, or name another by "
                "MLFLOW_EXPERIMENT_NAME"
            )
        return str(experiment.experiment_id)

    def active_run(self, run_id: str) -> MlflowRun | None:
        """The run with this id; None if it does not exist, or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def is_registered(self, run_id: str, folder: str) -> bool:
        """Whether a version of a registered model has its files in this folder of a run's artifacts.

        A registry that does not answer may have one; a store without a registry has none.
        """
        from mlflow.exceptions import MlflowException

        try:
            versions = self.client.search_model_versions(f"run_id='{run_id}'")
        except MlflowException as error:
            return error.error_code not in _NO_REGISTRY
        return any(str(version.source).rstrip("/").endswith(f"/{folder}") for version in versions)

    def register(self, run_id: str, folder: str, name: str) -> str:
        """Register the model in a folder of a run's artifacts as the newest version under a name.

        Returns:
            The version's number. Its files stay where they are: what is stored there later changes it.
        """
        from mlflow.exceptions import MlflowException

        client = self.client
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        artifacts = client.get_run(run_id).info.artifact_uri
        return str(client.create_model_version(name, posixpath.join(artifacts, folder), run_id).version)

    def create_child(self, parent_id: str, source_id: str, metrics: Mapping[str, float]) -> str:
        """Create a finished child run for a model, with the metrics of the run that trained it.

        Args:
            source_id: the run that trained the model. Its metrics of single classes are left out.
            metrics: values that replace those of the source.

        Returns:
            The child's ID.
        """
        from mlflow.entities import Metric

        source, now = self.client.get_run(source_id), int(time.time() * 1000)
        child = self.client.create_run(
            source.info.experiment_id,
            tags={"mlflow.parentRunId": parent_id},
            run_name=f"{source.info.run_name}-model",
        )
        values = {**source.data.metrics, **metrics}
        copies = [Metric(key, value, now, 0) for key, value in values.items() if BY_CLASS not in key]
        self.client.log_batch(child.info.run_id, copies)
        self.client.set_terminated(child.info.run_id)
        return str(child.info.run_id)

    def where_to_look(self, run: MlflowRun) -> str:
        """The run's page on a server, or the command that shows a database."""
        if self.uri.startswith("sqlite:///"):
            here = f"sqlite:///{Path.cwd()}/"
            shown = "sqlite:///" + self.uri.removeprefix(here) if self.uri.startswith(here) else self.uri
            return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
        if self.uri.startswith("http"):
            page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
            return f"{self.shown.rstrip('/')}/{page}"
        return f"{self.shown}, run {run.info.run_id}"

    def _database(self) -> URL | None:
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from sqlalchemy import make_url

        kind = self.uri.partition(":")[0].partition("+")[0]
        return make_url(self.uri) if kind in DATABASE_ENGINES else None

    def _sqlite_file(self) -> Path | None:
        url = self._database()
        database = url.database if url is not None and url.get_backend_name() == "sqlite" else None
        return Path(database) if database and database != ":memory:" else None


def sqlite_uri(path: Path) -> str:
    """The address of a database file."""
    # SQLAlchemy takes every other character literally.
    return "sqlite:///" + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def _create_database(path: Path, uri: str) -> None:
    """Create MLflow's database, whole or not at all, even if several processes start at once."""
    from mlflow.store.model_registry import sqlalchemy_store as registry
    from mlflow.store.tracking import sqlalchemy_store as tracking
    from sqlalchemy import Engine, event

    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts = str(path.parent / _ARTIFACTS)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        # MLflow creates its tables in dozens of steps and would wait for the disk after each.
        event.listen(Engine, "connect", _do_not_sync)
        try:
            created: Any = tracking.SqlAlchemyStore(sqlite_uri(partial), artifacts)  # type: ignore[no-untyped-call]
            created.engine.dispose()
        finally:
            event.remove(Engine, "connect", _do_not_sync)
        partial.replace(path)
    # MLflow caches engines by address: one may still be connected to an earlier, deleted file.
    stores: list[Any] = [
        tracking.SqlAlchemyStore(uri, artifacts),  # type: ignore[no-untyped-call]
        registry.SqlAlchemyStore(uri),  # type: ignore[no-untyped-call]
    ]
    for store in stores:
        store.engine.dispose()


def _do_not_sync(connection: object, _: object) -> None:
    with suppress(AttributeError):  # not SQLite
        connection.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]


def _try_connection(url: URL) -> None:
    """Fail at once if the database does not answer; MLflow would retry for minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if url.host and url.port:
        socket.create_connection((url.host, url.port), timeout=_TIMEOUT_SECONDS).close()
    with create_engine(url, poolclass=NullPool).connect():
        pass


def metric_key(name: str) -> str:
    """A metric's name as MLflow accepts it: some characters become "_", and a path has no detours."""
    key = re.sub(r"[^\w./ -]", "_", name)[:_LONGEST_NAME]
    return key if posixpath.normpath(key) == key else key.replace("/", "_")
