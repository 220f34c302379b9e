"""Where runs are tracked: an MLflow server or database, used quietly and without long waits.

MLflow is imported when a store is used, not before.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from trainer.errors import TrackingError
from trainer.job.places import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import URL

OFF = "none"
DATABASE = "mlflow.db"

_ARTIFACTS = "mlartifacts"
_SECONDS = 10
_PRIVATE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_BRIEF = {
    # By default a request is repeated for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_SECONDS),
}
# They tell of each step, and of each failure what the errors say that are raised.
_LOUD = ("alembic", "mlflow.store", "mlflow.system_metrics", "urllib3.connectionpool")


@contextmanager
def quiet() -> Iterator[None]:
    """MLflow and what it uses leave the log to us; what fails is raised nevertheless."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def brief() -> Iterator[None]:
    """Where no server answers, give up after seconds, unless the user's environment says otherwise."""
    with _environment({name: value for name, value in _BRIEF.items() if name not in os.environ}):
        yield


@contextmanager
def calm() -> Iterator[None]:
    """For calls from the main thread: quiet, without warnings about MLflow's own code, without telemetry."""
    with _environment(_PRIVATE):
        import mlflow  # noqa: F401  # sets up its loggers as it is imported

        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
    """One MLflow store. Making it does nothing yet.

    Attributes:
        uri: as MLflow takes it, local paths in it absolute.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def shown(self) -> str:
        """The address for messages and files, without a password."""
        return without_password(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return self.uri.startswith("sqlite:") or "://" not in self.uri

    @contextmanager
    def use(self) -> Iterator[MlflowClient]:
        """Its client, for use within seconds.

        Raises:
            TrackingError: it does not answer, or refuses.
        """
        try:
            with brief(), calm():
                yield self.client
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(
                f"{self.shown}: MLflow's store cannot be used: {self.reason(error)}. Mend that, name another "
                "store by --tracking-uri or MLFLOW_TRACKING_URI, or train without one: --tracking-uri none"
            ) from error

    def reason(self, error: BaseException) -> str:
        """What went wrong, in a line."""
        told = error
        chain: BaseException | None = error
        while chain is not None:
            # MLflow and SQLAlchemy put much text around what the network or the database says.
            told = getattr(chain, "orig", None) or (chain if isinstance(chain, OSError) else told)
            chain = chain.__cause__ or chain.__context__
        text = (str(told) or type(told).__name__).split("\n", 1)[0]
        return text.replace(self.uri, self.shown)[:400]

    def check(self, *, registers: bool = False) -> None:
        """Ask whether it is there.

        Args:
            registers: ask its registry of models, too.

        Raises:
            TrackingError: it is not.
        """
        with self.use() as client:
            client.search_experiments(max_results=1)
            if registers:
                client.search_registered_models(max_results=1)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; opens a database, and makes it where there is none."""
        from mlflow import MlflowClient

        if (url := self._database()) is not None:
            file = _file_of(url)
            _make(file, self.uri) if file is not None else _knock(url)
        return MlflowClient(self.uri)

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, made where there is none.

        Raises:
            TrackingError: it was deleted.
        """
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=self._artifacts())
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was quicker
        assert found is not None, "it exists already"
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"{self.shown}: the experiment {name!r} was deleted; restore it with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or name another by MLFLOW_EXPERIMENT_NAME"
            )
        return str(found.experiment_id)

    def _artifacts(self) -> str | None:
        """Where a database of this machine has its files: beside it. Servers choose themselves."""
        url = self._database()
        file = _file_of(url) if url is not None else None
        return str(file.parent / _ARTIFACTS) if file is not None else None

    def _database(self) -> URL | None:
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from sqlalchemy import make_url

        kind = self.uri.partition(":")[0].partition("+")[0]
        return make_url(self.uri) if kind in DATABASE_ENGINES else None


def _file_of(url: URL) -> Path | None:
    """The file that a SQLite database is."""
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if is_file else None


def sqlite_uri(path: Path) -> str:
    """The address of a database file."""
    # The only characters that SQLAlchemy would not take for themselves.
    return "sqlite:///" + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def _make(path: Path, uri: str) -> None:
    """Make MLflow's database, whole or not at all, though several processes may want to."""
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
        # MLflow makes its tables in dozens of steps, and waits at each until the disk has it.
        event.listen(Engine, "connect", _do_not_wait)
        try:
            made: Any = tracking.SqlAlchemyStore(sqlite_uri(partial), artifacts)  # type: ignore[no-untyped-call]
            made.engine.dispose()
        finally:
            event.remove(Engine, "connect", _do_not_wait)
        partial.replace(path)
    # This process may still hold an earlier database that was there, and has been deleted.
    stores: list[Any] = [
        tracking.SqlAlchemyStore(uri, artifacts),  # type: ignore[no-untyped-call]
        registry.SqlAlchemyStore(uri),  # type: ignore[no-untyped-call]
    ]
    for store in stores:
        store.engine.dispose()


def _do_not_wait(connection: object, _: object) -> None:
    with suppress(AttributeError):  # of another database than SQLite
        connection.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]


def _knock(url: URL) -> None:
    """Fail at once where there is no database, which MLflow would try for minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if url.host and url.port:
        socket.create_connection((url.host, url.port), timeout=_SECONDS).close()
    with create_engine(url, poolclass=NullPool).connect():
        pass
