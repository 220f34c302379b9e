"""XRAI (Kapishnikov et al. 2019, arXiv 1906.02825): integrated gradients, averaged over image regions.

The regions are segments at several scales; they overlap.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.segmentation import felzenszwalb
from skimage.transform import resize
from torch import Tensor

from serving.explain.integrated_gradients import along_paths
from serving.explain.request import ExplanationRequest
from serving.explain.streams import streams
from serving.explain.subject import Method, Subject
from trainer.annotations import BoolArray, FloatArray, Image

# The paper's values for the segments, and the image size that they are meant for.
_SCALES = (50, 100, 150, 250, 500, 1200)
_SIGMA = 0.8
_MIN_PIXELS = 150
_DILATION = 5
_SIDE = 224
_MIN_ADDED_PIXELS = 50  # of the input image, for a region to count; the saliency package's value


class Xrai(Method):
    def attribute(self, subject: Subject, target: int, request: ExplanationRequest) -> Tensor:
        """The mean relevance of each pixel's region, the same in all three channels.

        The integrated gradients are averaged over a black and a white baseline, so that neither dark nor
        bright pixels are missed.
        """
        size = subject.tensor.shape
        baselines = torch.stack([subject.black.expand(size), subject.white.expand(size)])
        with streams(baselines.device) as submit:
            segmentation = submit(regions, subject.pixels)
            relevance = along_paths(subject, baselines, target, request, submit).mean(dim=0).amax(dim=0)
            masks = segmentation.result()
        grid = masks.shape[1:]
        # The regions of a large image are on a coarser grid.
        coarse = F.adaptive_avg_pool2d(relevance[None], grid)[0].cpu().numpy()
        min_added = _MIN_ADDED_PIXELS * (grid[0] / size[1]) ** 2
        rank = by_own_relevance if request.xrai_fast else by_added_relevance
        ranked = torch.from_numpy(rank(coarse, masks, min_added)).to(relevance)
        return F.interpolate(ranked[None, None], size=size[1:], mode="nearest")[0].expand(size)


def by_own_relevance(relevance: FloatArray, masks: BoolArray, min_added: float) -> FloatArray:
    """Rank regions by the mean relevance of all their pixels; a pixel belongs to its highest-ranked region.

    Args:
        relevance: float32 [h, w].
        masks: bool [m, h, w].
        min_added: regions that add fewer pixels than this to higher-ranked ones are skipped.

    Returns:
        float32 [h, w], the mean relevance of what each pixel's region adds.
    """
    flat, values = masks.reshape(len(masks), -1), relevance.ravel()
    means = _sums(flat, values) / flat.sum(axis=1)
    result = np.zeros_like(values)
    free = np.ones(values.shape, dtype=bool)
    for index in np.argsort(-means, kind="stable"):
        added = flat[index] & free
        if added.sum() >= min_added:
            result[added] = values[added].mean()
            free &= ~added
    return _fill(result, values, free).reshape(relevance.shape)


def by_added_relevance(relevance: FloatArray, masks: BoolArray, min_added: float) -> FloatArray:
    """Rank regions by the mean relevance of what they add to those before (the paper's algorithm 1).

    Arguments and result are those of `by_own_relevance`.
    """
    flat, values = masks.reshape(len(masks), -1), relevance.ravel()
    sums, counts = _sums(flat, values), flat.sum(axis=1).astype(np.float64)
    result = np.zeros_like(values)
    free = np.ones(values.shape, dtype=bool)
    while True:
        gains = np.where(counts >= min_added, sums / np.maximum(counts, 1), -np.inf)
        index = int(gains.argmax())
        if gains[index] == -np.inf:
            return _fill(result, values, free).reshape(relevance.shape)
        added = np.flatnonzero(flat[index] & free)
        result[added] = gains[index]
        free[added] = False
        overlaps = flat[:, added]
        sums -= _sums(overlaps, values[added])
        counts -= overlaps.sum(axis=1)


def _sums(flat: BoolArray, values: FloatArray) -> npt.NDArray[np.float64]:
    """The sum of the values under each mask: [m, n] and [n] → [m]."""
    return np.array([values[mask].sum(dtype=np.float64) for mask in flat])


def _fill(result: FloatArray, values: FloatArray, free: BoolArray) -> FloatArray:
    """Treat the pixels outside all regions as one more region."""
    if free.any():
        result[free] = values[free].mean()
    return result


def regions(image: Image) -> BoolArray:
    """Felzenszwalb's segments at each scale, dilated by five pixels to include the edges around them.

    Args:
        image: uint8 [s, s, 3].

    Returns:
        bool [m, g, g], where g is the smaller of s and 224.
    """
    side = len(image)
    grid = min(side, _SIDE)
    low, high = float(image.min()), float(image.max())
    values = (image.astype(np.float64) - low) / max(high - low, 1.0) * 2 - 1
    if side != _SIDE:
        values = resize(values, (_SIDE, _SIDE), order=3, anti_aliasing=True)  # type: ignore[no-untyped-call]
    # Each grid cell takes the label of the pixel at its centre.
    centres = (np.arange(grid) + 0.5) * _SIDE / grid
    cells = np.ix_(centres.astype(np.int64), centres.astype(np.int64))
    masks = []
    for scale in _SCALES:
        labels = felzenszwalb(values, scale=scale, sigma=_SIGMA, min_size=_MIN_PIXELS)[cells]
        for label, place in enumerate(find_objects(labels + 1)):
            if place is not None:
                masks.append(_dilated(labels == label, place, _DILATION * grid / side))
    return np.stack(masks)


def _dilated(mask: BoolArray, place: tuple[slice, slice], distance: float) -> BoolArray:
    """The mask with everything within a distance in cells; `place` is its bounding box."""
    margin = math.ceil(distance)
    window = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in place)
    dilated = np.zeros_like(mask)
    dilated[window] = distance_transform_edt(~mask[window]) <= distance
    return dilated


METHOD = Xrai()
