"""From a request's body to its answers: parsing, decoding and preprocessing in parallel with the network.

A pool of threads parses requests and prepares their images, one image per job, for the batcher's queue. The
number of images in progress is bounded, per request and in total; the rest of a request waits as bytes. Tiled
images and explanations do not fit into batches of single views: they have a slow lane, a thread with its own
copy of the network's modules, so that they delay no other request.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

from serving.answers import encode
from serving.payload import ImageRow, Payload
from serving.scorer import Scorer
from serving.service.admission import Ticket
from serving.service.batching import Answered, Batcher, Item, deliver
from serving.service.options import Options
from trainer.annotations import Image
from trainer.data.images import ImageError, TooManyPixelsError, decode
from trainer.errors import RequestError
from trainer.scoring import ScoringParameters

# Larger images are decoded one at a time: decoding one may take a gigabyte.
_LARGE_PIXELS = 16_000_000
_SLOW_IMAGES = 4  # waiting for the slow lane as tensors; more wait as bytes

Observe = Callable[[int, float, float], None]


class Scored(NamedTuple):
    """A request's answers, in order, and the size of the largest batch among its images."""

    answers: list[bytes]
    batch: int


_Opened = tuple[Payload, ScoringParameters]


class Pipeline:
    """The threads that score for one model; used in one event loop and ended by `close`."""

    def __init__(self, scorer: Scorer, options: Options, observe: Observe) -> None:
        on_cpu = scorer.device.type == "cpu"
        cores = options.cores
        # Lanes of one thread each do not wait for one another; two keep a GPU busy.
        lanes = min(4, cores) if on_cpu else 2
        decoders = max(2, cores) if on_cpu else max(4, cores)
        self._options = options
        self._scorer = scorer
        self._large = threading.Lock()
        self._pool = ThreadPoolExecutor(decoders, "decoder", initializer=_one_thread)
        self._slow_pool = ThreadPoolExecutor(1, "slow")
        scorer.speed_up()
        self.batcher = Batcher(
            [scorer.replica() for _ in range(lanes)],
            max_batch=options.max_batch,
            max_wait=options.max_wait_ms / 1000,
            threads=cores if on_cpu else 0,
            observe=observe,
        )
        self._window = lanes * options.max_batch + decoders
        self._slots = asyncio.Semaphore(2 * self._window)
        self._slow_slots = asyncio.Semaphore(_SLOW_IMAGES)

    async def score(self, parse: Callable[[], Payload], ticket: Ticket) -> Scored:
        """Answer a request.

        Args:
            parse: returns the request's payload; called in another thread.
            ticket: the request's; takes its images.

        Raises:
            RequestError: the request, a parameter or a row is wrong, or there is no room for its images;
                names the first wrong row.
            RunError: the network returned numbers that are not finite.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[_Opened] = loop.create_future()
        pending: deque[asyncio.Future[Answered]] = deque([loop.create_future()])
        answered: list[Answered] = []
        try:
            await self._slots.acquire()
            self.batcher.expect()
            self._pool.submit(self._open, parse, ticket, opened, pending[0])
            payload, parameters = await opened
            if _is_slow(payload.rows[0], parameters):
                pending.clear()  # _open has not started it
            for index in range(len(pending), len(payload.rows)):
                while len(pending) >= self._window:
                    answered.append(await pending.popleft())
                pending.append(loop.create_future())
                await self._start(index, payload.rows[index], parameters, pending[-1])
            while pending:
                answered.append(await pending.popleft())
        finally:
            opened.cancel()
            for future in pending:
                future.cancel()
                # Retrieve the error, which nothing awaits any more, so that asyncio does not log it.
                if future.done() and not future.cancelled():
                    future.exception()
        return Scored([each.content for each in answered], max(each.batch for each in answered))

    def close(self, timeout: float) -> bool:
        """End the threads after their current work; False if that takes longer than `timeout` seconds."""

        def end() -> None:
            for pool in (self._slow_pool, self._pool):
                pool.shutdown(cancel_futures=True)
            self.batcher.close()

        closer = threading.Thread(target=end, daemon=True)
        closer.start()
        closer.join(timeout)
        return not closer.is_alive()

    async def _start(
        self, index: int, row: ImageRow, parameters: ScoringParameters, answer: asyncio.Future[Answered]
    ) -> None:
        if _is_slow(row, parameters):
            await self._slow_slots.acquire()
            self._slow_pool.submit(self._score_slowly, index, row, parameters, answer)
        else:
            await self._slots.acquire()
            self.batcher.expect()
            self._pool.submit(self._prepare, index, row, parameters, answer)

    def _open(
        self,
        parse: Callable[[], Payload],
        ticket: Ticket,
        opened: asyncio.Future[_Opened],
        first: asyncio.Future[Answered],
    ) -> None:
        """Parse a request and prepare its first image, which is usually the only one."""
        try:
            if opened.cancelled():
                raise RequestError("cancelled while it waited")  # never shown
            payload = parse()
            limit = self._options.max_rows
            if len(payload.rows) > limit:
                raise RequestError(
                    f"the request has {len(payload.rows)} images, over the limit of {limit}; "
                    "send several requests",
                    status=413,
                )
            parameters = self._scorer.parameters(payload.parameters)
            self._scorer.check(payload.rows)
            ticket.take(images=len(payload.rows))
        except Exception as error:  # noqa: BLE001 (passed to the request)
            self.batcher.forget()
            deliver([(opened, error, self._slots.release)])
            return
        if _is_slow(payload.rows[0], parameters):
            self.batcher.forget()
            deliver([(opened, (payload, parameters), self._slots.release)])
        else:
            deliver([(opened, (payload, parameters), None)])
            self._prepare(0, payload.rows[0], parameters, first)

    def _prepare(
        self, index: int, row: ImageRow, parameters: ScoringParameters, answer: asyncio.Future[Answered]
    ) -> None:
        """Decode, preprocess and queue an image."""
        try:
            if answer.cancelled():
                raise RequestError("cancelled while it waited")  # never shown
            tensor, geometry = self._scorer.preprocess(self._decoded(index, row))
        except Exception as error:  # noqa: BLE001 (passed to the request)
            self.batcher.forget()
            deliver([(answer, error, self._slots.release)])
            return
        self.batcher.put(Item(tensor, geometry, parameters, answer, self._slots.release))

    def _decoded(self, index: int, row: ImageRow) -> Image:
        try:
            try:
                return decode(row.image, max_pixels=_LARGE_PIXELS)
            except TooManyPixelsError:
                with self._large:
                    return decode(row.image)
        except ImageError as error:
            raise RequestError(str(error), row=index, status=422) from error

    def _score_slowly(
        self, index: int, row: ImageRow, parameters: ScoringParameters, answer: asyncio.Future[Answered]
    ) -> None:
        result: Answered | Exception | None = None
        if not answer.cancelled():
            try:
                image = self._decoded(index, row)
                (scored,) = self._slow_scorer.score_images([image], parameters)
                if row.explanation is not None:
                    scored = self._slow_scorer.explain(image, scored, row.explanation, index)
                result = Answered(encode(scored), 1)
            except Exception as error:  # noqa: BLE001 (passed to the request)
                result = error
        deliver([(answer, result, self._slow_slots.release)])

    @cached_property
    def _slow_scorer(self) -> Scorer:
        return self._scorer.replica()


def _is_slow(row: ImageRow, parameters: ScoringParameters) -> bool:
    """Whether a row needs the slow lane: for its explanation, or because its tiles are a batch already."""
    return row.explanation is not None or parameters.tile_grid_size is not None


def _one_thread() -> None:
    """Limit PyTorch to one thread: preprocessing is light, and more threads would slow down the lanes."""
    import torch

    torch.set_num_threads(1)
