"""Resolving image_urls."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from trainer.data.reading.image_urls import Resolver
from trainer.data.reading.jsonl import read
from trainer.data.reading.urls import UrlError, resolve_path
from trainer.tasks import Task

LONG = "azureml://subscriptions/s-1/resourcegroups/g/workspaces/w/datastores/blob/paths"


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


@pytest.mark.parametrize("protocol", ["abfs", "abfss", "az"])
def test_azure_storage_needs_an_extra(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
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


def test_paths_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("train.jsonl", {}) == str(tmp_path / "train.jsonl")
    assert resolve_path((tmp_path / "a b").as_uri(), {}) == str(tmp_path / "a b")
    mapped = resolve_path("azureml://datastores/blob/paths/x/train", {"blob": str(tmp_path)})
    assert mapped == str(tmp_path / "x" / "train")
