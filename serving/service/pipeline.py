"""From a request's body to its answers: reading, decoding and preprocessing beside the network.

A pool of threads reads requests and prepares their images, one image a job, and puts each into the batcher's
queue. How many images are on their way at a time is bounded, for each request and for all together; the rest
of a request waits as bytes. What does not go with batches of single views, tiles and explanations, has a
thread and a copy of the network's modules of its own, so that it holds up nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
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

# Larger images are decoded one at a time: each may take a gigabyte while it is.
_LARGE_PIXELS = 16_000_000
_SLOW_IMAGES = 4  # waiting for the slow lane as tensors; the others wait as bytes

Observe = Callable[[int, float, float], None]


class Scored(NamedTuple):
    """A request's answers, in order, and the size of the largest batch that one of its images was in."""

    answers: list[bytes]
    batch: int


class _Opened(NamedTuple):
    payload: Payload
    parameters: ScoringParameters
    first_is_under_way: bool


class Pipeline:
    """One model's threads. Made in the event loop's thread; `close` ends them."""

    def __init__(self, scorer: Scorer, options: Options, observe: Observe = lambda *_: None) -> None:
        on_cpu = scorer.device.type == "cpu"
        cores = options.cores
        # Lanes of one thread each waste nothing on waiting for each other; a GPU is kept busy by two.
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

    async def score(self, read: Callable[[], Payload], ticket: Ticket) -> Scored:
        """Answer a request.

        Args:
            read: makes the payload from the request's body; is called in another thread.
            ticket: of the request; takes its images.

        Raises:
            RequestError: the request, a parameter or a row is wrong, or there is no room for its images. Of
                several wrong rows the first is named.
            RunError: the network yields numbers that are not finite.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[_Opened] = loop.create_future()
        pending: deque[asyncio.Future[Answered]] = deque([loop.create_future()])
        answered: list[Answered] = []
        try:
            await self._slots.acquire()
            self.batcher.expect()
            self._pool.submit(self._open, read, ticket, opened, pending[0])
            payload, parameters, under_way = await opened
            if not under_way:
                pending.clear()
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
                # An error that nobody waits for any more is none.
                if future.done() and not future.cancelled():
                    future.exception()
        return Scored([each.content for each in answered], max(each.batch for each in answered))

    def close(self, timeout: float) -> bool:
        """End the threads when they have done what they are at; False if that takes over `timeout` s."""

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
        read: Callable[[], Payload],
        ticket: Ticket,
        opened: asyncio.Future[_Opened],
        first: asyncio.Future[Answered],
    ) -> None:
        """Read a request and prepare its first image, which most often is its only one."""
        try:
            if opened.cancelled():
                raise RequestError("given up while it waited")  # nobody reads this
            payload = read()
            limit = self._options.max_rows
            if len(payload.rows) > limit:
                raise RequestError(
                    f"the request holds {len(payload.rows)} images, at most {limit} are scored in one; "
                    "send several requests",
                    status=413,
                )
            parameters = self._scorer.parameters(payload.parameters)
            self._scorer.check(payload.rows)
            ticket.take_images(len(payload.rows))
        except Exception as error:  # noqa: BLE001 (goes to the request)
            self.batcher.forget()
            deliver([(opened, error, self._slots.release)])
            return
        under_way = not _is_slow(payload.rows[0], parameters)
        result = _Opened(payload, parameters, under_way)
        if under_way:
            deliver([(opened, result, None)])
            self._prepare(0, payload.rows[0], parameters, first)
        else:
            self.batcher.forget()
            deliver([(opened, result, self._slots.release)])

    def _prepare(
        self, index: int, row: ImageRow, parameters: ScoringParameters, answer: asyncio.Future[Answered]
    ) -> None:
        """Decode and preprocess an image, and queue it."""
        try:
            if answer.cancelled():
                raise RequestError("given up while it waited")  # nobody reads this
            tensor, geometry = self._scorer.preprocess(self._decoded(index, row))
        except Exception as error:  # noqa: BLE001 (goes to the request)
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
            except Exception as error:  # noqa: BLE001 (goes to the request)
                result = error
        deliver([(answer, result, self._slow_slots.release)])

    @cached_property
    def _slow_scorer(self) -> Scorer:
        return self._scorer.replica()


def _is_slow(row: ImageRow, parameters: ScoringParameters) -> bool:
    """Whether a row goes its own way: it is to be explained, or its tiles are a batch already."""
    return row.explanation is not None or parameters.tile_grid_size is not None


def _one_thread() -> None:
    """Preprocessing is small; PyTorch's threads would only stand in the lanes' way."""
    import torch

    torch.set_num_threads(1)


def joined(answers: Sequence[bytes]) -> bytes:
    """Answers as one JSON list."""
    return b"[" + b", ".join(answers) + b"]"
