"""Runs the processes of `trainer serve`, from opening the socket to answering the last request."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from serving.locate import find_artifacts
from serving.service.keys import Keys
from serving.service.options import Options
from trainer.cores import available_cores
from trainer.errors import RunError, TrainerError
from trainer.models.precision import Precision, half_of

if TYPE_CHECKING:
    from serving.scorer import Scorer

_logger = logging.getLogger(__name__)
_FAILED = 3  # a worker's exit status when its model cannot be loaded


@dataclass(frozen=True, slots=True)
class _Work:
    """What a worker process needs."""

    artifacts: Path
    options: Options
    keys: Keys | None
    access_log: bool
    device: str | None
    precision: Precision


def serve(
    run_or_model: Path,
    host: str = "127.0.0.1",
    port: int = 5001,
    *,
    workers: int = 1,
    auth_key_file: Path | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    options: Options | None = None,
    access_log: bool = True,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the model of a run or model directory until SIGTERM or Ctrl-C.

    The service then closes its socket and finishes the requests that it has accepted, within
    `options.shutdown_timeout_s`.

    Args:
        port: 0 takes any free port.
        workers: number of processes; each loads the model, and the options' limits apply to each.
        auth_key_file: file with one or two keys, one per line; None requires no key.
        device: a PyTorch device; None takes the first GPU, or the CPU if there is none.
        precision: in which the network computes; with bf16 or fp16, a log line says how far answers are from
            those in float32.
        options: limits and sizes; None takes the defaults and divides the cores among the workers.
        access_log: write a JSON line per request to stdout.
        announce: called with the service's URL once it answers requests.

    Raises:
        RunError: there is no model, the key file is invalid, the device does not exist, or the address
            is not available.
        WeightsError: the model's weights are damaged.
    """
    if workers < 1:
        raise RunError(f"--workers must be at least 1, got {workers}")
    artifacts = find_artifacts(run_or_model)
    keys = Keys.read(auth_key_file) if auth_key_file is not None else None
    if options is None:
        options = Options(cores=max(1, available_cores() // workers))
    # OpenMP threads that spin while waiting would take cores from the decoding threads. PyTorch reads the
    # variable when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    work = _Work(artifacts, options, keys, access_log, device, precision)
    with _bound_socket(host, port) as listener:
        shown_host = f"[{host}]" if ":" in host else host
        url = f"http://{shown_host}:{listener.getsockname()[1]}"
        if workers == 1:
            _run(work, listener, lambda: announce(url))
        else:
            with tempfile.TemporaryDirectory(
                prefix="trainer-metrics-", ignore_cleanup_errors=True
            ) as metrics:
                _Supervisor(work, listener, metrics).run(workers, lambda: announce(url))


def _run(work: _Work, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Load the model and answer requests in this process until it is told to stop."""
    import uvicorn

    from serving.service.protocol import BoundedProtocol
    from serving.service.server import Service, create_app
    from serving.service.telemetry import AccessLog

    class Server(uvicorn.Server):
        """Reports when it answers requests and when it starts to stop."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.draining = True
            super().handle_exit(sig, frame)

    scorer = _load(work)
    app = create_app(
        scorer, work.options, keys=work.keys, access_log=AccessLog() if work.access_log else None
    )
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        # Longer than proxies keep idle connections open; otherwise they would send requests into closed ones.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(work.options.shutdown_timeout_s)),
    )
    # After it has stopped, uvicorn raises the signal again; being told to stop is not a failure.
    with _handling(lambda: None, signal.SIGTERM), suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])
    if not service.closed:
        # A normal exit would wait for the service's threads.
        sys.stdout.flush()
        os._exit(0)


def _load(work: _Work) -> Scorer:
    """Load the model; with half precision, log how far its answers are from those in float32."""
    from serving.scorer import Scorer

    scorer = Scorer.load(work.artifacts, _checked_device(work.device), work.precision)
    if half_of(work.precision) is not None:
        from serving.half_precision import difference

        _logger.warning(
            "scoring in %s: on images of coloured rectangles, %s; `trainer evaluate --precision %s` has the "
            "metrics on your data", work.precision, difference(scorer), work.precision,
        )  # fmt: skip
    return scorer


def _checked_device(device: str | None) -> str | None:
    if device is None:
        return None
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"--device {device}: cannot be used: {reason}; use another device, or cpu") from None
    return device


def _work_main(work: _Work, listener: socket.socket, ready: Connection, metrics: str) -> None:
    """Run a worker process; it combines its metrics with the others' through the directory `metrics`."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics  # before _run imports prometheus_client
    try:
        _run(work, listener, lambda: ready.send(None))
    except TrainerError as error:
        print(error, file=sys.stderr)  # noqa: T201 (the command's error message)
        sys.exit(_FAILED)


class _Supervisor:
    """Starts the worker processes, replaces those that die, and stops them all."""

    def __init__(self, work: _Work, listener: socket.socket, metrics: str) -> None:
        self._work = work
        self._listener = listener
        self._metrics = metrics
        self._stopped = threading.Event()

    def run(self, workers: int, ready: Callable[[], None]) -> None:
        """Run until SIGTERM or Ctrl-C."""
        # The terminal sends Ctrl-C to the workers, too; both signals must have the same effect.
        with _handling(self._stopped.set, signal.SIGTERM, signal.SIGINT):
            started = [self._start() for _ in range(workers)]
            processes = [process for process, _ in started]
            try:
                self._await_ready([pipe for _, pipe in started])
                if not self._stopped.is_set():
                    ready()
                    self._watch(processes)
            finally:
                self._end(processes)

    def _start(self) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        worker = context.Process(target=_work_main, args=(self._work, self._listener, sending, self._metrics))
        worker.start()
        sending.close()
        return worker, receiving

    def _await_ready(self, waiting: list[Connection]) -> None:
        while waiting and not self._stopped.is_set():
            for pipe in wait(waiting, timeout=0.2):
                assert isinstance(pipe, Connection)
                try:
                    pipe.recv()
                except EOFError:
                    raise RunError(
                        "a worker process ended before it was ready; see its message above"
                    ) from None
                waiting.remove(pipe)

    def _watch(self, workers: list[SpawnProcess]) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        while not self._stopped.wait(0.5):
            for index, worker in enumerate(workers):
                if worker.is_alive():
                    continue
                _logger.error(
                    "worker process %s ended with status %s; starting another", worker.pid, worker.exitcode
                )
                mark_process_dead(worker.pid, self._metrics)  # type: ignore[no-untyped-call]
                workers[index], _ = self._start()
                self._stopped.wait(1)  # do not restart as fast as an out-of-memory killer can kill

    def _end(self, workers: list[SpawnProcess]) -> None:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        until = time.monotonic() + self._work.options.shutdown_timeout_s + 5
        for worker in workers:
            worker.join(max(0.1, until - time.monotonic()))
            if worker.is_alive():
                worker.kill()
                worker.join()


@contextmanager
def _handling(handler: Callable[[], None], *signals: signal.Signals) -> Iterator[None]:
    """Call `handler` on these signals; the previous handlers are restored afterwards."""
    previous = {number: signal.signal(number, lambda *_: handler()) for number in signals}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def _bound_socket(host: str, port: int) -> socket.socket:
    """Bind the address before the model is loaded, so that a wrong port is reported at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(
            f"{host}:{port}: cannot listen there: {reason}; choose another --port or --host"
        ) from None
    return listener
