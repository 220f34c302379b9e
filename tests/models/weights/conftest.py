"""Networks to load weights into, a machine without a network, and a web server in place of the Hub."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from torch import nn

from trainer.models import Family, create, specify
from trainer.models.defaults import resolve
from trainer.models.weights import loading
from trainer.tasks import Task

Pages = dict[str, tuple[bytes, dict[str, str]]]
"""What a web server answers, by path: content and headers."""


def family_of(task: Task, model: str, *classes: str, **values: Any) -> Family:
    settings = resolve(task, model, values)
    return create(specify(task, model, settings, classes or ("a", "b", "c"), pretrained=True))


def load(family: Family, choice: object) -> tuple[nn.Module, loading.Loaded]:
    """A network filled from `choice`, as fit does it."""
    torch.manual_seed(2)
    network = family.build()
    loaded = loading.load(network, family.spec.model, family.published(), str(choice), family.spec)
    assert loaded is not None
    return network, loaded


@pytest.fixture
def resnet() -> Family:
    return family_of(Task.CLASSIFICATION, "resnet18")


@pytest.fixture
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # The hub tries for half a minute unless it is told.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def site() -> Iterator[tuple[str, Pages]]:
    """A real web server: its address, and what it answers by path: content and headers."""
    pages: Pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, headers = pages.get(self.path, (b"", {"X-Error-Code": "EntryNotFound"}))
            self.send_response(404 if "X-Error-Code" in headers else 200)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: tuple[str, Pages]) -> Pages:
    """The pages of a server that stands for the Hub, whose cache is tmp_path/hub."""
    address, pages = site
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return pages
