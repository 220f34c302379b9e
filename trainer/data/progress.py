"""Shows the progress of long work: a bar on a terminal, lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0

log = logging.getLogger(__name__)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items and show progress on standard error if it is a terminal, else in the log.

    Args:
        description: what is being done, such as "checking images".
        total: number of items.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description, total, console=Console(stderr=True))
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("%s: %s of %s", description, f"{done:,}", f"{total:,}")
