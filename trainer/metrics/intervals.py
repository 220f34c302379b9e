"""Confidence intervals of metrics, and of their differences between two models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from trainer.metric_names import is_minimised
from trainer.runs import MetricValue


class Interval(BaseModel):
    """The confidence interval of a metric: percentiles of a bootstrap over images.

    Attributes:
        metric: the metric's name.
        value: its value on all images.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: fraction of such intervals that cover the true value, such as 0.95.
        images: number of images that were resampled.
        resamples: number of resamples.
        undefined: number of resamples on which the metric was undefined, which are left out.
        seed: of the resamples.
        method: how the interval is made.
        caution: why the interval may mislead; empty if nothing speaks against it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    value: MetricValue
    low: MetricValue
    high: MetricValue
    confidence: float
    images: int
    resamples: int
    undefined: int = 0
    seed: int
    method: str = "percentile bootstrap over images"
    caution: str = ""


class Difference(Interval):
    """The paired difference of a metric between two models on the same images, with its interval.

    `value`, `low` and `high` are of second − first.

    Attributes:
        first: name of one model.
        second: name of the other model.
    """

    first: str
    second: str

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0, so that the models can be told apart."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """What the difference says, in words."""
        images = f"these {self.images:,} images"
        if not self.is_clear:
            return f"{self.first} and {self.second} cannot be told apart on {images}"
        is_second_better = (self.value > 0) is not is_minimised(self.metric)
        better, worse = (self.second, self.first) if is_second_better else (self.first, self.second)
        return f"{better} is better than {worse} on {images}"
