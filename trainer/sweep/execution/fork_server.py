"""The process that trials are forked from: `python -m trainer.sweep.execution.fork_server [MODULE …]`.

It has imported what every trial needs, which takes as long as a short training run. It reads requests from
its standard input and writes events to its standard output, as JSON, one per line: which process it forked
for a request, and how that process ended. When its input ends it exits, and its trials with it.

(multiprocessing's forkserver cannot replace it: it runs the user's script again in every process, cannot be
given an environment or be closed, and if it dies, its processes seem to have ended though they still run.)
"""

from __future__ import annotations

import importlib
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from trainer.sweep.execution.trial import PARENT_PID

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Request(BaseModel):
    """A request to start the process of a trial.

    Attributes:
        number: names the process in events.
        order: path of the trial's order.
        output: path of the file that gets what the process prints.
        environment: variables to set in the process.
    """

    number: int
    order: Path
    output: Path
    environment: dict[str, str]


class Event(BaseModel):
    """A report that the process of a request has started or ended.

    Attributes:
        pid: of the process that was started.
        status: exit status of the process that ended; minus the number of the signal that ended it.
    """

    number: int
    pid: int | None = None
    status: int | None = None


def main() -> None:
    """Fork a process for each request; in each of these, run the trial."""
    from trainer.sweep.execution import trial

    events = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)  # what libraries print on import must not get between the events
    for module in sys.argv[1:]:
        importlib.import_module(module)
    request = _serve(events)
    if request is None:
        os._exit(0)  # at once: the trials exit when they see that their parent has gone
    _become_trial(request)
    sys.exit(trial.main(request.order))


def _serve(events: int) -> Request | None:
    """Fork a process for each request.

    Returns:
        In a forked process its request; in the server None, at the end of the input.
    """
    children = _Children(events)
    for request in _requests(children):
        if children.fork(request.number):
            children.release()
            return request
    return None


def _requests(children: _Children) -> Iterator[Request]:
    """Yield the requests from the standard input until it ends; meanwhile reap children that have ended."""
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(_STDIN, selectors.EVENT_READ)
        selector.register(children.wakeup, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if children.wakeup in ready:
                children.reap()
            if _STDIN in ready:
                received = os.read(_STDIN, 65536)
                if not received:
                    return
                *lines, unread = (unread + received).split(b"\n")
                yield from map(Request.model_validate_json, lines)


class _Children:
    """The forked processes, and the events about them.

    Attributes:
        wakeup: a file descriptor that becomes readable when a child may have ended.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self._numbers: dict[int, int] = {}
        self.wakeup, self._wakeup_writer = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self._wakeup_writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer)

    def fork(self, number: int) -> bool:
        """Fork a process; true in the new one."""
        parent = os.getpid()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child can handle it
        pid = os.fork()
        if pid == 0:
            os.environ[PARENT_PID] = str(parent)
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._numbers[pid] = number
        self._report(Event(number=number, pid=pid))
        return False

    def reap(self) -> None:
        """Report the children that have ended."""
        with suppress(BlockingIOError):
            os.read(self.wakeup, 4096)
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self._numbers.pop(pid, None)
            if number is not None:
                self._report(Event(number=number, status=os.waitstatus_to_exitcode(status)))

    def release(self) -> None:
        """In a forked process, undo what only the server needs."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self.wakeup, self._wakeup_writer, self._events):
            os.close(descriptor)

    def _report(self, event: Event) -> None:
        os.write(self._events, event.model_dump_json(exclude_none=True).encode() + b"\n")


def _become_trial(request: Request) -> None:
    """Give a forked process a session, files, environment and signal handlers of its own."""
    os.setsid()  # a process group of its own, which can be killed as one
    os.dup2(os.open(os.devnull, os.O_RDONLY), _STDIN)
    output = os.open(request.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, _STDOUT)
    os.dup2(output, _STDERR)
    os.environ.update(request.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for background processes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch = sys.modules.get("torch")
    # A process that has used a GPU's driver cannot be forked, and macOS's libraries cannot be forked at all.
    if sys.platform == "darwin" or (torch is not None and torch.cuda._is_in_bad_fork()):
        module = "trainer.sweep.execution.trial"
        os.execv(sys.executable, [sys.executable, "-m", module, str(request.order)])


if __name__ == "__main__":
    main()
