"""The database of a study, which several processes share and which may be unreachable for a while."""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from trainer.errors import FullDiskError, JobError, Problem, RunError
from trainer.full_disk import full_disk_reason, make_room

log = logging.getLogger("trainer")

HEARTBEAT_SECONDS = int(os.environ.get("TRAINER_HEARTBEAT_SECONDS", 20))
"""Interval at which a worker reports that its trials still run."""
GRACE_SECONDS = 3 * HEARTBEAT_SECONDS
"""Without a heartbeat for this long, a trial counts as dead."""
PATIENCE_SECONDS = 300
"""How long a database may be unreachable before the sweep stops."""

_MINUTES = PATIENCE_SECONDS // 60
_SECONDS_BETWEEN_CALLS = 1.0
_SECONDS_BEFORE_WARNING = 3.0  # a lock that another process holds is not worth a warning

_POSTGRESQL = ("postgresql+psycopg2", "postgresql+psycopg")
_CONNECTION = {
    "connect_timeout": "10",
    # Notice a server that vanishes within a minute; TCP's own timeout is two hours.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""libpq's options, in seconds and milliseconds; options in the URL come first."""
_DRIVERS = {
    **dict.fromkeys(("psycopg2", "psycopg"), "pip install 'image-trainer[postgresql]'"),
    "MySQLdb": "pip install mysqlclient, or write mysql+pymysql://",
}


class SharedStorage(RDBStorage):
    """Optuna's storage in a database, which waits while the database cannot be reached.

    A restart or a broken network must not cost hours of training. A call that fails for such a reason, or
    because of a deadlock, is repeated until it succeeds or `PATIENCE_SECONDS` have passed. If only the answer
    was lost, the call takes effect twice, which does no harm: writing a value twice changes nothing, and a
    trial that was created or taken unnoticed has no heartbeat, so it fails like that of a dead worker.

    All methods raise RunError if the database has been unreachable for too long, and FullDiskError at once if
    its disk is full.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._unreachable_since: float | None = None
        self._has_warned = False
        self._steady_since = time.monotonic()

    def is_steady(self, seconds: float) -> bool:
        """Whether it has been open for this long and has answered every call of this process meanwhile."""
        return self._unreachable_since is None and time.monotonic() - self._steady_since >= seconds

    def _wait(self, error: Exception) -> None:
        now = time.monotonic()
        since = self._unreachable_since
        if since is None:
            since = self._unreachable_since = now
        if now - since > PATIENCE_SECONDS:
            raise RunError(
                f"the storage has not answered for {_MINUTES} minutes: {_reason(error)}; "
                "once it does, `trainer fit --resume` resumes the sweep"
            ) from error
        if now - since > _SECONDS_BEFORE_WARNING and not self._has_warned:
            self._has_warned = True
            log.warning("the storage does not answer; waiting up to %d minutes: %s", _MINUTES, _reason(error))
        time.sleep(_SECONDS_BETWEEN_CALLS)

    def _answered(self) -> None:
        if self._unreachable_since is not None:
            self._unreachable_since = None
            self._steady_since = time.monotonic()
        if self._has_warned:
            self._has_warned = False
            log.info("the storage answers again")


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is repeated while the database cannot be reached."""

    @functools.wraps(method)
    def call(self: SharedStorage, *arguments: Any, **named: Any) -> Any:
        while True:
            try:
                answer = method(self, *arguments, **named)
            except Exception as error:
                if (reason := full_disk_reason(error)) is not None:
                    raise _full_disk(self, reason) from error
                if not _is_temporary(error):
                    raise
                self._wait(error)
            else:
                self._answered()
                return answer

    return call


for _name in (
    *("_create_new_trial", "_get_best_trial_id", "_get_stale_trial_ids", "_get_trials", "_set_trial_param"),
    *("get_all_studies", "get_study_directions", "get_study_id_from_name", "get_study_name_from_id"),
    *("get_study_system_attrs", "get_study_user_attrs", "get_trial", "record_heartbeat"),
    *("get_trial_id_from_study_id_trial_number", "set_study_system_attr", "set_study_user_attr"),
    *("set_trial_intermediate_value", "set_trial_state_values", "set_trial_system_attr"),
    "set_trial_user_attr",
):
    setattr(SharedStorage, _name, _patient(getattr(RDBStorage, _name)))


def _is_temporary(error: BaseException) -> bool:
    """Whether the same call may succeed later, as the database is unreachable or locked."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, (OperationalError, InterfaceError)) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )


def _full_disk(storage: SharedStorage, reason: str) -> FullDiskError:
    address = make_url(storage.url)
    if address.get_backend_name() == "sqlite":
        step = "resume the sweep with `trainer fit --resume`"
        return FullDiskError(make_room(Path(address.database or ""), reason, step))
    return FullDiskError(f"the storage cannot be written: {reason}; make room on {address.host}")


def open_storage(url: str, *, patience: float = 0) -> SharedStorage:
    """Open the storage at a SQLAlchemy URL: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`.

    Args:
        patience: seconds to wait for a database that cannot be reached.

    Raises:
        JobError: it cannot be reached, or its driver is not installed.
    """
    try:
        address = make_url(url)
        if "@" in (address.host or ""):
            raise ValueError("the password contains an @")
    except (ArgumentError, ValueError) as error:  # its message may contain parts of the password
        rule = "must be a URL such as postgresql://USER:PASSWORD@HOST/DATABASE"
        hint = "in the password, write @ as %40, / as %2F and : as %3A"
        raise _error(rule, "", hint) from error
    until = time.monotonic() + patience
    tries = 3
    while True:
        try:
            return _open(address)
        except NoSuchModuleError as error:
            hint = "write postgresql://" if address.drivername == "postgres" else ""
            raise _error("must be a database that SQLAlchemy knows", address.drivername, hint) from error
        except ImportError as error:
            missing = getattr(error.__cause__ or error, "name", None) or str(error)
            hint = _DRIVERS.get(missing, "")
            raise _error("needs a driver that is not installed", missing, hint) from error
        except Exception as error:
            tries -= 1
            # Two processes that create the tables at the same time can make each other fail.
            is_clash = isinstance(error, (ProgrammingError, IntegrityError)) and tries > 0
            if not is_clash and not (_is_temporary(error) and time.monotonic() < until):
                shown = URL.create(
                    address.drivername, None, None, address.host, address.port, address.database
                )
                got = f"{shown}: {_reason(error, address)}"
                raise _error("must be a database that can be reached and written to", got) from error
            time.sleep(_SECONDS_BETWEEN_CALLS)


def _open(address: URL) -> SharedStorage:
    options: dict[str, Any] = {}
    if address.drivername == "postgresql":  # the driver that SQLAlchemy chooses depends on its version
        has_other = find_spec("psycopg") is not None and find_spec("psycopg2") is None
        address = address.set(drivername="postgresql+psycopg" if has_other else "postgresql+psycopg2")
    if address.drivername in _POSTGRESQL:
        connection = {name: value for name, value in _CONNECTION.items() if name not in address.query}
        # Notice connections that broke while idle before they are used.
        options = {"pool_pre_ping": True, "connect_args": connection}
    with quiet():
        return SharedStorage(
            address.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )


def _error(rule: str, got: str, hint: str = "") -> JobError:
    return JobError("the storage cannot be used:", [Problem("--storage", "", rule, got, hint)])


def _reason(error: BaseException, address: URL | None = None) -> str:
    """The first line of the database driver's message, without the password."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    secrets = (address.password, address.query.get("password")) if address is not None else ()
    text = lines[0] if lines else type(cause).__name__
    for secret in secrets:
        text = text.replace(str(secret), "***") if secret else text
    return text


_WARNING_FILTERS = RLock()  # Python's warning filters are shared by all threads


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's log of each trial, and its warnings about heartbeats.

    The warnings say that heartbeats are experimental and meant for Optuna's own loop.
    """
    logger = logging.getLogger("optuna")
    with _WARNING_FILTERS, warnings.catch_warnings():
        level = logger.level
        logger.setLevel(logging.WARNING)
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        try:
            yield
        finally:
            logger.setLevel(level)
