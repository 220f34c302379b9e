"""Resolving image_urls and fetching remote images."""

from __future__ import annotations

import functools
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
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
from trainer.data.reading import urls
from trainer.data.reading.image_urls import Resolver
from trainer.data.reading.jsonl import read
from trainer.data.reading.urls import UrlError, local_path, resolve_path
from trainer.data.training_data import load
from trainer.data.validate import validate
from trainer.tasks import Task

LONG = "azureml://subscriptions/s-1/resourcegroups/g/workspaces/w/datastores/blob/paths"


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(stream, "PNG")
    return stream.getvalue()


def resolve(image_url: str, base: str = "/data/set", **datastores: str) -> str:
    resolver = Resolver(base, datastores)
    index, name = resolver.resolve(image_url)
    folder = resolver.folders[index]
    return folder.resolved + (unquote(name) if folder.is_quoted else name)


@pytest.mark.parametrize(
    ("image_url", "expected"),
    [
        ("a.jpg", "/data/set/a.jpg"),
        ("images/a.jpg", "/data/set/images/a.jpg"),
        ("./images//a.jpg", "/data/set/images/a.jpg"),
        ("../images/a.jpg", "/data/images/a.jpg"),
        ("그림/사진 1.jpg", "/data/set/그림/사진 1.jpg"),
        ("images\\sub\\a.jpg", "/data/set/images/sub/a.jpg"),
        ("100%/a%20b.jpg", "/data/set/100%/a%20b.jpg"),
        ("/abs/a.jpg", "/abs/a.jpg"),
        ("file:///abs/a%20b.jpg", "/abs/a b.jpg"),
        ("file://localhost/abs/%EC%82%AC.jpg", "/abs/사.jpg"),
        ("file:///abs/a#1?.jpg", "/abs/a#1?.jpg"),
        ("https://host/x/a.jpg?sig=b/c", "https://host/x/a.jpg?sig=b/c"),
        ("memory://bucket/a.jpg", "memory://bucket/a.jpg"),
    ],
)
def test_resolving(image_url: str, expected: str) -> None:
    assert resolve(image_url) == expected


@pytest.mark.parametrize(
    ("image_url", "expected"),
    [
        ("images/a.jpg", "https://host/data/set/images/a.jpg"),
        ("../a.jpg", "https://host/data/a.jpg"),
        ("/abs/a.jpg", "/abs/a.jpg"),
        ("https://other/a.jpg", "https://other/a.jpg"),
    ],
)
def test_resolving_against_a_remote_data_file(image_url: str, expected: str) -> None:
    assert resolve(image_url, "https://host/data/set") == expected


@pytest.mark.parametrize(
    "image_url",
    [
        f"{LONG}/images/10.jpg",
        f"{LONG.replace('resourcegroups', 'resourceGroups')}/images/10.jpg",
        "azureml://datastores/blob/paths/images/10.jpg",
        "AmlDatastore://blob/images/10.jpg",
        "amldatastore://blob/images/10.jpg",
        "AmlDatastore://blob//images/10.jpg",
    ],
)
def test_datastores(image_url: str, tmp_path: Path) -> None:
    assert resolve(image_url, blob=str(tmp_path)) == f"{tmp_path}/images/10.jpg"
    assert resolve(image_url, blob=tmp_path.as_uri()) == f"{tmp_path}/images/10.jpg"
    assert resolve(image_url, blob="https://host/container") == "https://host/container/images/10.jpg"


def test_datastore_content_at_its_root(tmp_path: Path) -> None:
    assert resolve("AmlDatastore://blob/10.jpg", blob=str(tmp_path)) == f"{tmp_path}/10.jpg"
    assert resolve(f"{LONG}/10.jpg", blob=str(tmp_path)) == f"{tmp_path}/10.jpg"


