"""Images that look alike, found by their perceptual hashes among hundreds of thousands.

The hash is `trainer.data.images.Look`'s; a library for it (imagehash) would bring SciPy and PyWavelets for
what NumPy does in three lines, and has no search, which is what matters here. Copies of another size, format
or brightness are found, and shots of one scene in a row; crops and mirrored copies are not.

Two hashes of 128 bits that differ in at most 7 agree in at least one of their eight parts of 16 bits. So for
each part the images are sorted by it, and compared with their neighbours of the same part: n log n instead
of n² comparisons. Of more than 64 hashes that agree in a part each is compared with the 64 that follow; that
loses pairs only where hundreds look alike anyway. Of images with equal hashes the first stands for all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.annotations import IntArray

LARGEST_DISTANCE = 7
"""Bits of 128. Of unrelated photographs one pair in many millions comes as near."""
_NEIGHBOURS = 64
_PARTS = 8
MOST_PAIRS = 200_000


class Alike(NamedTuple):
    """Pairs of images.

    Attributes:
        pairs: int64 [p, 2], the smaller index first, the nearest pairs first. Of images with equal hashes the
            first is paired with each of the others, and it alone with those that are less near.
        distances: int64 [p], bits in which their hashes differ.
        is_complete: False if the search ended early, with more than MOST_PAIRS.
    """

    pairs: IntArray
    distances: IntArray
    is_complete: bool = True


def alike(hashes: npt.NDArray[np.uint64]) -> Alike:
    """Pairs of hashes, uint64 [n, 2], at most LARGEST_DISTANCE bits apart; (0, 0) is like nothing."""
    known = np.flatnonzero(hashes.any(axis=1))
    kinds, first, kind = np.unique(hashes[known], axis=0, return_index=True, return_inverse=True)
    again = np.setdiff1d(np.arange(len(known)), first)
    found = [np.stack([known[first[kind.reshape(-1)[again]]], known[again]], axis=1)]
    parts = np.ascontiguousarray(kinds).view(np.uint16)  # [kinds, 8]
    total = 0
    for part in range(_PARTS):
        order = np.argsort(parts[:, part], kind="stable")
        values = parts[order, part]
        for offset in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            same = np.flatnonzero(values[offset:] == values[:-offset])
            if not len(same) or total > MOST_PAIRS:
                break
            one, other = order[same], order[same + offset]
            near = _distances(kinds[one], kinds[other]) <= LARGEST_DISTANCE
            found.append(np.stack([known[first[one[near]]], known[first[other[near]]]], axis=1))
            total += int(near.sum())
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    distances = _distances(hashes[pairs[:, 0]], hashes[pairs[:, 1]])
    nearest = np.argsort(distances, kind="stable")
    return Alike(pairs[nearest], distances[nearest], total <= MOST_PAIRS)


def groups(pairs: IntArray) -> list[list[int]]:
    """Images that pairs join, directly or over others; each group and the groups in rising order."""
    leader: dict[int, int] = {}

    def first_of(index: int) -> int:
        while leader.setdefault(index, index) != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for one, other in pairs.tolist():
        low, high = sorted((first_of(one), first_of(other)))
        leader[high] = low
    members: dict[int, list[int]] = {}
    for index in sorted(leader):
        members.setdefault(first_of(index), []).append(index)
    return list(members.values())


def _distances(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> IntArray:
    return np.asarray(np.bitwise_count(one ^ other).sum(axis=1, dtype=np.int64))
