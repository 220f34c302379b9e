"""Fetching remote files: the cache, retries, and what is kept."""

from __future__ import annotations

import functools
import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from trainer.data.image_scan import scan
from trainer.data.image_sources import read_image
from trainer.data.images import ImageError, decode, thumbnail
from trainer.data.reading import fetching, mltable
from trainer.data.reading.fetching import local_path
from trainer.data.reading.urls import UrlError
from trainer.data.training_data import load
from trainer.data.validate import validate
from trainer.tasks import Task


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(stream, "PNG")
    return stream.getvalue()


class _Server(ThreadingHTTPServer):
    """Serves `files` by path.

    Attributes:
        failures: statuses to answer first.
        headers: sent with each answer.
        delay: seconds to wait before each answer.
        broken: answers that break off after half of the file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.failures: list[int] = []
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.broken = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that do not wait for their answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.server.requests.append(path)
        content = self.server.files.get(path)
        status = self.server.failures.pop(0) if self.server.failures else 200 if content is not None else 404
        body = content if status == 200 and content is not None else b""
        self.send_response(status)
        time.sleep(self.server.delay)
        self.send_header("Content-Length", str(len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.server.broken:
            self.server.broken -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that fetching would have paused."""
    pauses: list[float] = []
    monkeypatch.setattr(fetching, "_wait", pauses.append)
    return pauses


def test_remote_images_are_fetched_once(server: _Server, cache: Path) -> None:
    server.files["/사진 1.jpg"] = b"content"
    url = f"{server.url}/사진 1.jpg"
    first, second = local_path(url), local_path(url)
    assert first == second
    assert first.read_bytes() == b"content"
    assert first.is_relative_to(cache)
    assert first.suffix == ".jpg"
    assert server.requests.count("/사진 1.jpg") == 1
    server.files["/사진 1.jpg"] = b"changed"
    assert local_path(url, refresh=True).read_bytes() == b"changed"


def test_many_threads_fetch_one_image(server: _Server, cache: Path) -> None:
    server.files["/a.bin"] = os.urandom(300_000)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(local_path, [f"{server.url}/a.bin"] * 16))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == server.files["/a.bin"]
    assert [path for path in cache.rglob("*") if path.is_file()] == [paths[0]], "no leftovers"


def test_temporary_failures_are_retried_after_growing_pauses(server: _Server, pauses: list[float]) -> None:
    server.files["/a"] = b"content"
    server.failures = [503, 429, 500]
    assert local_path(f"{server.url}/a").read_bytes() == b"content"
    assert pauses == [1, 2, 4]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0", 0), ("3600", 60), ("Sun, 06 Nov 1994 08:49:37 GMT", 0), ("soon", 1)],
)
def test_retry_after_is_kept_within_bounds(
    header: str, seconds: float, server: _Server, pauses: list[float]
) -> None:
    server.files["/a"], server.failures, server.headers = b"content", [429], {"Retry-After": header}
    assert local_path(f"{server.url}/a").read_bytes() == b"content"
    assert pauses == [seconds]


