"""The run's own log file, and the loggers of libraries that are kept quiet."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("trainer")


class _LogFile(logging.FileHandler):
    """A log file that loses lines while the disk is full, rather than print a traceback for each of them.

    Attributes:
        error: the first error in writing it.
    """

    error: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        self.error = self.error or (error if isinstance(error, OSError) else None)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write all log messages to this file, too, debug messages and the traceback of a failure included.

    Lines that cannot be written, because the disk is full, are dropped; at the end, a warning says so.
    """
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with log_level(logging.DEBUG, log.name):
        log.addHandler(handler)
        try:
            yield
        except KeyboardInterrupt:
            log.warning("interrupted; `trainer fit --resume %s` continues after the last epoch", path.parent)
            raise
        except Exception:
            log.debug("the run failed", exc_info=True)  # for the file only: the caller shows the error itself
            raise
        finally:
            log.removeHandler(handler)
            with suppress(OSError):  # lines that did not fit are still in its buffer
                handler.close()
    if handler.error is not None:
        log.warning("%s: lines are missing, since it could not be written: %s", path, handler.error.strerror)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's advice about settings that this package chooses."""
    with log_level(logging.ERROR, "lightning.pytorch", "lightning.fabric"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        yield


@contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Set the level of these loggers within the context."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, earlier in zip(loggers, before, strict=True):
            logger.setLevel(earlier)
