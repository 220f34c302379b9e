"""MLTables as Azure's own package mltable saves them have the rows that the package reads."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from trainer.data.reading.jsonl import ReadResult, read
from trainer.tasks import Task


def rows_of(result: ReadResult) -> list[tuple[str, str]]:
    records = result.records
    labels = (records.classes[label] for label in records.labels)
    return [(Path(url).name, label) for url, label in zip(records.image_urls, labels, strict=True)]


def read_table(sdk_tables: Path, name: str) -> ReadResult:
    return read([sdk_tables / "tables" / name], Task.CLASSIFICATION)


def test_every_table_has_the_rows_that_the_package_reads(sdk_tables: Path) -> None:
    expected = json.loads((sdk_tables / "rows.json").read_text("utf-8"))
    assert len(expected) > 40
    for name, rows in expected.items():
        result = read_table(sdk_tables, name)
        assert [str(problem) for problem in result.problems if not problem.warning] == [], name
        assert [list(row) for row in rows_of(result)] == rows, name


def test_images_of_a_table_are_found_from_where_it_is_saved(sdk_tables: Path) -> None:
    result = read_table(sdk_tables, "plain")
    assert result.records.source(0) == str(sdk_tables / "data/lines/0.png")
    assert result.records.location(3).endswith("train.jsonl:4")
    result = read_table(sdk_tables, "images")
    assert result.records.source(0) == str(sdk_tables / "data/images/big dog/3.png")


def test_a_colocated_table_has_its_own_copy(sdk_tables: Path) -> None:
    assert len(read_table(sdk_tables, "colocated").records) == 12
    assert read_table(sdk_tables, "colocated").records.source(0).startswith(str(sdk_tables / "tables"))


def test_the_tables_of_a_random_split_complement_each_other(sdk_tables: Path) -> None:
    first, second = (read_table(sdk_tables, f"random-split-{part}") for part in ("first", "second"))
    assert sorted(rows_of(first) + rows_of(second)) == sorted(rows_of(read_table(sdk_tables, "plain")))
    assert 0 < len(second.records) < len(first.records)
    (note, *_) = first.problems
    assert note.warning
    assert "the rows are drawn with seed 3; they are other rows than Azure draws" in str(note)


def test_a_random_sample_is_the_same_each_time(sdk_tables: Path) -> None:
    sample = rows_of(read_table(sdk_tables, "random-sample"))
    assert sample == rows_of(read_table(sdk_tables, "random-sample"))
    assert 0 < len(sample) < 12


def test_columns_that_a_table_drops_are_not_told_of(sdk_tables: Path) -> None:
    assert read_table(sdk_tables, "keep").problems == []
    told = {problem.field for problem in read_table(sdk_tables, "drop").problems}
    assert told == {"split", "size", "weight", "checked"}


@pytest.mark.parametrize("as_text", [False, True])
def test_parquet_is_read(as_text: bool, sdk_tables: Path) -> None:
    box = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
    labels = [[box], [box, {**box, "label": "box"}], []]
    rows = [
        {"image_url": f"{n}.png", "label": json.dumps(label) if as_text else label, "n": n}
        for n, label in enumerate(labels)
    ]
    pd.DataFrame(rows).to_parquet(sdk_tables / "data" / "labels.parquet")
    result = read([sdk_tables / "tables" / "parquet"], Task.DETECTION)
    assert result.problems == []
    assert result.records.classes == ("box", "can")
    assert result.records.starts.tolist() == [0, 1, 3, 3]
    assert result.records.location(1).endswith("labels.parquet:2")


def test_partitions_are_refused_with_the_next_step(sdk_tables: Path) -> None:
    (problem, *_) = read_table(sdk_tables, "select-partitions").problems
    assert "transformations[1]: must be a supported transformation, got 'select_partitions'" in str(problem)
    assert "write the lines that it selects to a .jsonl file" in problem.hint
