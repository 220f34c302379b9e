"""Calibrated scores: a network's scores turned into the frequency with which they are right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

LEAST_SCORE, MOST_SCORE = 1e-12, 1 - 2.0**-24
"""Bounds of a score before its logit is taken; the upper one is the largest float32 under 1."""
_MARGIN = 0.1
"""Logits by which a threshold is lowered; more than float32 loses in scores next to 1."""


class ScoreCalibration(BaseModel):
    """Divides the logits of a network's scores by a temperature and adds a bias.

    The order of scores stays, and with it every metric that depends only on their order. Sources: Guo et al.,
    On Calibration of Modern Neural Networks (ICML 2017) for a classifier's temperature; for boxes, with a
    bias, the logistic calibration of Küppers et al., Multivariate Confidence Calibration for Object Detection
    (CVPR Workshops 2020), by the score alone.

    Attributes:
        temperature: above 1 if the network is overconfident.
        bias: added to the divided logit; 0 for classifiers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(gt=0)
    bias: float = 0.0

    def apply(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Calibrate scores in [0, 1] of single decisions."""
        import numpy as np  # which the commands' help, that reads specs' definition, does not need

        clipped = scores.astype(np.float64).clip(LEAST_SCORE, MOST_SCORE)
        logits = (np.log(clipped) - np.log1p(-clipped)) / self.temperature + self.bias
        return np.asarray(1 / (1 + np.exp(-logits)))

    def apply_to_tensor(self, scores: Tensor) -> Tensor:
        """Do what `apply` does in torch, for an exported graph."""
        clipped = scores.clamp(LEAST_SCORE, MOST_SCORE)
        return ((clipped.log() - (1 - clipped).log()) / self.temperature + self.bias).sigmoid()

    def threshold_after(self, threshold: float) -> float:
        """The calibrated score of a threshold in [0, 1]; 0 and 1 stay, which every or no box reaches."""
        if threshold in (0, 1):
            return threshold
        return _probability(_logit(threshold) / self.temperature + self.bias)

    def threshold_before(self, threshold: float) -> float:
        """A network's score that is just under a calibrated threshold, both in [0, 1].

        It is a little lower, so that rounding loses no box; the caller compares calibrated scores afterwards.
        """
        if threshold <= 0:
            return 0.0
        return _probability((_logit(threshold) - self.bias) * self.temperature - _MARGIN)

    def then(self, later: ScoreCalibration) -> ScoreCalibration:
        """The calibration that applies this one and then a later one."""
        return ScoreCalibration(
            temperature=self.temperature * later.temperature, bias=self.bias / later.temperature + later.bias
        )


def _logit(score: float) -> float:
    clipped = min(max(score, LEAST_SCORE), MOST_SCORE)
    return math.log(clipped) - math.log1p(-clipped)


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, logit)))
