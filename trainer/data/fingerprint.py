"""A hash that tells whether two trainings saw the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.reading.records import Records
from trainer.data.training_data import Data


def fingerprint(data: Data) -> str:
    """32 hexadecimal digits: equal for the same records in the same order, on every machine.

    It covers the class names, the image_urls as the files have them, the labels, boxes, crowd flags and
    polygons, and which of the records are for validation; not the images' pixels, nor in which of several
    files a record stands.
    """
    digest = hashlib.blake2b(digest_size=16)
    for records in (data.train, data.validation):
        for part in _parts(records):
            digest.update(len(part).to_bytes(8, "little"))  # where a part ends counts as well
            digest.update(part)
    return digest.hexdigest()


def _parts(records: Records) -> Iterator[bytes]:
    # The order in which folders were met, and those that no record is in, are no part of the data.
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
            yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
