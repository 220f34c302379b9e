"""Where a study is kept: a database that several processes share, and that may be away for a while."""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
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

from trainer.errors import JobError, Problem, RunError

log = logging.getLogger("trainer")

HEARTBEAT_SECONDS = int(os.environ.get("TRAINER_HEARTBEAT_SECONDS", 20))
"""A worker says so often that its trials live."""
GRACE_SECONDS = 3 * HEARTBEAT_SECONDS
"""Silent for so long, a trial counts as dead."""
PATIENCE_SECONDS = 300
"""How long a database may be away before a sweep is given up."""

_MINUTES = PATIENCE_SECONDS // 60
_SECONDS_BETWEEN_CALLS = 1.0
_SECONDS_UNMENTIONED = 3.0  # a lock that another process holds is no news

_POSTGRESQL = ("postgresql+psycopg2", "postgresql+psycopg")
_CONNECTION = {
    "connect_timeout": "10",
    # A server that vanishes without a word is noticed in a minute, not in the two hours of TCP's own.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""libpq's options, in seconds and milliseconds; those in the URL come first."""
_DRIVERS = {
    **dict.fromkeys(("psycopg2", "psycopg"), "pip install 'image-trainer[postgresql]'"),
    "MySQLdb": "pip install mysqlclient, or write mysql+pymysql://",
}


class SharedStorage(RDBStorage):
    """Optuna's storage in a database, which waits while the database does not answer.

    A restart or a broken network must not cost trials of hours: a call that fails for such a reason, or for
    a deadlock, is made again until it succeeds or `PATIENCE_SECONDS` have passed. If it was only the answer
    that was lost, it is so made twice. That does no harm: writing a value twice is writing it; a trial
    that was made or taken without its taker's knowing it has no heartbeat, and is given up as others are.

    Raises:
        RunError: by all methods: the database has been away for too long.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._away_since: float | None = None
        self._is_mentioned = False
        self._troubled = time.monotonic()  # when it was opened, or last away

    def is_steady(self, seconds: float) -> bool:
        """Whether it has answered every call of this process for so long, since it was opened."""
        return self._away_since is None and time.monotonic() - self._troubled >= seconds

    def _wait(self, error: Exception) -> None:
        now = time.monotonic()
        since = self._away_since
        if since is None:
            since = self._away_since = now
        if now - since > PATIENCE_SECONDS:
            raise RunError(
                f"the storage has not answered for {_MINUTES} minutes: {_reason(error)}; "
                "when it does, `trainer fit --resume` goes on"
            ) from error
        if now - since > _SECONDS_UNMENTIONED and not self._is_mentioned:
            self._is_mentioned = True
            log.warning("the storage does not answer, waiting up to %d minutes: %s", _MINUTES, _reason(error))
        time.sleep(_SECONDS_BETWEEN_CALLS)

    def _answered(self) -> None:
        if self._away_since is not None:
            self._away_since = None
            self._troubled = time.monotonic()
        if self._is_mentioned:
            self._is_mentioned = False
            log.info("the storage answers again")


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: SharedStorage, *arguments: Any, **named: Any) -> Any:
        while True:
            try:
                answer = method(self, *arguments, **named)
            except Exception as error:
                if not _is_away(error):
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
    setattr(SharedStorage, _name, _waiting(getattr(RDBStorage, _name)))


def _is_away(error: BaseException) -> bool:
    """Whether the same call may succeed when the database is back, or another process has let go of it."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, (OperationalError, InterfaceError)) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )


def open_storage(url: str, *, patience: float = 0) -> SharedStorage:
    """The storage at a SQLAlchemy URL: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`.

    Args:
        patience: seconds to wait for a database that cannot be reached.

    Raises:
        JobError: it cannot be reached, or its driver is not installed.
    """
    try:
        place = make_url(url)
        if "@" in (place.host or ""):
            raise ValueError("a password with an @ in it")
    except (ArgumentError, ValueError) as error:  # whose words may hold parts of the password
        rule = "must be a URL such as postgresql://USER:PASSWORD@HOST/DATABASE"
        hint = "in the password, write @ as %40, / as %2F and : as %3A"
        raise _error(rule, "", hint) from error
    until = time.monotonic() + patience
    tries = 3
    while True:
        try:
            return _open(place)
        except NoSuchModuleError as error:
            hint = "write postgresql://" if place.drivername == "postgres" else ""
            raise _error("must be a database that SQLAlchemy knows", place.drivername, hint) from error
        except ImportError as error:
            missing = getattr(error.__cause__ or error, "name", None) or str(error)
            hint = _DRIVERS.get(missing, "")
            raise _error("needs a driver that is not installed", missing, hint) from error
        except Exception as error:
            tries -= 1
            # Two processes that make the tables at once get into each other's way.
            clash = isinstance(error, (ProgrammingError, IntegrityError)) and tries > 0
            if not clash and not (_is_away(error) and time.monotonic() < until):
                shown = URL.create(place.drivername, None, None, place.host, place.port, place.database)
                got = f"{shown}: {_reason(error, place)}"
                raise _error("must be a database that can be reached and written to", got) from error
            time.sleep(_SECONDS_BETWEEN_CALLS)


def _open(place: URL) -> SharedStorage:
    options: dict[str, Any] = {}
    if place.drivername == "postgresql":  # SQLAlchemy's choice depends on its version
        has_other = find_spec("psycopg") is not None and find_spec("psycopg2") is None
        place = place.set(drivername="postgresql+psycopg" if has_other else "postgresql+psycopg2")
    if place.drivername in _POSTGRESQL:
        given = {name: value for name, value in _CONNECTION.items() if name not in place.query}
        # Connections that broke while they were idle are noticed before they are used.
        options = {"pool_pre_ping": True, "connect_args": given}
    with quiet():
        return SharedStorage(
            place.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )


def _error(rule: str, got: str, hint: str = "") -> JobError:
    return JobError("the storage cannot be used:", [Problem("--storage", "", rule, got, hint)])


def _reason(error: BaseException, place: URL | None = None) -> str:
    """The first line of what the database's driver says, without a password."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    secrets = (place.password, place.query.get("password")) if place is not None else ()
    text = lines[0] if lines else type(cause).__name__
    for secret in secrets:
        text = text.replace(str(secret), "***") if secret else text
    return text


_FILTERS = RLock()  # Python's warning filters are those of all threads


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's words on what is chosen here.

    It warns that heartbeats may change and that they are meant for its own loop, and tells of each trial.
    """
    logger = logging.getLogger("optuna")
    with _FILTERS, warnings.catch_warnings():
        level = logger.level
        logger.setLevel(logging.WARNING)
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        try:
            yield
        finally:
            logger.setLevel(level)
