"""MLTable folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.reading.jsonl import read
from trainer.data.reading.table_formats import PartitionFormat
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
    """Write an MLTable with this content next to a file train.jsonl."""
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
        ("MLTableFileEncoding.UTF8", "utf-8-sig"),
        ("utf16", "utf-16"),
        ("windows1252", "cp1252"),
        ("windows-1252", "cp1252"),
        ("utf-8 bom", "utf-8-sig"),
        ("UTF-16", "utf-16"),
        ("ISO-8859-1", "latin-1"),
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
        ('paths:\n- pattern: "\\0*"', "paths[0].pattern: must be a path"),
        ("paths:\n- file: no.jsonl", "no.jsonl: must be a .jsonl file or an MLTable folder"),
        (
            "paths:\n- pattern: ./*.csv",
            "paths[0].pattern: must match at least one file, got none for './*.csv'",
        ),
        ("paths:\n- folder: ./empty", "paths[0].folder: must match at least one JSON lines file"),
        ("paths:\n- file: azureml://datastores/x/paths/t.jsonl", "--datastore x=DIR_OR_URL"),
        (
            AZURE + "  - take: 0\n",
            "transformations[2].take: must be a whole number of rows, at least 1, got 0",
        ),
        (AZURE + "  - skip: 1\n", "transformations: must leave at least one row"),
        (AZURE + "  - take_random: {}\n", "got 'take_random'; did you mean take_random_sample?"),
        (
            AZURE + "  - {take: 1, skip: 1}\n",
            "transformations[2]: must be one transformation, {NAME: options}",
        ),
        (AZURE + "  - read_delta_lake: {}\n", "got 'read_delta_lake'; export the table as JSON lines"),
        (
            AZURE + "  - select_partitions: [0]\n",
            "'select_partitions'; write the lines that it selects to a .jsonl",
        ),
        (AZURE + "  - filter: label in ['x']\n", "filter: must compare columns with values"),
        (AZURE + "  - filter: null\n", 'not: col("x") == "y", got None'),
        (
            AZURE + "  - filter: lable == 'x'\n",
            "must name a column of the rows, got 'lable'; did you mean label?",
        ),
        (
            AZURE + "  - drop_columns: label\n",
            "drop_columns: must leave the columns image_url and label, got",
        ),
        (AZURE + "  - keep_columns: [label]\n", "got a table without image_url"),
        (AZURE + "  - keep_columns: {pattern: '['}\n", "keep_columns.pattern: must be a regular expression"),
        (
            AZURE + "  - sample: {sampler: random_percent, sampler_arguments: {probability: 2}}\n",
            "sampler_arguments.probability: must be in [0, 1], above its lower bound, got 0.0 to 2",
        ),
        (AZURE + "  - read_parquet\n", "read_parquet: must be the only reader"),
        ("paths:\n- file: train.jsonl\ntransformations:\n- take: 1\n- read_json_lines", "must come before"),
        (
            AZURE.replace("image_url", "label"),
            "convert_column_types: must leave label as it is, or convert it to",
        ),
        (
            AZURE.replace("stream_info", "stream"),
            "with a type of string, int, float, boolean, datetime, stream_info",
        ),
        (
            AZURE.replace("image_url", "note").replace("stream_info", "{boolean: {true_values: yes}}"),
            "convert_column_types.boolean.true_values: must be a list of texts, got True",
        ),
        (AZURE.replace("read_json_lines", "read_delimited"), "invalid_lines: is not an option"),
        (AZURE.replace("invalid_lines: error", "invalid_lines: keep"), "must be error or drop, got 'keep'"),
        (AZURE.replace("utf8", "klingon"), "must be a known encoding"),
        (AZURE.replace("utf8", "idna"), "must be a known encoding"),
        (AZURE.replace("utf8", '"\\0"'), "must be a known encoding"),
        (AZURE.replace("encoding:", "encodings:"), "encodings: is not an option"),
    ],
)
def test_faults(content: str, expected: str, table: Callable[[str], Path]) -> None:
    result = read([table(content)], Task.CLASSIFICATION)
    assert not result.is_complete
    assert expected in "\n".join(map(str, result.problems))
    assert ": is missing" not in "\n".join(map(str, result.problems)), "lines are not blamed for their table"


@pytest.mark.parametrize(
    ("transformation", "lines"),
    [
        ("take: 2", [1, 2]),
        (f"take: {10**30}", [1, 2, 4, 5]),
        ("skip: 2", [4, 5]),
        ("filter: size > 1 and label == 'b'", [4]),
        ("filter: col(\"size\") != 2 and (label == 'a' or size > 3)", [1, 5]),
        ("keep_columns: {pattern: '^(image|lab)', ignore_case: true}", [1, 2, 4, 5]),
        ("convert_column_types: [{columns: [size], column_type: int}]", [1, 2, 4, 5]),
        (
            "convert_column_types: [{columns: image_url, column_type: {stream_info: {escaped: false}}}]",
            [1, 2, 4, 5],
        ),
        ("sample: {sampler: randomPercent, sampler_arguments: {probability: 1.0}}", [1, 2, 4, 5]),
    ],
)
def test_transformations_choose_lines(
    transformation: str, lines: list[int], table: Callable[[str], Path]
) -> None:
    folder = table(f"paths: [{{file: train.jsonl}}]\ntransformations:\n- {transformation}\n")
    rows = [{"image_url": f"{n}.jpg", "label": "ab"[n % 2], "size": n} for n in (0, 1, 3, 4)]
    texts = [json.dumps(row) for row in rows]
    texts.insert(2, "")  # a blank line is no row
    (folder / "train.jsonl").write_text("\n".join(texts) + "\n")
    result = read([folder], Task.CLASSIFICATION)
    assert [str(problem) for problem in result.problems if not problem.warning] == []
    assert result.records.lines.tolist() == lines
    (located,) = {result.records.location(0)}
    assert located == f"{folder}/train.jsonl:{lines[0]}"


def test_a_line_that_is_no_json_is_still_an_error_under_a_filter(table: Callable[[str], Path]) -> None:
    folder = table(AZURE + "  - filter: label == 'x'\n")
    (folder / "train.jsonl").write_text(LINE % "a" + "broken\n" + LINE % "b")
    (problem,) = read([folder], Task.CLASSIFICATION).problems
    assert str(problem).startswith(f"{folder}/train.jsonl:2: must be one JSON object")


def test_image_details_that_a_table_drops_are_not_examined(table: Callable[[str], Path]) -> None:
    folder = table(AZURE + "  - drop_columns: [image_details, note]\n")
    line = {"image_url": "a.jpg", "label": "x", "image_details": {"width": "wide"}, "note": 1}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n")
    result = read([folder], Task.CLASSIFICATION)
    assert (result.problems, len(result.records)) == ([], 1)


IMAGES = """
paths: [{folder: ./images}]
transformations:
- extract_columns_from_partition_format: {partition_format: '%s', ignore_errors: %s}
"""


@pytest.fixture
def image_table(table: Callable[[str], Path]) -> Callable[..., Path]:
    """Write an MLTable of images next to some in a folder for each class."""

    def write(partition_format: str = "/{label}/{name}.png", ignores: str = "false") -> Path:
        folder = table(IMAGES % (partition_format, ignores))
        for name in ("cat/1.png", "cat/2.png", "big dog/3.x.png", "read.me"):
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return folder

    return write


@pytest.mark.parametrize(
    "text",
    [
        "/{label}/{name}.png",
        "/{label}/*",
        "{label}/{file}",
        "/images/{label}/*.png",
        "/{label}/",
        "/images/{label}",
    ],
)
def test_classes_are_read_from_paths(text: str, image_table: Callable[..., Path]) -> None:
    folder = image_table(text)
    result = read([folder], Task.CLASSIFICATION)
    (note,) = result.problems
    assert str(note).endswith(f"paths: a file that is no image is left out, got {folder}/images/read.me")
    assert result.records.image_urls == ["images/big dog/3.x.png", "images/cat/1.png", "images/cat/2.png"]
    assert [result.records.classes[label] for label in result.records.labels] == ["big dog", "cat", "cat"]
    assert result.records.source(1) == f"{folder}/images/cat/1.png"


def test_the_part_of_a_path_that_is_the_class_may_be_the_target_column(
    image_table: Callable[..., Path],
) -> None:
    folder = image_table("/{kind}/{name}.png")
    assert read([folder], Task.CLASSIFICATION, label_key="kind").records.classes == ("big dog", "cat")
    *_, problem = read([folder], Task.CLASSIFICATION).problems
    assert "partition_format: must have the column label, got kind, name; name the part" in str(problem)


@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        ("/puYear={year}/puMonth={month}", "/a/puYear=2019/puMonth=7/x.png", {"year": "2019", "month": "7"}),
        ("/{label}/{date:yyyy/MM/dd}/*", "/a/cat/2019/07/31/x.png", {"label": "cat"}),
        ("{{/{label}/*", "/a{/cat/x.png", {"label": "cat"}),
        ("/{label}/{label}.png", "/a/cat/x.png", {"label": "cat"}),
        ("/img/{label}/*", "/img/cat/deep/x.png", {"label": "cat"}),
        ("/{label}/*.png", "https://host/img/big%20dog/x.png", {"label": "big dog"}),
        ("/{label}/*.png", "/a/cat/x.jpg", None),
        ("/{label}/a+b.png", "/a/cat/aab.png", None),
    ],
)
def test_partition_formats(text: str, path: str, values: dict[str, str] | None) -> None:
    assert PartitionFormat(text).values(path) == values


@pytest.mark.parametrize("text", ["*a" * 20 + "/{label}", "/" + "{a}x" * 20, "a*/*/*/*/*/{label}"])
def test_partition_formats_that_could_match_for_hours_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="more than 4"):
        PartitionFormat(text)
    assert PartitionFormat("/" + "*" * 30 + "/{label}").values("/" + "a" * 40 + "/b") == {"label": "b"}


def test_an_image_that_does_not_match_the_format_is_an_error(image_table: Callable[..., Path]) -> None:
    folder = image_table()
    (folder / "images" / "cat" / "4.jpg").touch()
    *_, problem = read([folder], Task.CLASSIFICATION).problems
    assert str(problem).endswith(f"must match each image, got {folder}/images/cat/4.jpg")
    folder = image_table(ignores="true")
    result = read([folder], Task.CLASSIFICATION)
    assert (len(result.records), all(problem.warning for problem in result.problems)) == (3, True)


def test_an_image_at_another_depth_gets_no_wrong_class(image_table: Callable[..., Path]) -> None:
    for folder in (image_table("/{label}/*"), image_table("/{label}/*", "true")):
        (folder / "images/cat/deep").mkdir(exist_ok=True)
        (folder / "images/cat/deep/4.png").touch()
        is_left_out = "true" in (folder / "MLTable").read_text()
        result = read([folder], Task.CLASSIFICATION)
        assert result.records.classes == ("big dog", "cat")
        problem = result.problems[-1]
        assert problem.warning is is_left_out
        assert problem.got == f"'deep' for {folder}/images/cat/deep/4.png"
        if not is_left_out:
            assert problem.hint == "start the format with the folder of the classes: /images/{label}/*"
    folder = image_table("/images/{label}/*")
    assert read([folder], Task.CLASSIFICATION).records.image_urls[1:3] == [
        "images/cat/1.png",
        "images/cat/2.png",
    ]
    assert len(read([folder], Task.CLASSIFICATION).records) == 4
    folder = image_table("/{label}.*")  # in the file's name, at any depth
    assert len(read([folder], Task.CLASSIFICATION).records) == 4


def test_the_label_of_json_lines_may_be_in_the_path_of_their_file(table: Callable[[str], Path]) -> None:
    folder = table("""
        paths: [{pattern: '*/*.jsonl'}]
        transformations:
        - extract_columns_from_partition_format: {partition_format: '/{label}/{name}.jsonl'}
        - read_json_lines
        """)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        (folder / name / "lines.jsonl").write_text(json.dumps({"image_url": f"{name}.jpg"}) + "\n")
    result = read([folder], Task.CLASSIFICATION)
    assert (result.problems, result.records.classes) == ([], ("cat", "dog"))


@pytest.mark.parametrize(
    "header", ["all_files_same_headers", "all_files_different_headers", "from_first_file"]
)
def test_delimited_text_is_read(header: str, table: Callable[[str], Path]) -> None:
    folder = table(f"""
        paths: [{{pattern: ./*.csv}}]
        transformations:
        - read_delimited: {{delimiter: ';', encoding: latin1, header: {header}, infer_column_types: true}}
        """)
    first = "image_url;label;more\n"
    (folder / "1.csv").write_text(first + 'a.jpg;"[""ä"", ""x""]";1\nb.jpg;[];2\n', encoding="latin-1")
    (folder / "2.csv").write_text(("" if header == "from_first_file" else first) + 'c.jpg;["x"];3\n')
    result = read([folder], Task.MULTILABEL)
    assert result.problems == []
    assert result.records.classes == ("x", "ä")
    assert result.records.starts.tolist() == [0, 2, 2, 3]
    assert result.records.location(0) == f"{folder}/1.csv:2"


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        (["filter: size > 3 and checked"], [5]),
        (["convert_column_types: [{columns: size, column_type: string}]", "filter: size == '4'"], [5]),
        (
            [
                "convert_column_types: [{columns: note, column_type: {boolean: {true_values: [y]}}}]",
                "filter: note == True",
            ],
            [2, 5],
        ),
        (["filter: note == 'n' or size < 2.5"], [2, 3, 4]),
    ],
)
def test_filters_see_the_types_of_delimited_text(
    steps: list[str], lines: list[int], table: Callable[[str], Path]
) -> None:
    all_steps = "".join(f"- {step}\n" for step in ["read_delimited", *steps])
    folder = table(f"paths: [{{file: a.csv}}]\ntransformations:\n{all_steps}")
    rows = ["a.jpg,x,1,True,y", "b.jpg,x,2,false,", "c.jpg,x,3,true,n", "d.jpg,x,4,true,y"]
    (folder / "a.csv").write_text("\n".join(["image_url,label,size,checked,note", *rows]))
    assert read([folder], Task.CLASSIFICATION).records.lines.tolist() == lines


def test_delimited_text_without_the_columns_is_an_error(table: Callable[[str], Path]) -> None:
    folder = table("paths: [{file: a.csv}]\ntransformations: [read_delimited]")
    (folder / "a.csv").write_text("filename,class\na.jpg,cat\n")
    (problem,) = read([folder], Task.CLASSIFICATION).problems
    assert str(problem) == (
        f"{folder}/a.csv: must have the column image_url and label, got the columns filename, class"
    )


def test_patterns_may_be_absolute_or_lead_out_of_the_folder(
    table: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    for name in ("b", "c"):
        (other / name).mkdir()
        (other / name / "data.jsonl").write_text(LINE % name)
    for pattern in (f"{other}/**/*.jsonl", f"../{other.name}/*/*.jsonl", f"file://{other}/?/data.jsonl"):
        result = read([table(f"paths: [{{pattern: '{pattern}'}}]")], Task.CLASSIFICATION)
        assert result.problems == []
        assert [result.records.source(n) for n in range(2)] == [f"{other}/{n}/{n}.jpg" for n in ("b", "c")]
    folder = table("paths: [{pattern: 'azureml://datastores/blob/paths/*/data.jsonl'}]")
    assert len(read([folder], Task.CLASSIFICATION, datastores={"blob": str(other)}).records) == 2


def test_error_for_a_folder_without_mltable_names_its_jsonl_files(table: Callable[[str], Path]) -> None:
    folder = table("")
    (folder / "MLTable").unlink()
    (problem,) = read([folder], Task.CLASSIFICATION).problems
    assert "the folder holds train.jsonl: give that file instead" in str(problem)
