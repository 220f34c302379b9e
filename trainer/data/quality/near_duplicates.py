"""Finds near-duplicates among hundreds of thousands of images by their perceptual hashes.

It finds copies of another size, format or brightness, and consecutive shots of one scene, but not crops and
mirrored copies. The hash is that of trainer.data.image_scan; the library imagehash computes it, too, but
would add PyWavelets, and has no search.

Two hashes of 128 bits that differ in at most 7 bits agree in at least one of their eight parts of 16 bits. So
the images are sorted by each part in turn and compared with their neighbours of the same part: n log n, not
n² comparisons. If more than 64 hashes agree in a part, each is compared with the next 64; that loses pairs
only among hundreds of similar images. Of images with equal hashes, only the first is compared with others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from trainer.annotations import IntArray

MAX_DISTANCE = 7
"""Differing bits, of 128. Of unrelated photographs, one pair in many millions is as close."""
_NEIGHBOURS = 64
_PARTS = 8
MAX_PAIRS = 200_000


class SimilarImages(NamedTuple):
    """Pairs of near-duplicates.

    Attributes:
        pairs: int64 [p, 2], the smaller index first; the most similar pairs come first. Of images with equal
            hashes, the first is paired with each of the others and, alone, with less similar ones.
        distances: int64 [p], number of bits in which the hashes differ.
        is_complete: False if the search ended early, after more than MAX_PAIRS.
    """

    pairs: IntArray
    distances: IntArray
    is_complete: bool = True


def find_similar(hashes: npt.NDArray[np.uint64]) -> SimilarImages:
    """Find the pairs of hashes, uint64 [n, 2], at most MAX_DISTANCE bits apart; (0, 0) matches nothing."""
    known = np.flatnonzero(hashes.any(axis=1))
    distinct, first, inverse = np.unique(hashes[known], axis=0, return_index=True, return_inverse=True)
    repeated = np.setdiff1d(np.arange(len(known)), first)
    found = [np.stack([known[first[inverse.reshape(-1)[repeated]]], known[repeated]], axis=1)]
    parts = np.ascontiguousarray(distinct).view(np.uint16)  # [n, 8]
    total = 0
    for part in range(_PARTS):
        order = np.argsort(parts[:, part], kind="stable")
        values = parts[order, part]
        for offset in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            same = np.flatnonzero(values[offset:] == values[:-offset])
            if not len(same) or total > MAX_PAIRS:
                break
            left, right = order[same], order[same + offset]
            near = _distances(distinct[left], distinct[right]) <= MAX_DISTANCE
            found.append(np.stack([known[first[left[near]]], known[first[right[near]]]], axis=1))
            total += int(near.sum())
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    distances = _distances(hashes[pairs[:, 0]], hashes[pairs[:, 1]])
    nearest = np.argsort(distances, kind="stable")
    return SimilarImages(pairs[nearest], distances[nearest], total <= MAX_PAIRS)


def groups(pairs: IntArray) -> list[list[int]]:
    """Group images that pairs connect, directly or through others; each group in ascending order."""
    if not len(pairs):
        return []
    images, nodes = np.unique(pairs, return_inverse=True)
    edges = coo_array((np.ones(len(pairs)), tuple(nodes.reshape(-1, 2).T)), shape=(len(images),) * 2)
    _, group = connected_components(edges, directed=False)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order])) + 1
    return [members.tolist() for members in np.split(images[order], starts)]


def _distances(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> IntArray:
    return np.asarray(np.bitwise_count(left ^ right).sum(axis=1, dtype=np.int64))
