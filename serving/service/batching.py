"""Dynamic batching: images that wait at the same time go through the network together.

Other threads decode and preprocess images and put them into the queue one by one. Each lane is a thread with
a copy of the network's modules that shares the weights. An idle lane takes the oldest image and the images
that may share its batch: those with the same parameters and tensor size. So no image is padded to fit
another, and batching changes only floating-point rounding. A lane waits for a fuller batch only while images
are being decoded, and at most `max_wait` after the oldest arrived. On a CPU, a lane computes in one thread
while others are busy, and in all threads when it is the only one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.scorer import Scorer
from trainer.models.geometry import Geometry
from trainer.scoring import ScoringParameters

if TYPE_CHECKING:
    from torch import Tensor

# Pixels per batch whose activations fit a core's caches. Per image, YOLO11n at 640 × 640 takes 15 % less time
# in batches of 2 to 4 than of 8, and ResNet-18 at 224 × 224 is no faster above 4 (Xeon with 2 MB of L2).
_CPU_PIXELS = 1_600_000

_logger = logging.getLogger(__name__)


class Answered(NamedTuple):
    """An image's answer as JSON, and the size of its batch."""

    content: bytes
    batch: int


@dataclass(slots=True, eq=False)
class Item:
    """An image on its way through the network.

    Attributes:
        answer: gets the answer or the error, in its event loop.
        release: called in that loop once the image's memory is free, whether or not the answer was awaited.
    """

    tensor: Tensor
    geometry: Geometry
    parameters: ScoringParameters
    answer: asyncio.Future[Answered]
    release: Callable[[], None]
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Hashable:
        """Images with the same key may share a batch."""
        return self.parameters, tuple(self.tensor.shape)


def largest_batch(tensor: Tensor, max_batch: int, *, on_cpu: bool) -> int:
    """The maximum batch size for images of a tensor's size."""
    height, width = tensor.shape[-2:]
    return max(1, min(max_batch, _CPU_PIXELS // (height * width))) if on_cpu else max_batch


class Batcher:
    """The queue in front of the network, and its lanes."""

    def __init__(
        self,
        lanes: Sequence[Scorer],
        *,
        max_batch: int,
        max_wait: float,
        threads: int,
        observe: Callable[[int, float, float], None],
    ) -> None:
        """
        Args:
            lanes: a scorer for each lane, used by nothing else.
            max_wait: maximum time in seconds that a batch waits for images being decoded.
            threads: number of PyTorch threads of all lanes together; 0 on a GPU.
            observe: called for each batch with its images, the seconds that the oldest waited, and the
                seconds in the network.
        """
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._threads = threads
        self._observe = observe
        self._queues: dict[Hashable, deque[Item]] = {}
        self._waiting = 0
        self._expected = 0
        self._busy = 0
        self._closed = False
        self._changed = threading.Condition()
        self._lanes = [
            threading.Thread(target=self._run, args=(scorer, len(lanes)), name=f"lane-{number}", daemon=True)
            for number, scorer in enumerate(lanes)
        ]
        for lane in self._lanes:
            lane.start()

    @property
    def alive(self) -> bool:
        return all(lane.is_alive() for lane in self._lanes)

    def expect(self) -> None:
        """Announce an image that is being prepared; `put` or `forget` follows."""
        with self._changed:
            self._expected += 1

    def forget(self) -> None:
        """Withdraw an image announced by `expect`."""
        with self._changed:
            self._expected -= 1
            if self._expected == 0:
                self._changed.notify_all()

    def put(self, item: Item) -> None:
        """Queue an image announced by `expect`."""
        with self._changed:
            self._expected -= 1
            self._queues.setdefault(item.key, deque()).append(item)
            self._waiting += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the lanes once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _take(self) -> list[Item]:
        """Wait for the next batch; empty when the batcher is closed. The calling lane then counts as busy."""
        with self._changed:
            while True:
                if not self._queues:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                key, queue = min(self._queues.items(), key=lambda pair: pair[1][0].since)
                left = queue[0].since + self._max_wait - time.monotonic()
                most = largest_batch(queue[0].tensor, self._max_batch, on_cpu=self._threads > 0)
                share = min(most, self._share())
                if len(queue) < share and self._expected > 0 and left > 0 and not self._closed:
                    self._changed.wait(left)
                    continue
                batch = [queue.popleft() for _ in range(min(len(queue), share))]
                if not queue:
                    del self._queues[key]
                self._waiting -= len(batch)
                self._busy += 1
                return batch

    def _share(self) -> int:
        """The number of images that a lane takes, so that idle lanes get the same number."""
        idle = max(1, len(self._lanes) - self._busy)
        return max(1, -(-(self._waiting + self._expected) // idle))

    def _run(self, scorer: Scorer, lanes: int) -> None:
        import torch

        threads = 0
        while batch := self._take():
            try:
                if self._threads:
                    # This sets the number for this thread only; setting it costs more than comparing.
                    is_only = self._busy == 1 and self._waiting + self._expected == 0
                    needed = self._threads if is_only else max(1, self._threads // lanes)
                    if needed != threads:
                        torch.set_num_threads(needed)
                        threads = needed
                self._score(scorer, batch)
            except Exception:
                _logger.exception("unexpected error in a batching lane; the lane continues")
            finally:
                with self._changed:
                    self._busy -= 1

    def _score(self, scorer: Scorer, batch: list[Item]) -> None:
        start = time.monotonic()
        live = [item for item in batch if not item.answer.cancelled()]
        cancelled = [(item.answer, None, item.release) for item in batch if item.answer.cancelled()]
        deliver([*cancelled, *self._results(scorer, live)])
        if live:
            oldest = min(item.since for item in live)
            self._observe(len(live), start - oldest, time.monotonic() - start)

    def _results(self, scorer: Scorer, batch: list[Item]) -> list[Settled]:
        if not batch:
            return []
        parameters = batch[0].parameters
        outputs: Sequence[Any] | None = None
        try:
            outputs = scorer.infer([item.tensor for item in batch], parameters)
        except Exception as error:  # noqa: BLE001 (passed to the requests)
            if len(batch) == 1:
                return [(batch[0].answer, error, batch[0].release)]
            # Caused by one image, or by too little memory for the batch: try each image alone.
            # Log only the text: a handler may keep the error, whose frames hold the batch in memory.
            _logger.warning("a batch of %d failed (%s); trying each image alone", len(batch), str(error))
        if outputs is None:  # outside the `except` block, where the error still holds the batch in memory
            return [result for item in batch for result in self._results(scorer, [item])]
        results: list[Settled] = []
        for item, output in zip(batch, outputs, strict=True):
            result: Answered | Exception
            try:
                result = Answered(scorer.encoded(output, item.geometry, parameters), len(batch))
            except Exception as error:  # noqa: BLE001 (passed to the request)
                result = error
            results.append((item.answer, result, item.release))
        return results


Settled = tuple["asyncio.Future[Any]", Any, Callable[[], None] | None]
"""A future, its result or exception (None if it was cancelled), and a function to call afterwards."""


def deliver(results: Sequence[Settled]) -> None:
    """Settle futures of one event loop from another thread; cancelled futures are ignored."""
    if not results:
        return
    try:
        results[0][0].get_loop().call_soon_threadsafe(_settle, results)
    except RuntimeError:  # the loop is closed
        _logger.warning("dropped %d answers because the service has stopped", len(results))


def _settle(results: Sequence[Settled]) -> None:
    for future, result, release in results:
        if not future.done():
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        if release is not None:
            release()
