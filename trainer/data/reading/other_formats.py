"""Recognises data that are not JSON lines of the data schema, so that an error can name their format."""

from __future__ import annotations

import codecs
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.data.image_formats import suffixes

_AS_SHOWN = ".jsonl, one image per line, as docs/data.md shows"
_CONVERT = f"convert it to JSON lines ({_AS_SHOWN})"
_HEAD_BYTES = 1 << 16
_MAX_ENTRIES = 2000
_MAX_DEPTH = 3
_MAX_SHOWN = 3
_MAX_EXAMINED = 10
_SUFFIXES = (
    *(".json", ".yaml", ".yml", ".xml", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".manifest"),
    *(".tfrecord", ".zip", ".tar", ".tgz"),
)
"""Suffixes of the files that show what a folder holds, the most specific first."""


class Format(NamedTuple):
    """A recognised format.

    Attributes:
        name: for messages.
        hint: what to do with the file.
    """

    name: str
    hint: str = _CONVERT


_COCO = Format("COCO JSON")
_VIA = Format("VGG Image Annotator JSON")
_VOC = Format("Pascal VOC XML")
_YOLO_LABELS = Format("YOLO labels")
_IMAGE = Format("an image", "give the JSON lines file that lists the images and their labels")
_CSV = Format(
    "CSV",
    f"{_CONVERT}; or list it in an MLTable with read_delimited, if it has the columns image_url and label",
)
_PARQUET = Format("Parquet", "list it in an MLTable with read_parquet, as docs/data.md shows")
_ARCHIVE = "unpack it, and give the JSON lines file or MLTable folder in it"

_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", _IMAGE),
    (b"\x89PNG", _IMAGE),
    (b"GIF8", _IMAGE),
    (b"II*\0", _IMAGE),
    (b"MM\0*", _IMAGE),
    (b"PK\x03\x04", Format("a ZIP archive", _ARCHIVE)),
    (b"BZh", Format("a file compressed with bzip2", _ARCHIVE)),
    (b"\xfd7zXZ", Format("a file compressed with xz", _ARCHIVE)),
    (b"7z\xbc\xaf", Format("a 7-Zip archive", _ARCHIVE)),
    (b"\x28\xb5\x2f\xfd", Format("a file compressed with zstd", _ARCHIVE)),
    (b"PAR1", _PARQUET),
    (b"ARROW1", Format("Arrow")),
    (b"\x89HDF", Format("HDF5")),
    (b"SQLite format 3", Format("an SQLite database")),
)
_GZIP = b"\x1f\x8b"
_TAR = slice(257, 262), b"ustar"

_JSON_KEYS: tuple[tuple[frozenset[str], Format], ...] = (
    (frozenset({"images", "annotations"}), _COCO),
    (frozenset({"images", "categories"}), _COCO),
    (frozenset({"annotations", "categories"}), _COCO),
    (frozenset({"image_id", "category_id"}), Format("COCO results")),
    (frozenset({"shapes", "imagePath"}), Format("LabelMe JSON")),
    (frozenset({"_via_img_metadata"}), _VIA),
    (frozenset({"_via_settings"}), _VIA),
    (frozenset({"regions", "filename"}), _VIA),
    (frozenset({"asset", "regions"}), Format("VoTT JSON")),
    (frozenset({"size", "objects"}), Format("Supervisely JSON")),
    (frozenset({"source-ref"}), Format("a SageMaker Ground Truth manifest")),
    (frozenset({"imageGcsUri"}), Format("Vertex AI JSON lines")),
    (frozenset({"data_row"}), Format("a Labelbox export")),
    (frozenset({"image", "annotations"}), Format("CreateML JSON")),
    (frozenset({"data", "annotations"}), Format("Label Studio JSON")),
    (frozenset({"file_name"}), Format("Hugging Face metadata")),
    (frozenset({"input_data"}), Format("a scoring request")),
)
"""Keys of a JSON object → its format, if it has them all and no image_url."""

_YAML_KEY = re.compile(r"^([A-Za-z_$]+):", re.MULTILINE)
_DOTA_LINE = re.compile(r"(?:-?\d+(?:\.\d+)?\s+){8}\D\S*(?:\s+[0-2])?\s*|(?:imagesource|gsd):.*")
"""The corners of an oriented box in pixels, its class and its difficulty; or one of two lines at the top."""
_KITTI_LINE = re.compile(r"[A-Za-z_]\w*(?:\s+-?\d+(?:\.\d+)?){14,15}")
_YOLO_LINE = re.compile(r"\d+(?:\s+-?\d*\.?\d+(?:e-?\d+)?){4,}\s*")


def recognise(path: Path, encoding: str = "utf-8") -> Format | None:
    """The format of a file that is not JSON lines of the data schema; None if it may be.

    Args:
        encoding: Python's name of the character encoding that the file should have.
    """
    with open(path, "rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head.startswith(_GZIP):
        return _of_content(head, path.suffix.lower(), encoding)
    try:
        content = zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES)
    except zlib.error:
        content = b""
    inner = _of_content(content, Path(path.stem).suffix.lower(), encoding)
    if inner is None:
        return Format("a file compressed with gzip", f"unpack it: gunzip {path.name}")
    return Format(f"{inner.name}, compressed with gzip", inner.hint)


