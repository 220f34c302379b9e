"""Limits how much unanswered work the service accepts, so that its memory does not grow under load."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from trainer.errors import RequestError


class BusyError(RequestError):
    """The service is at its limit; `retry_after` is the time in seconds after which to try again."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(f"{reason}; try again in {retry_after} s", status=429)
        self.retry_after = retry_after


class Admission:
    """Counts the images and bytes of all unanswered requests. Thread-safe.

    A request holds a `Ticket` until it is answered.

    Attributes:
        changed: called whenever the counts change.
    """

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.images = 0
        self.bytes = 0
        self._rate = 0.0  # images per second, a running mean
        self._counted, self._since = 0, time.monotonic()
        self._lock = threading.Lock()
        self.changed: Callable[[], None] = lambda: None

    def enter(self) -> Ticket:
        """Return a ticket for a request that has not been read yet.

        Raises:
            BusyError: the queue is full, so there is no point in reading the request.
        """
        with self._lock:
            if self.images >= self.max_images:
                raise self._busy(f"{self.images} images are waiting, which is the limit")
        return Ticket(self)

    def done(self, images: int) -> None:
        """Count answered images; `Retry-After` is estimated from their rate."""
        with self._lock:
            self._counted += images
            seconds = time.monotonic() - self._since
            if seconds >= 1:
                rate = self._counted / seconds
                self._rate = rate if self._rate == 0 else 0.7 * self._rate + 0.3 * rate
                self._counted, self._since = 0, time.monotonic()

    def take(self, images: int, size: int, own: tuple[int, int]) -> None:
        """Count more images and bytes of a request that holds (images, bytes) `own` already.

        Raises:
            BusyError: they exceed a limit.
        """
        with self._lock:
            # A request that is alone is always accepted; other limits bound its size.
            is_only = self.images == own[0] and self.bytes == own[1]
            if images and self.images + images > self.max_images and not is_only:
                raise self._busy(
                    f"{self.images} images are waiting and this request has {images} more, "
                    f"over the limit of {self.max_images}"
                )
            if size and self.bytes + size > self.max_bytes and not is_only:
                raise self._busy(f"requests of {self.bytes / 1e6:.0f} MB are waiting")
            self.images += images
            self.bytes += size
        self.changed()

    def release(self, images: int, size: int) -> None:
        with self._lock:
            self.images -= images
            self.bytes -= size
        self.changed()

    def _busy(self, reason: str) -> BusyError:
        seconds = self.images / self._rate / 2 if self._rate else 1.0
        return BusyError(f"the service is busy: {reason}", min(60, max(1, math.ceil(seconds))))


class Ticket:
    """What one request occupies in the queue; a context manager that releases it at the end."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.images = 0
        self.bytes = 0

    def take(self, *, images: int = 0, size: int = 0) -> None:
        """Count images of the request, or bytes of it before or while they are read.

        Raises:
            BusyError: they exceed a limit.
        """
        self._admission.take(images, size, (self.images, self.bytes))
        self.images += images
        self.bytes += size

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.release(self.images, self.bytes)
        self.images = self.bytes = 0
