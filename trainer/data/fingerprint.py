"""Whether two training runs have the same data, and what has changed between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.reading.records import Records
from trainer.data.training_data import Data


def fingerprint(data: Data) -> str:
    """Hash data to 32 hexadecimal digits, equal for the same records in the same order on every machine.

    The hash covers class names, image_urls as written in the files, labels, boxes, crowd flags, polygons, and
    which records are for validation. It does not cover pixels, nor which file a record comes from.
    """
    return _hash(part for records in (data.train, data.validation) for part in _parts(records))


def summarise(data: Data) -> dict[str, Any]:
    """What `changes` compares data with later: counts and hashes, as JSON holds them."""
    return {"training": _summarise(data.train), "validation": _summarise(data.validation)}


def changes(earlier: Mapping[str, Any], data: Data) -> str:
    """What has changed in data since they were summarised, in words; "" if nothing has.

    Unlike the fingerprint, it covers the content of images, if they were decoded. Neither covers the names of
    the data files.

    Args:
        earlier: from `summarise`; what it lacks does not count as changed.
    """
    noun = "objects" if data.train.task.has_boxes else "labels"
    parts = []
    for name, now in summarise(data).items():
        before = earlier.get(name, now)
        if before["images"] != now["images"]:
            changed = [f"{now['images']:,} images instead of {before['images']:,}"]
        else:
            changed = ["other images or another order of them"] * (before["image_urls"] != now["image_urls"])
        if before["labels"] != now["labels"]:
            changed.append(f"{now['labels']:,} {noun} instead of {before['labels']:,}")
        elif before["content"] != now["content"] and not changed:
            changed.append(f"other {noun}")
        if before.get("pixels") and now["pixels"] not in ("", before["pixels"]) and not changed:
            changed.append("image files that show something else")
        if changed:
            parts.append(f"{name} data: {', '.join(changed)}")
    return "; ".join(parts)


def _summarise(records: Records) -> dict[str, Any]:
    classes, *rest = _parts(records)
    urls, content = rest[:_URL_PARTS], rest[_URL_PARTS:]
    counts = {"images": len(records), "labels": len(records.labels)}
    scans = records.scans
    pixels = "" if scans is None else _hash([_bytes_of(scans.sizes), _bytes_of(scans.hashes)])
    return {**counts, "image_urls": _hash(urls), "content": _hash([classes, *content]), "pixels": pixels}


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # The length, so that moving bytes between parts changes the hash.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


_URL_PARTS = 4
"""How many parts after the classes, the first, hold the image_urls."""


def _parts(records: Records) -> Iterator[bytes]:
    # The order in which folders were read, and folders without a record, are not part of the data.
    written = [folder.written for folder in records.folders]
    used = sorted({written[index] for index in np.unique(records.folder_index)})
    places = {folder: place for place, folder in enumerate(used)}
    place_of = np.array([places.get(folder, -1) for folder in written], dtype=np.int32)
    yield from ("\n".join(names).encode() for names in (records.classes, used))
    yield records.names
    arrays: list[npt.NDArray[Any] | None] = [place_of[records.folder_index], records.name_starts]
    arrays += [records.starts, records.labels, records.boxes, records.crowd]
    if records.polygons is not None:
        polygons = records.polygons
        arrays += [polygons.object_starts, polygons.segment_starts, polygons.points]
    for array in arrays:
        if array is not None:
            yield _bytes_of(array)


def _bytes_of(array: npt.NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
