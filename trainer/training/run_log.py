"""Where a run's messages go, and whose are left out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("trainer")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Everything that is said about the run also goes into its own log."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    except KeyboardInterrupt:
        log.warning("interrupted; `trainer fit --resume %s` goes on from the last epoch", path.parent)
        raise
    except Exception:
        log.debug("the run failed", exc_info=True)  # for the file; the caller shows the error itself
        raise
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's advice on settings that are decided here stays unsaid."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
