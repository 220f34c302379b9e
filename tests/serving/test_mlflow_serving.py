"""MLflow serves a packaged model in a process of its own, and pip finds what it needs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from tests.serving.checks import assert_close, assert_differ
from trainer.tasks import Task

Encode = Callable[[bytes], str]
Packaged = Callable[..., Path]
MakeImage = Callable[..., bytes]


@contextmanager
def mlflow_serves(directory: Path, elsewhere: Path) -> Iterator[str]:
    """A real `mlflow models serve`, as a user starts it in another directory; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(directory)]
    command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    with open(elsewhere / "server.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=elsewhere, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None, (elsewhere / "server.log").read_text()
            assert time.monotonic() < deadline, (elsewhere / "server.log").read_text()
            try:
                if httpx.get(f"{url}/ping").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.slow
def test_mlflow_models_serve(
    packaged: Packaged,
    load_model: Callable[[Task], Any],
    make_image: MakeImage,
    encode: Encode,
    tmp_path: Path,
) -> None:
    rows = [encode(make_image(seed)) for seed in range(3)]
    table = pd.DataFrame({"image": rows})
    expected = {"predictions": load_model(Task.SEGMENTATION).predict(table).to_dict(orient="records")}
    split = {"columns": ["image"], "data": [[row] for row in rows]}
    with mlflow_serves(packaged(Task.SEGMENTATION), tmp_path) as url:

        def post(**body: Any) -> httpx.Response:
            return httpx.post(f"{url}/invocations", json=body, timeout=60)

        answer = post(dataframe_split=split)
        assert answer.status_code == 200, answer.text
        assert_close(answer.json(), expected)
        assert all(found["polygon"] for found in answer.json()["predictions"][0]["boxes"])
        assert_close(post(dataframe_records=[{"image": row} for row in rows]).json(), expected)
        assert_close(post(inputs={"image": rows}).json(), expected)
        answer = post(dataframe_split={"columns": ["image"], "data": [[rows[0]], ["/etc/passwd"]]})
        assert answer.status_code == 400
        assert "row 1: not an image" in answer.json()["message"]
        answer = post(dataframe_split=split, params={"box_score_threshold": 1.0})
        assert answer.json() == {"predictions": [{"boxes": []}] * 3}
        plain = post(dataframe_split=split).json()
        for params in ({"tile_grid_size": "none"}, {"tile_grid_size": None}):
            assert_close(post(dataframe_split=split, params=params).json(), plain)
        tiled = post(dataframe_split=split, params={"tile_grid_size": "3x2", "tile_overlap_ratio": 0})
        assert tiled.status_code == 200, tiled.text
        assert_differ(tiled.json(), plain)
        answer = post(dataframe_split=split, params={"tile_grid_size": "1x1"})
        assert answer.status_code == 400
        assert "tile_grid_size must be columns and rows" in answer.json()["message"]
        answer = post(dataframe_split=split, params={"box_score_threshold": 2.0})
        assert answer.status_code == 400
        assert "box_score_threshold must be a number in [0, 1], got 2.0" in answer.json()["message"]


@pytest.mark.slow
def test_pip_can_install_the_requirements(packaged: Packaged, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
    pinned: list[str] = []
    for task, model in ((Task.CLASSIFICATION, "resnet18"), (Task.DETECTION, "yolo11n")):
        pinned += ["-r", str(packaged(task, model) / "requirements.txt")]
    report = tmp_path / "report.json"

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*pip, *options, *pinned]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    # The pinned versions and all that they depend on suit each other: they resolve to what is installed here.
    resolved = run("--no-index")
    assert resolved.returncode == 0, resolved.stderr
    # And the index has them. Resolving their dependencies there again would take half a minute.
    done = run("--ignore-installed", "--no-deps", "--report", str(report))
    unreachable = ("NewConnectionError", "Name or service not known", "Temporary failure in name resolution")
    if done.returncode and any(sign in done.stderr for sign in unreachable):
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"no package index can be reached: {done.stderr}")
        pytest.skip("needs a package index, none can be reached")
    assert done.returncode == 0, done.stderr
    installed = {each["metadata"]["name"].lower() for each in json.loads(report.read_text())["install"]}
    assert {"mlflow", "torch", "timm", "ultralytics"} <= installed
