"""Work in streams beside each other: small batches leave PyTorch's own threads waiting for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import ParamSpec, Protocol, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MOST = 2  # each holds a batch with gradients


class Submit(Protocol):
    def __call__(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]: ...


@contextmanager
def streams(device: torch.device) -> Iterator[Submit]:
    """Gives what starts a call in a stream; calls begin in their order, and on an error those left do not.

    On a CPU the streams share the threads that PyTorch has in the calling thread; of one thread, and on other
    devices, there is one stream, the calling thread itself.
    """
    threads = torch.get_num_threads()
    count = min(_MOST, threads) if device.type == "cpu" else 1
    if count == 1:
        yield _at_once
        return
    pool = ThreadPoolExecutor(count, "stream")
    try:
        _share(pool, count, threads)
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _at_once(call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
    future: Future[_T] = Future()
    future.set_result(call(*args, **kwargs))
    return future


def _share(pool: ThreadPoolExecutor, count: int, threads: int) -> None:
    ready = Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first look takes what is usual, whatever was set before
        torch.set_num_threads(threads // count)
        ready.wait()

    for _ in range(count):
        pool.submit(begin)
    ready.wait()
    # What a thread sets holds for itself and for threads that begin later: those must not notice.
    torch.set_num_threads(threads)
