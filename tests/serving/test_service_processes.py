"""The service as a process of its own: its workers, its end and its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.checks import body, metric
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")

MakeImage = Callable[..., bytes]
Encode = Callable[[bytes], str]
Packaged = Callable[..., Path]


def start(model: Path, *flags: str, environment: dict[str, str] | None = None) -> tuple[Any, httpx.Client]:
    server = subprocess.Popen(
        [sys.executable, "-m", "trainer", "serve", str(model), "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        pytest.fail(f"the server did not start: {server.communicate()[1]}")
    url = line.split()[-1].removesuffix("/score")
    return server, httpx.Client(base_url=url, timeout=120)


def running_workers(server: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server).children():
        with suppress(psutil.NoSuchProcess):  # a zombie, for a moment
            if any("spawn_main" in part for part in child.cmdline()):
                found.append(child)
    return found


def test_workers_share_work_and_metrics_and_finish_accepted_requests(
    packaged: Packaged, make_image: MakeImage, encode: Encode
) -> None:
    server, client = start(packaged(Task.CLASSIFICATION), "--workers", "2", "--max-queue", "5000")
    try:
        image, headers = make_image(), {"Content-Type": "image/png", "Connection": "close"}
        for _ in range(20):
            assert client.post("/score", content=image, headers=headers).status_code == 200
        # Whichever worker is asked knows of all requests.
        for _ in range(5):
            answer = client.get("/metrics", headers={"Connection": "close"})
            assert 'trainer_requests_total{path="/score",status="200"} 20.0' in answer.text.splitlines()
        workers = running_workers(server.pid)
        workers[0].kill()
        until = time.monotonic() + 120
        while len(running_workers(server.pid)) < 2 or workers[0] in running_workers(server.pid):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert client.post("/score", content=image, headers=headers).status_code == 200
        with ThreadPoolExecutor(4) as pool:
            rows = body(*[encode(image)] * 400)
            asked = [
                pool.submit(httpx.post, f"{client.base_url}/score", json=rows, timeout=120) for _ in range(4)
            ]
            until = time.monotonic() + 30
            while metric(client, "trainer_queue_images") < 1600:
                assert time.monotonic() < until
            server.send_signal(signal.SIGTERM)
            assert [len(future.result().json()) for future in asked] == [400] * 4
        out, errors = server.communicate(timeout=60)
    finally:
        server.kill()
        server.communicate()
        client.close()
    assert server.returncode == 0
    assert "Traceback" not in errors
    assert f"to try it in a browser: {client.base_url}/" in errors
    lines = [json.loads(line) for line in out.splitlines()]
    assert sum(line["path"] == "/score" and line["status"] == 200 for line in lines) == 25


@pytest.mark.fresh_processes
def test_memory_does_not_grow_with_requests(
    packaged: Packaged, make_image: MakeImage, encode: Encode
) -> None:
    """A shorter form of the run in benchmarks/serving.py --memory."""
    server, client = start(packaged(Task.CLASSIFICATION), "--no-access-log")
    try:
        rows = [json.dumps(body(encode(make_image(seed, (320, 240))))).encode() for seed in range(8)]
        sizes = []
        for count in (150, 600):
            with ThreadPoolExecutor(4) as pool:
                sent = [
                    pool.submit(client.post, "/score", content=rows[number % 8]) for number in range(count)
                ]
                assert all(future.result().status_code == 200 for future in sent)
            sizes.append(psutil.Process(server.pid).memory_info().rss)
    finally:
        server.kill()
        server.communicate()
        client.close()
    assert sizes[1] <= 1.05 * sizes[0]