def test_a_server_that_falls_silent_is_asked_again(
    server: _Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_http_options", functools.cache(fetching._http_options.__wrapped__))
    monkeypatch.setattr(fetching, "_SILENT_SECONDS", 0.05)
    server.files["/a"], server.delay = b"content", 0.3
    with pytest.raises(UrlError, match=r"/a \(no answer in time, 4 attempts\); try again later"):
        local_path(f"{server.url}/a")
    assert len(pauses) == 3


def test_an_answer_that_breaks_off_is_asked_for_again(server: _Server, pauses: list[float]) -> None:
    server.files["/a.png"], server.broken = png(), 2
    assert local_path(f"{server.url}/a.png").read_bytes() == png()
    server.broken = 4
    with pytest.raises(UrlError, match=r"ClientPayloadError: .*, 4 attempts\); try again later"):
        local_path(f"{server.url}/a.png", refresh=True)
    assert pauses == [1, 2, 1, 2, 4]


def test_a_host_that_is_down_is_not_waited_for_at_each_image(server: _Server, pauses: list[float]) -> None:
    server.failures = [500] * 100
    for number in range(20):
        with pytest.raises(UrlError, match=f"{server.url}/{number}.jpg"):
            local_path(f"{server.url}/{number}.jpg")
    assert len(server.requests) == 3 * 4 + 17
    server.failures, server.files["/a"], server.files["/b"] = [], b"content", b"content"
    local_path(f"{server.url}/a")
    server.failures = [500]
    assert local_path(f"{server.url}/b").read_bytes() == b"content"


class _Store(MemoryFileSystem):
    """A store of fsspec that raises `failures` before it sends files, `listing_failures` before listings."""

    protocol = "flaky"
    failures: ClassVar[list[Exception]] = []
    listing_failures: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def get_file(self, rpath: str, lpath: Any, **options: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        super().get_file(rpath, lpath, **options)

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        if self.listing_failures:
            raise self.listing_failures.pop(0)
        return super().find(path, *arguments, **options)


class _AzureError(Exception):
    status_code = 503


class _GoogleError(Exception):
    code = "429"


class _AmazonError(Exception):
    response: ClassVar[dict[str, Any]] = {"ResponseMetadata": {"HTTPStatusCode": 502}}


@pytest.mark.parametrize(
    ("error", "attempts", "said"),
    [
        (TimeoutError(), 4, "no answer in time"),
        (ConnectionResetError("reset"), 4, "ConnectionResetError: reset"),
        (_AzureError(), 4, "HTTP status 503"),
        (_GoogleError(), 4, "HTTP status 429"),
        (_AmazonError(), 4, "HTTP status 502"),
        (FileNotFoundError("a"), 1, "no such file"),
        (PermissionError("a"), 1, "PermissionError"),
    ],
    ids=str,
)
def test_all_stores_are_asked_again(error: Exception, attempts: int, said: str, pauses: list[float]) -> None:
    fsspec.register_implementation("flaky", _Store, clobber=True)
    fetching._failures.clear()
    _Store().pipe("/a.jpg", b"content")
    _Store.failures[:] = [error] * 3
    if attempts > 1:
        assert local_path("flaky://a.jpg").read_bytes() == b"content"
    _Store.failures[:] = [error] * 4
    with pytest.raises(UrlError, match=rf"got flaky://b\.jpg \({said}") as caught:
        local_path("flaky://b.jpg")
    assert (f", {attempts} attempts)" in str(caught.value)) == (attempts > 1)
    assert len(pauses) == 2 * (attempts - 1)
    _Store.failures.clear()


def test_listing_a_folder_is_tried_again(pauses: list[float]) -> None:
    fsspec.register_implementation("flaky", _Store, clobber=True)
    fetching._failures.clear()
    _Store().pipe("/set/lines/train.jsonl", b'{"image_url": "https://host/a.jpg", "label": "a"}\n')
    _Store().pipe("/set/MLTable", b"paths:\n  - pattern: ./lines/*.jsonl\n")
    _Store.listing_failures[:] = [_AzureError()] * 3
    files, problems = mltable.read("set", "flaky://set", {}, "label")
    assert [file.path for file in files] == ["flaky:///set/lines/train.jsonl"]
    assert problems == []
    _Store.listing_failures[:] = [_AzureError()] * 4
    _, (problem,) = mltable.read("set", "flaky://set", {}, "label")
    assert "HTTP status 503, 4 attempts" in str(problem)


def test_a_cache_that_cannot_be_written_is_an_error(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UrlError, match="the cache of remote files must be writable"):
        local_path(f"{server.url}/a")


def test_an_answer_that_is_no_image_is_not_kept(server: _Server, cache: Path) -> None:
    server.files["/a.png"], server.headers = b"<html>Try again later</html>", {"Content-Type": "text/html"}
    url = f"{server.url}/a.png"
    for reader in (decode, scan, partial(thumbnail, side=9)):
        with pytest.raises(ImageError, match=r"an HTML page; .*HTTP status 200, text/html, 28 bytes"):
            read_image(url, reader)
        assert not [path for path in cache.rglob("*") if path.is_file()]
    server.files["/a.png"] = png()
    assert read_image(url, decode).shape == (6, 8, 3)
    assert server.requests.count("/a.png") == 4
    read_image(url, scan)
    assert server.requests.count("/a.png") == 4


def test_a_cached_file_that_is_no_image_is_fetched_again(server: _Server) -> None:
    server.files["/a.png"] = b"an error page, fetched by an older version"
    url = f"{server.url}/a.png"
    local_path(url)
    server.files["/a.png"] = png()
    assert read_image(url, decode).shape == (6, 8, 3)


def test_an_image_that_is_too_large_stays_in_the_cache(server: _Server, cache: Path) -> None:
    server.files["/a.png"] = png()
    with pytest.raises(ImageError, match="too many pixels"):
        read_image(f"{server.url}/a.png", partial(decode, max_pixels=9))
    assert [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("statuses", "said"),
    [([500] * 9, "HTTP status 500, 4 attempts"), ([429] * 9, "HTTP status 429, 4 attempts"),
     ([403], r"HTTP status 403)")],
)  # fmt: skip
def test_permanent_failures_name_url_and_status(
    statuses: list[int], said: str, server: _Server, cache: Path
) -> None:
    server.failures = list(statuses)
    with pytest.raises(UrlError) as caught:
        local_path(f"{server.url}/a")
    assert said in str(caught.value)
    assert f"{server.url}/a" in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_missing_files_and_unreachable_hosts_are_errors(server: _Server) -> None:
    with pytest.raises(UrlError, match="404"):
        local_path(f"{server.url}/no.jpg")
    assert len(server.requests) <= 2, "a missing file is not asked for again and again"
    with pytest.raises(UrlError, match="must be a URL that can be fetched"):
        local_path("http://127.0.0.1:9/a.jpg")
    with pytest.raises(UrlError, match=r"must be a URL, got http://\[a \(Invalid"):
        local_path("http://[a")


def test_a_redirect_to_itself_is_followed_once(server: _Server, pauses: list[float]) -> None:
    server.failures, server.headers = [302] * 99, {"Location": "/a.jpg"}
    url = f"{server.url}/a.jpg"
    with pytest.raises(UrlError) as caught:
        local_path(url)
    assert caught.value.got == f"{url} (it redirects too often, perhaps to itself)"
    assert pauses == []


def test_a_whole_set_over_http(server: _Server, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    server.files["/set/images/a.png"] = server.files["/set/images/b.png"] = (tmp_path / "a.png").read_bytes()
    server.files["/set/images/c.png"] = b"broken"
    server.files["/set/train.jsonl"] = b"".join(
        b'{"image_url": "images/%s.png", "label": "%s"}\n' % (name, name) for name in (b"a", b"b", b"c", b"d")
    )
    server.files["/set/MLTable"] = b"paths:\n  - file: ./train.jsonl\n"
    for data in (f"{server.url}/set/train.jsonl", f"{server.url}/set"):
        report = validate(Task.CLASSIFICATION, [data], images=True)
        assert report.errors == 2
        assert "train.jsonl:3: image_url: must name a readable image" in str(report.problems[0])
        assert "HTTP status 200" in str(report.problems[0])
        assert "404" in str(report.problems[1])


def test_any_protocol_of_fsspec(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    files = fsspec.filesystem("memory")
    for name in ("a", "b"):
        files.pipe(f"/bucket/images/{name}.png", (tmp_path / "a.png").read_bytes())
    lines = b'{"image_url": "images/a.png", "label": "x"}\n{"image_url": "images/b.png", "label": "y"}\n'
    files.pipe("/bucket/train.jsonl", lines)
    data = load(Task.CLASSIFICATION, ["memory://bucket/train.jsonl"], progress=False)
    assert local_path(data.train.source(0)).is_file()
