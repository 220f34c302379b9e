"""The run's own log file, and the loggers of libraries that are kept quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("trainer")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write all log messages to this file, too, debug messages and the traceback of a failure included."""
    handler = logging.FileHandler(path, encoding="utf-8")
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
            handler.close()


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