def recognise_folder(folder: Path) -> str:
    """What a folder without a file MLTable holds and what to do, for a hint; "" if nothing is recognised."""
    files = list(itertools.islice(_walk(folder), _MAX_ENTRIES))
    if not files:
        return "the folder is empty"
    names = {os.path.relpath(path, folder): path for path in files}
    if tables := [os.path.dirname(name) for name in names if os.path.basename(name) == "MLTable"]:
        return f"give the folder {' or '.join(tables[:_MAX_SHOWN])} in it, which holds an MLTable"
    if misnamed := [name for name in names if name.lower() in ("mltable", "mltable.yaml", "mltable.yml")]:
        return f"the folder holds {misnamed[0]}, which must be named MLTable"
    if lines := [name for name in names if name.endswith(".jsonl")]:
        return f"the folder holds {', '.join(lines[:_MAX_SHOWN])}: give that file instead"
    for suffix in _SUFFIXES:
        of_suffix = [name for name in names if name.lower().removesuffix(".gz").endswith(suffix)]
        for name in of_suffix[:_MAX_EXAMINED]:
            if other := recognise(Path(names[name])):
                return f"the folder holds {other.name} ({name}): {other.hint}"
    images = [name for name in names if os.path.splitext(name)[1].lower() in suffixes()]
    if any(os.sep in name for name in images):
        return (
            f"the folder holds images in folders ({images[0]}): {_CONVERT}; or, if each class has its own "
            "folder, add a file MLTable that takes the class from the path"
        )
    return f"the folder holds images without labels: list them in JSON lines ({_AS_SHOWN})" if images else ""


def _walk(folder: Path) -> Iterator[str]:
    """The files in a folder and some levels below, without hidden ones: first those of the upper levels."""
    level = [str(folder)]
    for _ in range(_MAX_DEPTH + 1):
        below: list[str] = []
        for directory in level:
            try:
                entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            except OSError:
                continue
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            below += [entry.path for entry in visible if entry.is_dir(follow_symlinks=False)]
            yield from (entry.path for entry in visible if entry.is_file())
        level = below


def _of_content(head: bytes, suffix: str, encoding: str) -> Format | None:
    for magic, of_magic in _MAGIC:
        if head.startswith(magic):
            return of_magic
    if head[_TAR[0]] == _TAR[1]:
        return Format("a tar archive", _ARCHIVE)
    if suffix in (".tfrecord", ".tfrecords"):
        return Format("TFRecord")
    if encoding == "utf-8" and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None  # the reader says so
    text = head.decode(encoding, errors="replace").lstrip("\ufeff\r\n\t ")
    if text.startswith("<"):
        return _of_xml(text)
    if text.startswith(("{", "[")):
        return _of_json(text)
    return _of_text(text, suffix)


def _of_xml(text: str) -> Format:
    root = next((name.lower() for name in re.findall(r"<(!?[A-Za-z][\w:-]*)", text) if name != "!--"), "")
    if root in ("html", "!doctype"):
        return Format("an HTML page", "check that its address is that of the file itself")
    return {"annotation": _VOC, "annotations": Format("CVAT XML")}.get(root, Format("XML"))


def _of_json(text: str) -> Format | None:
    in_array = text.startswith("[")
    keys = _keys(text[1:].lstrip() if in_array else text)
    if "image_url" in keys:
        return None
    for needed, of_keys in _JSON_KEYS:
        if needed <= keys.keys():
            return of_keys
    if '"regions"' in text and '"file_attributes"' in text:
        return _VIA  # its keys are the names of images
    for key, inside in (("images", "file_name"), ("annotations", "image_id"), ("categories", "name")):
        if key in keys and f'"{inside}"' in text:
            return _COCO  # its first list is so long that the keys after it are not in the head
    return None


def _keys(text: str) -> dict[str, None]:
    """The first keys of the JSON object that a text starts with, as far as the text reaches."""
    decoder = json.JSONDecoder()
    keys: dict[str, None] = {}
    at = 1
    while text.startswith("{"):
        try:
            key, at = decoder.raw_decode(text, _after_space(text, at))
            if not isinstance(key, str):
                break
            keys[key] = None
            _, at = decoder.raw_decode(text, _after_space(text, at))
        except (ValueError, RecursionError):
            break
    return keys


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n:,":
        at += 1
    return at


def _of_text(text: str, suffix: str) -> Format | None:
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    if any(line.lstrip().startswith("{") for line in lines):
        return None  # JSON lines, of which the first is not one
    if suffix in (".csv", ".tsv"):
        return _CSV
    keys = set(_YAML_KEY.findall(text))
    if suffix in (".yaml", ".yml") or "names" in keys or "paths" in keys:
        if keys & {"names", "nc"}:
            return Format("a YOLO data.yaml", f"convert its images and labels to JSON lines ({_AS_SHOWN})")
        if "paths" in keys:
            return Format("an MLTable file", "name it MLTable and give its folder")
        if keys & {"task", "jobs", "training_data"}:
            return Format("a job file", "give it to trainer fit as --config")
        return Format("YAML") if suffix in (".yaml", ".yml") else None
    if lines and all(_YOLO_LINE.fullmatch(line) for line in lines[:-1] or lines):
        return _YOLO_LABELS
    if lines and all(_DOTA_LINE.fullmatch(line.strip()) for line in lines[:-1] or lines):
        return Format("DOTA labels")
    if lines and all(_KITTI_LINE.fullmatch(line.strip()) for line in lines[:-1] or lines):
        return Format("KITTI labels")
    endings = [os.path.splitext(line.strip())[1].lower().split() for line in lines[:-1] or lines]
    if lines and all(ending and ending[0] in suffixes() for ending in endings):
        return Format("a list of image files")
    for delimiter in ",;\t":
        counts = {line.count(delimiter) for line in lines[:-1] or lines}
        if len(counts) == 1 and counts != {0}:
            return _CSV
    return None