def test_links_and_parent_folders(tmp_path: Path) -> None:
    (tmp_path / "real" / "set").mkdir(parents=True)
    (tmp_path / "real" / "images").mkdir()
    (tmp_path / "real" / "images" / "a.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "set")
    assert os.path.exists(resolve("../images/a.jpg", str(tmp_path / "link")))


@pytest.mark.parametrize(
    ("image_url", "said"),
    [
        ("", "must name an image file"),
        ("images/", "must name an image file"),
        ("..", "must name an image file"),
        ("a\0.jpg", "must name an image file"),
        ("azureml://jobs/x/a.jpg", "must have the form azureml://…/datastores/NAME/paths/PATH"),
        ("nonsense://x/a.jpg", "must have a supported protocol, got nonsense://"),
        ("C:\\data\\a.jpg", "must be a path on this machine"),
        (f"{LONG}/a.jpg", "give the location of its content with --datastore blob=DIR_OR_URL"),
    ],
)
def test_unresolvable_urls_are_errors(image_url: str, said: str) -> None:
    with pytest.raises(UrlError) as caught:
        resolve(image_url)
    assert said in str(caught.value)


@pytest.mark.skipif(find_spec("adlfs") is not None, reason="adlfs, an extra, is installed")
@pytest.mark.parametrize("protocol", ["abfs", "abfss", "az"])
def test_azure_storage_needs_an_extra(protocol: str) -> None:
    with pytest.raises(UrlError, match=rf"got {protocol}://; .*pip install 'image-trainer\[azure\]'"):
        resolve(f"{protocol}://container@account.dfs.core.windows.net/images/a.jpg")
    with pytest.raises(UrlError, match=r"pip install 'image-trainer\[azure\]'"):
        resolve(f"{LONG}/a.jpg", blob=f"{protocol}://container")


def test_error_for_wasb_suggests_abfss() -> None:
    with pytest.raises(UrlError, match="use abfss://CONTAINER@ACCOUNT"):
        resolve("wasbs://container@account.blob.core.windows.net/a.jpg")


def test_a_missing_datastore_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UrlError, match="mapped to a directory that exists"):
        resolve(f"{LONG}/a.jpg", blob=str(tmp_path / "no"))


def test_an_unmapped_datastore_is_reported_once(write_lines: Callable[..., Path]) -> None:
    lines = [{"image_url": f"{LONG}/{n // 2}/{n}.jpg", "label": "x"} for n in range(6)]
    lines.append({"image_url": "AmlDatastore://other/1.jpg", "label": "x"})
    path = write_lines(lines)
    result = read([path], Task.CLASSIFICATION)
    first, second = map(str, result.problems)
    assert "the datastore 'blob' must be mapped (mapped: none)" in first
    assert "--datastore blob=DIR_OR_URL; the first of 6 such lines" in first
    assert "--datastore other=DIR_OR_URL" in second
    assert len(result.skipped) == 7


class _Server(ThreadingHTTPServer):
    """Serves `files` by path.

    Attributes:
        failures: statuses to answer first.
        headers: sent with each answer.
        delay: seconds to wait before each answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.failures: list[int] = []
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self.delay = 0.0

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
    monkeypatch.setattr(urls, "_wait", pauses.append)
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
    monkeypatch.setattr(urls, "_http_options", functools.cache(urls._http_options.__wrapped__))
    monkeypatch.setattr(urls, "_SILENT_SECONDS", 0.05)
    server.files["/a"], server.delay = b"content", 0.3
    with pytest.raises(UrlError, match=r"/a \(no answer in time, 4 attempts\); try again later"):
        local_path(f"{server.url}/a")
    assert len(pauses) == 3


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
    """A store of fsspec that raises `failures` first."""

    protocol = "flaky"
    failures: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def get_file(self, rpath: str, lpath: Any, **options: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        super().get_file(rpath, lpath, **options)


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
    urls._failures.clear()
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


def test_paths_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("train.jsonl", {}) == str(tmp_path / "train.jsonl")
    assert resolve_path((tmp_path / "a b").as_uri(), {}) == str(tmp_path / "a b")
    mapped = resolve_path("azureml://datastores/blob/paths/x/train", {"blob": str(tmp_path)})
    assert mapped == str(tmp_path / "x" / "train")
