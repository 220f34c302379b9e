"""Dynamic batching: images that wait at the same time go through the network together.

Images are decoded and preprocessed by other threads, which put them into the queue one by one. Each lane is
a thread with a copy of the network's modules that shares its weights; an idle lane takes the oldest image and
with it those that may share its batch: equal parameters and equal tensor sizes, so that no image is padded to
fit another, and an answer depends on its batch by no more than the rounding of floats. It waits for a fuller
batch only while images are being decoded, and never longer than `max_wait` after the oldest came. On a CPU a
lane computes in one thread while others are busy too, and in all of them when it is alone.
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
from trainer.models.family import Geometry
from trainer.scoring import ScoringParameters

if TYPE_CHECKING:
    from torch import Tensor

# What a core's caches hold of a network's activations: YOLO11n at 640 x 640 takes 15 % less time an image in
# batches of 2 to 4 than of 8, ResNet-18 at 224 x 224 no more from 4 on (measured on a Xeon with 2 MB of L2).
_CPU_PIXELS = 1_600_000

_logger = logging.getLogger(__name__)


class Answered(NamedTuple):
    """An image's answer as JSON, and the size of the batch that the image was in."""

    content: bytes
    batch: int


@dataclass(slots=True, eq=False)
class Item:
    """An image on its way through the network.

    Attributes:
        answer: gets the answer, or the error, in the event loop that it belongs to.
        release: is called there when the image's memory is free again, whether its answer was awaited or not.
    """

    tensor: Tensor
    geometry: Geometry
    parameters: ScoringParameters
    answer: asyncio.Future[Answered]
    release: Callable[[], None]
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Hashable:
        """Images with equal keys may share a batch."""
        return self.parameters, tuple(self.tensor.shape)


def largest_batch(tensor: Tensor, max_batch: int, *, on_cpu: bool) -> int:
    """How many images of a tensor's size go through the network at once, at most."""
    height, width = tensor.shape[-2:]
    return max(1, min(max_batch, _CPU_PIXELS // (height * width))) if on_cpu else max_batch


class Batcher:
    """The queue in front of the network, and the lanes behind it."""

    def __init__(
        self,
        lanes: Sequence[Scorer],
        *,
        max_batch: int,
        max_wait: float,
        threads: int,
        observe: Callable[[int, float, float], None] = lambda *_: None,
    ) -> None:
        """
        Args:
            lanes: a scorer for each lane, none of them used elsewhere.
            max_wait: seconds that a batch waits for images which are being decoded.
            threads: that PyTorch may use in all lanes together; 0 on a GPU.
            observe: is told of each batch: images, seconds that its oldest waited, seconds in the network.
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
        """An image is being prepared: it will be `put`, or taken back by `forget`."""
        with self._changed:
            self._expected += 1

    def forget(self) -> None:
        """An image that was expected does not come."""
        with self._changed:
            self._expected -= 1
            if self._expected == 0:
                self._changed.notify_all()

    def put(self, item: Item) -> None:
        """Queue an image that was expected."""
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
        """The next batch; empty when the batcher is closed. The lane that takes it counts as busy."""
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
        """How many of those waiting a lane takes: what is left for idle lanes need not wait for this one."""
        idle = max(1, len(self._lanes) - self._busy)
        return max(1, -(-(self._waiting + self._expected) // idle))

    def _run(self, scorer: Scorer, lanes: int) -> None:
        import torch

        threads = 0
        while batch := self._take():
            try:
                if self._threads:
                    # Of this thread alone; setting it costs more than asking.
                    alone = self._busy == 1 and self._waiting + self._expected == 0
                    wanted = self._threads if alone else max(1, self._threads // lanes)
                    if wanted != threads:
                        torch.set_num_threads(wanted)
                        threads = wanted
                self._score(scorer, batch)
            except Exception:
                _logger.exception("a lane failed beyond an image's own errors; it goes on")
            finally:
                with self._changed:
                    self._busy -= 1

    def _score(self, scorer: Scorer, batch: list[Item]) -> None:
        began = time.monotonic()
        wanted = [item for item in batch if not item.answer.cancelled()]
        given_up = [(item.answer, None, item.release) for item in batch if item.answer.cancelled()]
        deliver([*given_up, *self._results(scorer, wanted)])
        if wanted:
            oldest = min(item.since for item in wanted)
            self._observe(len(wanted), began - oldest, time.monotonic() - began)

    def _results(self, scorer: Scorer, batch: list[Item]) -> list[Settled]:
        if not batch:
            return []
        parameters = batch[0].parameters
        try:
            outputs = scorer.infer([item.tensor for item in batch], parameters)
        except Exception as error:  # noqa: BLE001 (goes to the requests that it concerns)
            if len(batch) > 1:
                # One image's fault, or too little memory for so many: each for itself.
                _logger.warning("a batch of %d failed (%s); each image is tried alone", len(batch), error)
                return [result for item in batch for result in self._results(scorer, [item])]
            return [(batch[0].answer, error, batch[0].release)]
        results: list[Settled] = []
        for item, output in zip(batch, outputs, strict=True):
            result: Answered | Exception
            try:
                result = Answered(scorer.encoded(output, item.geometry, parameters), len(batch))
            except Exception as error:  # noqa: BLE001 (goes to the request that it concerns)
                result = error
            results.append((item.answer, result, item.release))
        return results


Settled = tuple["asyncio.Future[Any]", Any, Callable[[], None] | None]
"""A future, its result or exception (None where it was given up), and what to call afterwards."""


def deliver(results: Sequence[Settled]) -> None:
    """Settle futures of one event loop from another thread; given-up ones are left alone."""
    if not results:
        return
    try:
        results[0][0].get_loop().call_soon_threadsafe(_settle, results)
    except RuntimeError:  # the loop is closed
        _logger.warning("%d answers came after the service had stopped", len(results))


def _settle(results: Sequence[Settled]) -> None:
    for future, result, release in results:
        if not future.done():
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        if release is not None:
            release()
