"""Writes MLTables with Azure's own package: python write_tables.py FOLDER (in an environment with mltable).

FOLDER/data has the data, FOLDER/tables a folder for each table as its save() writes it, and FOLDER/rows.json
the rows that the package itself reads from each: file name of the image and label.
"""

from __future__ import annotations

import csv
import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # the package's own

import mltable  # noqa: E402
from mltable import DataType  # noqa: E402

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
ROWS = [
    {
        "image_url": f"{n}.png",
        "label": "ab"[n % 2],
        "split": "test" if n % 5 == 0 else "train",
        "size": n,
        "weight": n / 2,
        "note": None if n % 3 == 0 else "x",
        "checked": n % 2 == 0,
        "image_details": {"width": 1, "height": "1px"},
    }
    for n in range(12)
]
FILTERS = [
    'col("label") == "a"',
    "label != 'a'",
    'size > 3 and split == "train"',
    'not (size > 3) or label == "b"',
    "3 <= size",
    "weight < 2.5",
    "size == 3.0",
    "size > -1",
    "checked",
    "checked == True and not (size == 2)",
    'note == "x"',
    'not (note == "x") or size < 4',
    'size == "3" or size == 4',
    'split.startswith("te")',
    'starts_with(image_url, "1")',
]
ENCODINGS = {
    "utf8": "utf-8",
    "latin1": "latin-1",
    "iso-8859-1": "latin-1",
    "windows-1252": "cp1252",
    "ascii": "ascii",
}
ENCODINGS_OF_THE_ENUM = {"utf16": "utf-16"}


def write_data(folder: Path) -> None:
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (folder / "lines" / "more").mkdir(parents=True)
    (folder / "lines" / "train.jsonl").write_text("".join(lines))
    (folder / "lines" / "more" / "more.jsonl").write_text("".join(lines).replace(".png", "m.png"))
    (folder / "broken.jsonl").write_text(lines[0] + "no JSON\n" + lines[1])
    for encoding in {**ENCODINGS, **ENCODINGS_OF_THE_ENUM}.values():
        name = "e" if encoding == "ascii" else "é"
        line = json.dumps({"image_url": "0.png", "label": name}, ensure_ascii=False) + "\n"
        (folder / f"{encoding}.jsonl").write_bytes(line.encode(encoding))
    for label, images in {"cat": ("1.png", "2.x.png"), "big dog": ("3.png",)}.items():
        (folder / "images" / label).mkdir(parents=True)
        for image in images:
            (folder / "images" / label / image).write_bytes(PNG)
    for name, delimiter in (("labels.csv", ","), ("labels.tsv", "\t")):
        with open(folder / name, "w", newline="") as file:
            writer = csv.DictWriter(file, ["image_url", "label", "split"], "", "ignore", delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)


def tables(data: Path) -> dict[str, Any]:
    """The tables by name."""
    train = [{"file": str(data / "lines" / "train.jsonl")}]
    lines = mltable.from_json_lines_files(train)
    every = mltable.from_json_lines_files([{"pattern": str(data / "lines" / "**" / "*.jsonl")}])
    images = mltable.from_paths([{"pattern": str(data / "images" / "*" / "*.png")}])
    made = {
        "plain": lines,
        "path-column": mltable.from_json_lines_files(train, include_path_column=True),
        "partitions": lines._with_partition_size(2, "mb"),
        "two-files": mltable.from_json_lines_files(
            [*train, {"file": str(data / "lines" / "more" / "more.jsonl")}]
        ),
        "pattern": every,
        "folder": mltable.from_json_lines_files([{"folder": str(data / "lines")}]),
        "drop-invalid": mltable.from_json_lines_files(
            [{"file": str(data / "broken.jsonl")}], invalid_lines="drop"
        ),
        "take": lines.take(5),
        "skip": lines.skip(5),
        "skip-take": lines.skip(2).take(3),
        "take-over-files": every.take(14),
        "filter-take": lines.filter("size > 2").take(2),
        "take-filter": lines.take(5).filter("size > 2"),
        "keep": lines.keep_columns(["image_url", "label"]),
        "drop": lines.drop_columns(["note", "image_details"]),
        "convert": lines.convert_column_types(
            {"label": "string", ("size", "weight"): "float", "checked": DataType.to_bool(["1"], ["0"])}
        ),
        "convert-filter": lines.convert_column_types({"size": "string"}).filter('size == "3"'),
        "images": images.extract_columns_from_partition_format("/{label}/{name}.png"),
        "images-star": images.extract_columns_from_partition_format("/images/{label}/*.png"),
        "images-filter": images.extract_columns_from_partition_format("/{label}/{name}.png").filter(
            'label == "cat"'
        ),
        "delimited": mltable.from_delimited_files([{"file": str(data / "labels.csv")}]),
        "delimited-filter": mltable.from_delimited_files(
            [{"file": str(data / "labels.tsv")}], delimiter="\t", encoding="windows1252"
        ).filter('split == "test"'),
        "path-filter": mltable.from_json_lines_files([{"pattern": str(data / "lines" / "*" / "*.jsonl")}])
        .extract_columns_from_partition_format("/lines/{part}/{name}.jsonl")
        .filter('part == "more"'),
    }
    made |= {f"filter-{number}": lines.filter(text) for number, text in enumerate(FILTERS)}
    made |= {
        f"encoding-{name}": mltable.from_json_lines_files(
            [{"file": str(data / f"{python}.jsonl")}], encoding=name
        )
        for name, python in ENCODINGS.items()
    }
    made |= {
        f"encoding-{name}": mltable.from_json_lines_files(
            [{"file": str(data / f"{python}.jsonl")}], encoding=mltable.MLTableFileEncoding[name]
        )
        for name, python in ENCODINGS_OF_THE_ENUM.items()
    }
    return made


def others(data: Path) -> dict[str, Any]:
    """Tables whose rows are not compared: they are drawn, or the package does not read them here."""
    lines = mltable.from_json_lines_files([{"file": str(data / "lines" / "train.jsonl")}])
    first, second = lines.random_split(0.7, seed=3)
    parquet = mltable.from_parquet_files([{"file": str(data / "labels.parquet")}])
    return {
        "random-sample": lines.take_random_sample(0.5, seed=7),
        "random-split-first": first,
        "random-split-second": second,
        "parquet": parquet,
        "select-partitions": lines.select_partitions([0]),
    }


def save(table: Any, folder: Path, **options: Any) -> None:
    column = "Path" if "read_" not in str(table) else "image_url"
    if column == "image_url":
        table = table.convert_column_types({column: "stream_info"})
    table.save(str(folder), **options)


def rows_of(table: Any) -> list[tuple[str, str]]:
    records = table._get_pyrecords("rows")
    return [(Path(str(row.get("image_url", row.get("Path")))).name, str(row["label"])) for row in records]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_data(target / "data")
    made = tables(target / "data")
    for name, table in {**made, **others(target / "data")}.items():
        save(table, target / "tables" / name)
    save(made["plain"], target / "tables" / "colocated", colocated=True)
    rows = {name: rows_of(table) for name, table in made.items()}
    (target / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
