"""A hash by which two training runs can be checked for the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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
    digest = hashlib.blake2b(digest_size=16)
    for records in (data.train, data.validation):
        for part in _parts(records):
            # The length, so that moving bytes between parts changes the hash.
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


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
            yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
