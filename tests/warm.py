"""Starts the Python processes of tests by forking one that has imported the slow libraries.

Importing torch, Lightning and MLflow takes longer than most of what a test runs in a process of its own.
While `Popen` replaces `subprocess.Popen`, interpreters that tests and the product start are forked instead:

    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    subprocess.run([sys.executable, "-m", "trainer", "fit", ...])  # no imports

A nursery is a process that forks on request. Each program it starts gets a nursery of its own, so that the
processes which that program starts are forked, too. A program is a child of the process that asked for it, as
it would be otherwise. Other programs, and interpreters with flags such as -I, are started as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "trainer.fitting",
    "trainer.training.fit",
    "trainer.models.classifiers",
    "lightning.pytorch.strategies",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.trial",
    "sklearn.metrics",
    "torch.utils.data",
)
"""What most programs of tests import. Not ultralytics: tests look at what happens without it."""

NAME = "nursery"
"""The name of a nursery's process in /proc/PID/comm."""

_SET_NAME, _SET_CHILD_SUBREAPER = 15, 36  # of prctl(2)
_MESSAGE_BYTES = 1 << 20


class _Program(NamedTuple):
    """What an interpreter is asked to run: `-m`, `-c` or "" for a script, and its words."""

    kind: str
    words: list[str]
    warnings: list[str]
    unbuffered: bool


def _parse(args: Any) -> _Program | None:
    """The program if `args` start this interpreter with flags that a forked process can follow."""
    if isinstance(args, (str, bytes, os.PathLike)):
        return None
    words = [os.fsdecode(word) for word in args]
    if words.pop(0) != sys.executable:
        return None
    actions, unbuffered = [], False
    while words and words[0] in ("-W", "-u"):
        if words.pop(0) == "-u":
            unbuffered = True
        else:
            actions.append(words.pop(0))
    if not words or not set(actions) <= {"error", "ignore"}:
        return None
    if words[0] in ("-m", "-c"):
        return _Program(words[0], words[1:], actions, unbuffered)
    return None if words[0].startswith("-") else _Program("", words, actions, unbuffered)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, whose Python programs are forked from a nursery."""

    nursery: ClassVar[Nursery | None] = None
    has_nursery: ClassVar[bool] = True
    """Not in processes that a program forks itself: what the nursery forks would not be their child."""

    _NAMES = tuple(inspect.signature(subprocess.Popen._execute_child).parameters)[1:]  # type: ignore[attr-defined]

    def _execute_child(self, *arguments: Any) -> None:
        asked = dict(zip(self._NAMES, arguments, strict=True))
        program = _parse(asked["args"])
        unusual = ("executable", "preexec_fn", "pass_fds", "shell", "uid", "gid", "gids")
        if program is None or not Popen.has_nursery or any(asked[name] for name in unusual):
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        if Popen.nursery is None:
            Popen.nursery = Nursery.start()
        environment = os.environ if asked["env"] is None else asked["env"]
        request = {
            "program": program,
            "folder": os.fspath(asked["cwd"] or os.getcwd()),
            "environment": {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()},
            "new_session": asked["start_new_session"],
        }
        streams = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self._child_created = True
        self.pid = Popen.nursery.fork(
            request, [number if stream == -1 else stream for number, stream in enumerate(streams)]
        )
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in ends))  # type: ignore[attr-defined]


class Nursery:
    """A nursery of this process; it ends with it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        _prctl(_SET_CHILD_SUBREAPER, 1)  # whose parent has ended becomes a child of this process

    @classmethod
    def start(cls) -> Nursery:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-W", "ignore", "-m", "tests.warm", str(far.fileno())]
        process = _REAL_POPEN(
            command,
            cwd=ROOT,
            pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # it ends with this process and is not waited for
        far.close()
        return cls(near)

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """The process number of a new program with these for its standard streams."""
        with self._lock:
            socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
            return int(self._connection.recv(_MESSAGE_BYTES))


_REAL_POPEN = subprocess.Popen


def _lose_nursery() -> None:
    Popen.nursery, Popen.has_nursery = None, False


os.register_at_fork(after_in_child=_lose_nursery)


def _prctl(option: int, value: Any) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Be a nursery; in each process that it forks, run the program and return."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection would copy the pages that are shared
    while True:
        _prctl(_SET_NAME, NAME.encode())
        request, streams = _serve(connection)
        near, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            connection.close()
            break
        near.close()
        for stream in streams:
            os.close(stream)
    Popen.nursery, Popen.has_nursery = Nursery(near), True
    subprocess.Popen = Popen  # type: ignore[misc]
    _exit(_status_of(request, streams))


def _serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request; returns in the forked process only."""
    while True:
        message, streams, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            forked = os.fork()
            if forked == 0:
                for number in (read, write):
                    os.close(number)
                connection.close()
                return json.loads(message), streams
            os.write(write, str(forked).encode())
            os._exit(0)
        # Only now is the program a child of the process that asked for it.
        os.waitpid(between, 0)
        connection.send(os.read(read, 64))
        for number in (read, write, *streams):
            os.close(number)


def _status_of(request: dict[str, Any], streams: list[int]) -> int:
    """Run the program; returns its exit status."""
    try:
        _run(request, streams)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 (as an interpreter does)
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _exit(status: int) -> None:
    """End as an interpreter does, without the seconds that it takes to free all modules."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def _run(request: dict[str, Any], streams: list[int]) -> None:
    """Do what an interpreter that was started for the program alone would do."""
    program = _Program(*request["program"])
    if request["new_session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    installed = sys.path[1 + len(_python_path()) :]
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _open_streams(program.unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")))
    for action in program.warnings:
        warnings.simplefilter(action)  # type: ignore[arg-type]
    word, *arguments = program.words
    _prctl(_SET_NAME, b"python")
    first = {"-c": "", "-m": os.getcwd()}.get(program.kind, str(Path(word).resolve().parent))
    sys.path[:] = [first, *_python_path(), *installed]
    sys.argv = ["-c" if program.kind == "-c" else word, *arguments]
    if program.kind == "-m":
        runpy.run_module(word, run_name="__main__", alter_sys=True)
    elif program.kind == "-c":
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(word, "<string>", "exec"), module.__dict__)
    else:
        runpy.run_path(word, run_name="__main__")


def _open_streams(unbuffered: bool) -> None:
    """Make sys.stdin, sys.stdout and sys.stderr anew: those of the nursery remember what it had there."""
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8").split(":")[0]
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        binary = open(number, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(
            binary, encoding, errors, line_buffering=name == "stderr", write_through=unbuffered
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


if __name__ == "__main__":
    # As a module of its own name: what is set on its classes must be what programs see.
    from tests.warm import main as run

    run()
