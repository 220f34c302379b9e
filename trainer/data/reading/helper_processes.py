"""Work on the parts of a large file in further processes, forked from this one."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import IO, Generic, NamedTuple, TypeVar

from trainer.cores import available_cores

_MOST = 3
"""With more helpers, collecting their results takes longer than their work."""

Part = TypeVar("Part")
Result = TypeVar("Result")


class _Helper(NamedTuple):
    process: int
    results: IO[bytes]


class Helpers(Generic[Part, Result]):
    """Processes that take parts in turn with this one, which takes part 0, n + 1, 2 (n + 1) … itself.

    Each process reads the parts itself, so that only results are sent, in their order. It costs milliseconds,
    and is done only on Linux and while this process has a single Python thread, since a fork has no others.
    """

    def __init__(self, parts: Callable[[], Iterable[Part]], work: Callable[[Part], Result]) -> None:
        self._parts = parts
        self._work = work
        self._helpers: list[_Helper | None] = []

    def __enter__(self) -> Helpers[Part, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the helpers, which stop at the next result that nobody takes."""
        for helper in self._helpers:
            self._end(helper)
        self._helpers.clear()

    def start(self) -> None:
        """Start as many helpers as there are further cores, or as the system allows.

        None are started if they cannot be forked safely.
        """
        if sys.platform != "linux" or threading.active_count() > 1:
            return
        count = min(_MOST, available_cores() - 1)
        for turn in range(1, count + 1):
            reading, writing = os.pipe()
            try:
                process = _fork()
            except OSError:  # a limit on processes or memory: this process takes the helper's turns itself
                process = -1
            if process == 0:
                os.close(reading)
                self._help(turn, count + 1, writing)
            os.close(writing)
            if process == -1:
                os.close(reading)
                self._helpers.append(None)
            else:
                self._helpers.append(_Helper(process, os.fdopen(reading, "rb")))

    def result(self, index: int) -> Result | None:
        """The result for a part; None if it is this process's turn, or the helper has died."""
        turn = index % (len(self._helpers) + 1)
        helper = self._helpers[turn - 1] if turn else None
        if helper is None:
            return None
        try:
            result: Result = pickle.load(helper.results)
        except (EOFError, OSError, pickle.UnpicklingError):
            self._end(helper)
            self._helpers[turn - 1] = None
            return None
        return result

    def _help(self, turn: int, turns: int, writing: int) -> None:
        """Work on a helper's parts, then leave without the clean-up of the process that this is a copy of."""
        try:
            for helper in self._helpers:
                if helper is not None:
                    helper.results.close()
            with os.fdopen(writing, "wb") as results:
                for index, part in enumerate(self._parts()):
                    if index % turns == turn:
                        pickle.dump(self._work(part), results, protocol=pickle.HIGHEST_PROTOCOL)
                        results.flush()
        finally:
            os._exit(0)

    @staticmethod
    def _end(helper: _Helper | None) -> None:
        if helper is not None:
            helper.results.close()
            with suppress(ChildProcessError):  # it has been waited for elsewhere
                os.waitpid(helper.process, 0)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of the idle threads of NumPy's libraries, which the helpers do not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
