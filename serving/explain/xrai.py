"""XRAI (Kapishnikov et al. 2019, arXiv 1906.02825): integrated gradients, told by regions of the image."""

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

_FEWEST_PIXELS = 50  # that a region must add, of the image; the saliency package's value


class Xrai(Method):
    def attribute(self, subject: Subject, target: int, asked: ExplanationRequest) -> Tensor:
        """Each region's mean relevance, the same in all three channels.

        The integrated gradients are the mean of those from a black and from a white image, so that neither
        dark nor bright pixels go without.
        """
        size = subject.tensor.shape
        baselines = torch.stack([subject.black.expand(size), subject.white.expand(size)])
        with streams(baselines.device) as submit:
            segmentation = submit(regions, subject.pixels)
            relevance = along_paths(subject, baselines, target, asked, submit).mean(dim=0).amax(dim=0)
            masks = segmentation.result()
        grid = masks.shape[1:]
        # Of larger images the regions are found on a smaller one.
        small = F.adaptive_avg_pool2d(relevance[None], grid)[0].cpu().numpy()
        fewest = _FEWEST_PIXELS * (grid[0] / size[1]) ** 2
        rank = by_own_relevance if asked.xrai_fast else by_added_relevance
        ranked = torch.from_numpy(rank(small, masks, fewest)).to(relevance)
        return F.interpolate(ranked[None, None], size=size[1:], mode="nearest")[0].expand(size)


def by_own_relevance(relevance: FloatArray, masks: BoolArray, fewest: float) -> FloatArray:
    """Regions by the mean relevance of all their pixels; each pixel has that of the first region it is in.

    Args:
        relevance: float32 [h, w].
        masks: bool [m, h, w].
        fewest: regions that add fewer pixels than this to those before them are passed over.

    Returns:
        float32 [h, w].
    """
    flat, values = masks.reshape(len(masks), -1), relevance.ravel()
    means = _sums(flat, values) / flat.sum(axis=1)
    result = np.zeros_like(values)
    free = np.ones(values.shape, dtype=bool)
    for index in np.argsort(-means, kind="stable"):
        added = flat[index] & free
        if added.sum() >= fewest:
            result[added] = values[added].mean()
            free &= ~added
    return _rest(result, values, free).reshape(relevance.shape)


def by_added_relevance(relevance: FloatArray, masks: BoolArray, fewest: float) -> FloatArray:
    """The paper's algorithm 1: at each step the region that adds the highest mean relevance.

    Arguments and result as those of `by_own_relevance`; each pixel has the mean that its region added.
    """
    flat, values = masks.reshape(len(masks), -1), relevance.ravel()
    sums, counts = _sums(flat, values), flat.sum(axis=1).astype(np.float64)
    result = np.zeros_like(values)
    free = np.ones(values.shape, dtype=bool)
    while True:
        gains = np.where(counts >= fewest, sums / np.maximum(counts, 1), -np.inf)
        index = int(gains.argmax())
        if gains[index] == -np.inf:
            return _rest(result, values, free).reshape(relevance.shape)
        added = np.flatnonzero(flat[index] & free)
        result[added] = gains[index]
        free[added] = False
        part = flat[:, added]
        sums -= _sums(part, values[added])
        counts -= part.sum(axis=1)


def _sums(flat: BoolArray, values: FloatArray) -> npt.NDArray[np.float64]:
    """Of each mask the sum of the values under it: [m, n] and [n] → [m]."""
    return np.array([values[mask].sum(dtype=np.float64) for mask in flat])


def _rest(result: FloatArray, values: FloatArray, free: BoolArray) -> FloatArray:
    """Pixels of no region are a region together."""
    if free.any():
        result[free] = values[free].mean()
    return result


METHOD = Xrai()
