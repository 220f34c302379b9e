"""XRAI (Kapishnikov et al. 2019, arXiv 1906.02825): integrated gradients, averaged over image regions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from serving.explain.integrated_gradients import along_paths
from serving.explain.request import ExplanationRequest
from serving.explain.segments import regions
from serving.explain.streams import streams
from serving.explain.subject import Method, Subject
from trainer.annotations import BoolArray, FloatArray

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


METHOD = Xrai()
