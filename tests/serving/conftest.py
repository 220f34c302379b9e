"""Small real models of each family, packaged, and image files to send them."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as PILImage

from trainer.scoring import ScoringParameters
from trainer.tasks import Task

with warnings.catch_warnings():
    # MLflow warns of its own type hints as it is imported.
    warnings.simplefilter("ignore")
    import mlflow.pyfunc

CLASSES = ("can", "carton", "우유병")

_SETTINGS: dict[str, dict[str, int]] = {
    "resnet18": {"validation_resize_size": 40, "validation_crop_size": 32},
    "fasterrcnn_resnet18_fpn": {"min_size": 64, "max_size": 96},
    "maskrcnn_resnet18_fpn": {"min_size": 64, "max_size": 96},
    "yolo11n": {"image_size": 64},
}
# Thousands of proposals are a two-stage detector's cost, not its principle.
_FEW_PROPOSALS = {"proposals": 40, "sampled_proposals": 32}
MODELS = {
    Task.CLASSIFICATION: "resnet18",
    Task.MULTILABEL: "resnet18",
    Task.DETECTION: "fasterrcnn_resnet18_fpn",
    Task.SEGMENTATION: "maskrcnn_resnet18_fpn",
}


def image_file(seed: int = 0, size: tuple[int, int] = (60, 40), file_format: str = "PNG") -> bytes:
    """An image file's content: colourful noise, different for each seed; size is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(noise).resize(size, PILImage.Resampling.BICUBIC).save(file, file_format)
    return file.getvalue()


def as_base64(content: bytes) -> str:
    """Base64 with line breaks, as the documented client sends it."""
    return base64.encodebytes(content).decode("ascii")


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    return image_file


@pytest.fixture(scope="session")
def encode() -> Callable[[bytes], str]:
    return as_base64


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """packaged(task[, model]) → the MLflow model directory of a small untrained network, made once."""
    import torch

    from serving.package import write_model
    from trainer.models import Spec, create
    from trainer.models.catalog import find
    from trainer.models.defaults import resolve

    @cache
    def package(task: Task, model: str = "") -> Path:
        model = model or MODELS[task]
        family = find(model, task).family
        options = import_module(f"trainer.models.{family}").FAMILY.options(
            task, model, resolve(task, model, _SETTINGS[model]), False
        )
        options |= {name: value for name, value in _FEW_PROPOSALS.items() if name in options}
        parameters = ScoringParameters(box_score_threshold=0.0, box_detections_per_image=7)
        spec = Spec(
            family=family, model=model, task=task, classes=CLASSES, options=options, parameters=parameters
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            network = create(spec).build()
        return write_model(tmp_path_factory.mktemp("run") / "model", spec, network)

    return package


@pytest.fixture(scope="session")
def load_model(packaged: Callable[..., Path]) -> Callable[[Task], Any]:
    """load_model(task) → what mlflow.pyfunc.load_model makes of the packaged model, loaded once."""

    @cache
    def load(task: Task) -> Any:
        return mlflow.pyfunc.load_model(str(packaged(task)))

    return load


@pytest.fixture(scope="session")
def serve_app() -> Callable[..., AbstractContextManager[httpx.Client]]:
    """with serve_app(scorer[, options], keys=…, access_log=…) as client: the app on a real server's port."""
    import uvicorn

    from serving.service.protocol import BoundedProtocol
    from serving.service.server import create_app

    @contextmanager
    def serve(*arguments: Any, **more: Any) -> Iterator[httpx.Client]:
        listener = socket.create_server(("127.0.0.1", 0))
        app = create_app(*arguments, **more)
        config = uvicorn.Config(app, http=BoundedProtocol, ws="none", log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            port = listener.getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                client.app, client.server = app, server  # type: ignore[attr-defined]
                yield client
        finally:
            server.should_exit = True
            thread.join()
            listener.close()

    return serve


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """run_python(code) → what a fresh interpreter, elsewhere, prints; its errors fail the test."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(code: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-I", "-c", code],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
