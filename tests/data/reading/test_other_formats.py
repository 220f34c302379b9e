"""Data in other formats than JSON lines: the error names the format and the next step."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from trainer.data.reading.jsonl import read
from trainer.tasks import Task

CONVERT = "convert it to JSON lines (.jsonl, one image per line, as docs/data.md shows)"
COCO = {
    "info": {"year": 2024},
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
    "categories": [{"id": 1, "name": "can"}],
}
LONG_COCO = {**COCO, "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(9000)], "annotations": []}
VOC = '<?xml version="1.0"?>\n<!-- by a tool -->\n<annotation verified="yes"><folder>x</folder></annotation>'
YOLO_YAML = "train: ../train/images\nval: ../val/images\nnc: 1\nnames: [can]\n"
YOLO_LABELS = "0 0.5 0.5 0.25 1\n1 0.5 0.125 0.25 1e-3\n"
VIA = "VGG Image Annotator JSON"
VIA_IMAGE: dict[str, object] = {"regions": [{"shape_attributes": {"name": "rect"}}], "file_attributes": {}}
DOTA_LINE = "2753.0 2408.0 2861.0 2385.0 2888.0 2468.0 2805.0 2502.0 large-vehicle 0\n"
CSV = "filename,width,height,class\na.jpg,8,8,can\n"
LINE = json.dumps({"image_url": "a.jpg", "label": "can"})
JPEG = b"\xff\xd8\xff\xe0"


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("train.jsonl", LINE)
    return stream.getvalue()


FILES: list[tuple[str, str | bytes, str]] = [
    ("_annotations.coco.json", json.dumps(COCO), "COCO JSON"),
    ("coco.json", json.dumps(COCO, indent=2), "COCO JSON"),
    ("coco.jsonl", json.dumps(COCO), "COCO JSON"),
    ("long.json", json.dumps(LONG_COCO), "COCO JSON"),
    ("lvis.json", json.dumps({"categories": [{"name": "a" * 70_000}], "images": []}), "COCO JSON"),
    ("coco.json.gz", gzip.compress(json.dumps(COCO).encode()), "COCO JSON, compressed with gzip"),
    ("data.yaml", YOLO_YAML, "a YOLO data.yaml"),
    ("1.txt", YOLO_LABELS, "YOLO labels"),
    ("polygons.txt", "0 0.1 0.1 0.5 0.1 0.3 0.4\n", "YOLO labels"),
    ("train.txt", "./images/a.jpg\n./images/b.png\n", "a list of image files"),
    ("1.xml", VOC, "Pascal VOC XML"),
    ("1.xml.gz", gzip.compress(VOC.encode()), "Pascal VOC XML, compressed with gzip"),
    ("cvat.xml", "<annotations><version>1.1</version>", "CVAT XML"),
    ("labels.csv", CSV, "CSV"),
    ("labels", CSV, "CSV"),
    ("labels.csv.gz", gzip.compress(CSV.encode()), "CSV, compressed with gzip"),
    ("labelme.json", json.dumps({"shapes": [], "imagePath": "a.jpg"}), "LabelMe JSON"),
    ("studio.json", json.dumps([{"id": 1, "annotations": [], "data": {}}]), "Label Studio JSON"),
    ("via.json", json.dumps({"a.jpg9": {"filename": "a.jpg", "size": 9, **VIA_IMAGE}}, indent=1), VIA),
    ("via_long.json", json.dumps({"a.jpg9": {"filename": "a.jpg", **VIA_IMAGE, "note": "x" * 70_000}}), VIA),
    ("P0001.txt", "imagesource:GoogleEarth\ngsd:0.15\n" + 2 * DOTA_LINE, "DOTA labels"),
    ("P0002.txt", DOTA_LINE, "DOTA labels"),
    (
        "000001.txt",
        "Car 0.00 0 -1.58 587.0 173.3 614.1 200.1 1.65 1.67 3.64 -0.65 1.71 46.7 -1.59\n",
        "KITTI labels",
    ),
    ("val.txt", "n01/a.JPEG 0\nn02/b.JPEG 1\n", "a list of image files"),
    ("vott.json", json.dumps({"asset": {"name": "a.jpg"}, "regions": []}), "VoTT JSON"),
    ("createml.json", json.dumps([{"image": "a.jpg", "annotations": []}]), "CreateML JSON"),
    (
        "out.manifest",
        json.dumps({"source-ref": "s3://a/b.jpg", "class": 1}),
        "a SageMaker Ground Truth manifest",
    ),
    ("a.jpg", JPEG, "an image"),
    ("data.zip", zipped(), "a ZIP archive"),
    ("train.parquet", b"PAR1", "Parquet"),
    ("train.jsonl.gz", gzip.compress(LINE.encode()), "a file compressed with gzip"),
    ("page.jsonl", "<!DOCTYPE html><html>", "an HTML page"),
    ("job.yml", "type: automl\ntask: image_classification\n", "a job file"),
]


@pytest.mark.parametrize(("name", "content", "expected"), FILES, ids=[file[0] for file in FILES])
def test_the_error_for_a_file_names_its_format(
    name: str, content: str | bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = read([path], Task.DETECTION)
    (problem,) = result.problems
    assert str(problem).startswith(f"{path}: must be JSON lines in the data schema, got {expected}; ")
    assert not result.is_complete


@pytest.mark.parametrize("name", ["coco.json", "1.txt", "1.xml", "labels.csv", "coco.json.gz"])
def test_the_next_step_is_a_conversion(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = next(content for file, content, _ in FILES if file == name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = read([path], Task.CLASSIFICATION).problems
    assert problem.hint.startswith(CONVERT)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"train/_annotations.coco.json": json.dumps(COCO), "train/a.jpg": JPEG},
            "COCO JSON (train/_annotations",
        ),
        (
            {"annotations/a.json.gz": gzip.compress(json.dumps(COCO).encode())},
            "COCO JSON, compressed with gzip",
        ),
        (
            {"data.yaml": YOLO_YAML, "README.txt": "hello", "train/labels/1.txt": YOLO_LABELS},
            "a YOLO data.yaml",
        ),
        (
            {"labels/1.txt": YOLO_LABELS, "images/1.jpg": JPEG, "classes.txt": "can\n"},
            "YOLO labels (labels/1.txt)",
        ),
        ({"Annotations/1.xml": VOC, "JPEGImages/1.jpg": JPEG}, "Pascal VOC XML (Annotations/1.xml)"),
        ({"labels.csv": CSV, "images/1.jpg": JPEG}, "CSV (labels.csv)"),
        (
            {"cat/1.jpg": JPEG, "dog/2.jpg": JPEG},
            f"images in folders (cat/1.jpg): {CONVERT}; or, if each class",
        ),
        ({"1.jpg": JPEG}, "images without labels"),
        ({"sub/train.jsonl": LINE}, "sub/train.jsonl: give that file instead"),
        ({"mltable": "paths: []"}, "mltable, which must be named MLTable"),
    ],
)
def test_the_error_for_a_folder_names_what_it_holds(
    files: dict[str, str | bytes], expected: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = read([tmp_path], Task.DETECTION).problems
    assert f"; the folder holds {expected}" in str(problem)


def test_the_error_for_a_folder_of_tables_names_them(tmp_path: Path) -> None:
    for name in ("training-mltable-folder", "validation-mltable-folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "MLTable").write_text("paths: [{file: train.jsonl}]")
        (tmp_path / name / "train.jsonl").write_text(LINE)
    (problem,) = read([tmp_path], Task.DETECTION).problems
    expected = (
        "give the folder training-mltable-folder or validation-mltable-folder in it, which holds an MLTable"
    )
    assert problem.hint == expected


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (problem,) = read([tmp_path], Task.DETECTION).problems
    assert (
        str(problem)
        == f"{tmp_path}/MLTable: must be in a folder given as data, got no such file; the folder is empty"
    )


@pytest.mark.parametrize(
    "text",
    [
        LINE,
        "",
        "broken\n" + LINE,
        "image_url, label\n" + LINE,
        json.dumps({"annotations": [], "images": [], "image_url": "a.jpg", "label": "can"}),
        json.dumps({"label": "x" * 200_000, "image_url": "a.jpg"}),
        "\ufeff" + LINE,
    ],
)
def test_json_lines_are_taken_for_nothing_else(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(text + "\n", encoding="utf-8")
    assert not any(
        "data schema, got" in str(problem) for problem in read([path], Task.CLASSIFICATION).problems
    )


def test_a_format_inside_an_mltable_is_named(tmp_path: Path) -> None:
    (tmp_path / "MLTable").write_text("paths: [{file: coco.json}]")
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    (problem,) = read([tmp_path], Task.DETECTION).problems
    assert str(problem).startswith(
        f"{tmp_path}/coco.json: must be JSON lines in the data schema, got COCO JSON"
    )
