"""Runs calls in parallel streams: for small batches, PyTorch's own threads spend their time waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import ParamSpec, Protocol, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MAX_STREAMS = 2  # each holds a batch with its gradients


class Submit(Protocol):
    """Starts a call in a stream."""

    def __call__(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]: ...


@contextmanager
def streams(device: torch.device) -> Iterator[Submit]:
    """Yield a function that starts calls in streams, in the order given; an error drops the waiting calls.

    On a CPU the streams share the calling thread's PyTorch threads. With a single thread, and on other
    devices, the calling thread is the only stream.
    """
    threads = torch.get_num_threads()
    count = min(_MAX_STREAMS, threads) if device.type == "cpu" else 1
    if count == 1:
        yield _call_now
        return
    pool = ThreadPoolExecutor(count, "stream")
    try:
        _divide_threads(pool, count, threads)
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _call_now(call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
    future: Future[_T] = Future()
    future.set_result(call(*args, **kwargs))
    return future


def _divide_threads(pool: ThreadPoolExecutor, count: int, threads: int) -> None:
    ready = Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # the first query in a thread resets the number to the default
        torch.set_num_threads(threads // count)
        ready.wait()

    for _ in range(count):
        pool.submit(start)
    ready.wait()
    # Setting the number in one thread also changes the default of threads that start later: restore it.
    torch.set_num_threads(threads)
