"""A real `mlflow server` for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.training.mlflow_store import Store


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """The port of a server on this machine that keeps everything in a folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    Store(f"sqlite:///{folder}/mlflow.db").check()  # makes the database sooner than the server would
    with (folder / "log").open("wb") as said:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"),
                *("--artifacts-destination", str(folder / "files")),
            ],
            cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True,
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
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
