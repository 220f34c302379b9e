"""A real `mlflow server` for tests, and a proxy that cuts it off."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests import warm
from trainer.training.mlflow_store import Store


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """The port of a server on this machine that keeps everything in a folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Imported already: by itself the server would import MLflow twice.
    start = warm.Popen if sys.platform == "linux" else subprocess.Popen
    Store(f"sqlite:///{folder}/mlflow.db").check()  # makes the database sooner than the server would
    with (folder / "log").open("wb") as said:
        process = start(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"),
                *("--artifacts-destination", str(folder / "files")),
            ],
            cwd=folder, env=environment, stdout=said, stderr=said,
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "log").read_text("utf-8")
            assert time.monotonic() < until, (folder / "log").read_text("utf-8")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield port
    finally:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        process.wait()


class Gate:
    """A proxy before a server that can be closed, silenced and opened again."""

    def __init__(self, port: int) -> None:
        self.behind = port
        self.port = 0
        self.silent = False
        self.connections: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def fall_silent(self) -> None:
        """Accept everything, and answer nothing."""
        self.silent = True

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.behind))
                self.connections += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                if not self.silent:
                    target.sendall(content)
            target.shutdown(socket.SHUT_WR)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"
