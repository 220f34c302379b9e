"""How much the service takes on at a time: what is more is refused at once, so that memory does not grow."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from trainer.errors import RequestError


class BusyError(RequestError):
    """The service has enough to do; `retry_after` (seconds) says when it has not."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(f"{reason}; try again in {retry_after} s", status=429)
        self.retry_after = retry_after


class Admission:
    """Counts the images and bytes of the requests that are being read, waiting or worked on.

    A request takes a `Ticket` and gives it back when it is answered. Safe to use from several threads.

    Attributes:
        changed: is called whenever the counts have changed.
    """

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.images = 0
        self.bytes = 0
        self._rate = 0.0  # images a second, a running mean
        self._counted, self._since = 0, time.monotonic()
        self._lock = threading.Lock()
        self.changed: Callable[[], None] = lambda: None

    def enter(self) -> Ticket:
        """A ticket for a request of which nothing is known yet.

        Raises:
            BusyError: the queue is full, so that reading the request would be in vain.
        """
        with self._lock:
            if self.images >= self.max_images:
                raise self._busy(f"{self.images} images are waiting, as many as are let in")
        return Ticket(self)

    def done(self, images: int) -> None:
        """So many images were answered: what `Retry-After` is reckoned from."""
        with self._lock:
            self._counted += images
            seconds = time.monotonic() - self._since
            if seconds >= 1:
                rate = self._counted / seconds
                self._rate = rate if self._rate == 0 else 0.7 * self._rate + 0.3 * rate
                self._counted, self._since = 0, time.monotonic()

    def take(self, images: int, size: int, mine: tuple[int, int]) -> None:
        """Count more images and bytes for a request that has `mine` already."""
        with self._lock:
            # A request that finds nobody before it is let in whatever its size; other limits bound it.
            alone = self.images == mine[0] and self.bytes == mine[1]
            if images and self.images + images > self.max_images and not alone:
                raise self._busy(
                    f"{self.images} images are waiting and this request holds {images} more, "
                    f"over the {self.max_images} that are let in"
                )
            if size and self.bytes + size > self.max_bytes and not alone:
                raise self._busy(f"requests of {self.bytes / 1e6:.0f} MB are waiting")
            self.images += images
            self.bytes += size
        self.changed()

    def give_back(self, images: int, size: int) -> None:
        with self._lock:
            self.images -= images
            self.bytes -= size
        self.changed()

    def _busy(self, reason: str) -> BusyError:
        seconds = self.images / self._rate / 2 if self._rate else 1.0
        return BusyError(f"the service is busy: {reason}", min(60, max(1, math.ceil(seconds))))


class Ticket:
    """One request's share of the queue. A context: what it took is given back at its end."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.images = 0
        self.bytes = 0

    def take_images(self, count: int) -> None:
        """Count the request's images.

        Raises:
            BusyError: there is no room for them now.
        """
        self._admission.take(count, 0, (self.images, self.bytes))
        self.images += count

    def take_bytes(self, count: int) -> None:
        """Count bytes of the request, before or as they are read.

        Raises:
            BusyError: there is no room for them now.
        """
        self._admission.take(0, count, (self.images, self.bytes))
        self.bytes += count

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.give_back(self.images, self.bytes)
        self.images = self.bytes = 0
