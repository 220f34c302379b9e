"""MLTable folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.reading.jsonl import read
from trainer.tasks import Task

LINE = '{"image_url": "%s.jpg", "label": "x"}\n'
AZURE = """
paths:
  - file: ./train.jsonl
transformations:
  - read_json_lines:
      encoding: utf8
      invalid_lines: error
      include_path_column: false
  - convert_column_types:
      - columns: image_url
        column_type: stream_info
"""


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    """Write an MLTable with this content beside a file train.jsonl."""
    (tmp_path / "train.jsonl").write_text(LINE % "a")

    def write(content: str) -> Path:
        (tmp_path / "MLTable").write_text(content, encoding="utf-8")
        return tmp_path

    return write


def test_an_mltable_exported_by_azure_is_read(table: Callable[[str], Path]) -> None:
    folder = table(AZURE)
    for path in (folder, folder / "MLTable", f"{folder}/"):
        result = read([path], Task.CLASSIFICATION)
        assert result.problems == []
        assert result.records.source(0) == str(folder / "a.jpg")
    assert result.records.location(0) == f"{folder}/train.jsonl:1"


@pytest.mark.parametrize(
    "paths",
    [
        "- pattern: ./*.jsonl",
        "- pattern: '**/*.jsonl'",
        "- folder: .",
        "- folder: ./",
        "- {file: train.jsonl}\n- {file: sub/more.jsonl}",
    ],
)
def test_file_pattern_and_folder_paths(paths: str, table: Callable[[str], Path]) -> None:
    folder = table("paths:\n" + paths)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.jsonl").write_text(LINE % "b")
    (folder / "picture.jpg").touch()
    result = read([folder], Task.CLASSIFICATION)
    assert result.problems == []
    assert len(result.records) == (1 if "./*" in paths else 2)


def test_paths_outside_the_folder(
    table: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other [1]")
    for name in ("b", "c", "d"):
        (other / name).mkdir()
        (other / name / "data.jsonl").write_text(LINE % name)
    folder = table(
        f"""
        paths:
        - file: {other}/b/data.jsonl
        - folder: azureml://datastores/blob/paths/c
        - file: ../{other.name}/d/data.jsonl
        """
    )
    result = read([folder], Task.CLASSIFICATION, datastores={"blob": str(other)})
    assert result.problems == []
    assert [result.records.source(n) for n in range(3)] == [f"{other}/{n}/{n}.jpg" for n in ("b", "c", "d")]


def test_folder_with_glob_characters(tmp_path: Path) -> None:
    folder = tmp_path / "set [1] *"
    folder.mkdir()
    (folder / "MLTable").write_text("paths:\n- pattern: ./*.jsonl\n")
    (folder / "data.jsonl").write_text(LINE % "a")
    assert len(read([folder], Task.CLASSIFICATION).records) == 1


def test_invalid_lines_can_be_dropped(table: Callable[[str], Path]) -> None:
    folder = table(AZURE.replace("error", "drop"))
    (folder / "train.jsonl").write_text("broken\n" + LINE % "a" + "[1]\n" + '{"image_url": "b.jpg"}\n')
    result = read([folder], Task.CLASSIFICATION)
    dropped, missing = result.problems
    assert dropped.warning
    assert str(dropped).endswith("the first of 2 such lines")
    assert not missing.warning, "a faulty record is not an invalid line"
    assert [entry.line for entry in result.skipped] == [1, 3, 4]


@pytest.mark.parametrize(
    ("encoding", "python"),
    [
        ("utf8", "utf-8-sig"),
        ("utf16", "utf-16"),
        ("windows1252", "cp1252"),
        ("iso88591", "latin-1"),
        ("cp949",) * 2,
    ],
)
def test_encodings(encoding: str, python: str, table: Callable[[str], Path]) -> None:
    folder = table(AZURE.replace("utf8", encoding))
    name = "우유" if python == "cp949" else "é"
    text = (LINE % "a").replace('"x"', f'"{name}"') + LINE % "b"
    (folder / "train.jsonl").write_bytes(text.encode(python))
    result = read([folder], Task.CLASSIFICATION)
    assert result.problems == []
    assert name in result.records.classes
    assert result.records.lines.tolist() == [1, 2]


def test_content_that_contradicts_the_encoding_is_an_error(table: Callable[[str], Path]) -> None:
    folder = table(AZURE.replace("utf8", "ascii"))
    (folder / "train.jsonl").write_text((LINE % "é").replace("x", "é"), encoding="utf-8")
    result = read([folder], Task.CLASSIFICATION)
    assert not result.is_complete
    assert "must be encoded in ascii" in str(result.problems[0])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("paths: [", "MLTable:1: must be YAML"),
        ("paths:\n  " + "[" * 100, "MLTable:2: must not nest"),
        ("paths: &a\n- *a", "MLTable:2: the alias *a must not be inside its own value"),
        ("", "paths: must be a list"),
        ("paths: []", "paths: must be a list"),
        ("paths:\n- url: x", "paths[0]: must be {file: …}, {pattern: …} or {folder: …}, got {'url': 'x'}"),
        ("paths:\n- file: 3", "paths[0].file: must be a path, got 3"),
        ("paths:\n- file: no.jsonl", "no.jsonl: must be a .jsonl file or an MLTable folder"),
        ("paths:\n- pattern: ./*.csv", "paths[0].pattern: must match at least one JSON lines file"),
        ("paths:\n- file: azureml://datastores/x/paths/t.jsonl", "--datastore x=DIR_OR_URL"),
        (
            AZURE + "  - take: 5\n",
            "transformations[2]: must be a supported transformation: read_json_lines",
        ),
        (AZURE.replace("read_json_lines", "read_delimited"), "got 'read_delimited'"),
        (
            AZURE.replace("image_url", "label"),
            "convert_column_types: must be a supported transformation",
        ),
        (AZURE.replace("invalid_lines: error", "invalid_lines: keep"), "must be error or drop, got 'keep'"),
        (AZURE.replace("utf8", "klingon"), "must be a known encoding"),
        (AZURE.replace("encoding:", "encodings:"), "encodings: is not an option"),
    ],
)
def test_faults(content: str, expected: str, table: Callable[[str], Path]) -> None:
    result = read([table(content)], Task.CLASSIFICATION)
    assert not result.is_complete
    assert expected in "\n".join(map(str, result.problems))


def test_error_for_a_folder_without_mltable_names_its_jsonl_files(table: Callable[[str], Path]) -> None:
    folder = table("")
    (folder / "MLTable").unlink()
    (problem,) = read([folder], Task.CLASSIFICATION).problems
    assert "the folder holds train.jsonl: give that file instead" in str(problem)
