"""Confidence intervals of metrics: the bootstrap over images, with percentile intervals.

    draws = draw([metric_of_a, metric_of_b], images=len(records), resamples=1000, seed=0)
    percentile_interval(draws[0])
    percentile_interval(draws[1] - draws[0])   # paired: both metrics of the same resamples

A resample draws as many images as there are, with replacement. It is written as weights, how often each image
was drawn, so that a metric is computed from what is known of each image, without matching objects again.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.metrics.intervals import Difference, Interval

DoubleArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 1000
"""Default number of resamples, the least that Efron and Tibshirani advise for percentiles (section 13.3)."""
FEW_IMAGES = 30
"""Below it an interval comes with a caution: 95 % intervals of so few images cover the true value less often
(tests/metrics/test_bootstrap.py measures it)."""
_CHUNK_WEIGHTS = 500_000

Track = Callable[[Iterable[DoubleArray], str, int], Iterator[DoubleArray]]


class WeightedMetric(Protocol):
    """A metric of an evaluation whose images may count several times or not at all."""

    def __call__(self, weights: DoubleArray, /) -> DoubleArray:
        """Compute the metric for each row of weights [R, images], whole numbers: [R], NaN if undefined."""


def draw(
    metrics: Sequence[WeightedMetric],
    images: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    track: Track | None = None,
) -> DoubleArray:
    """Compute metrics on the same resamples of their images: [metrics, resamples], NaN if undefined.

    Args:
        metrics: of the same images in the same order.
        images: number of images, at least 1.
        resamples: number of resamples, at least 1.
        seed: of the resamples; the same seed, number of images and resamples draw the same images.
        track: shows the progress: gets the chunks of weights, a description and the number of chunks.
    """
    rows = max(1, _CHUNK_WEIGHTS // images)
    chunks: Iterable[DoubleArray] = _weights(images, resamples, seed, rows)
    if track is not None:
        chunks = track(chunks, "resampling images", -(-resamples // rows))
    return np.concatenate([[metric(weights) for metric in metrics] for weights in chunks], axis=1)


def _weights(images: int, resamples: int, seed: int, rows: int) -> Iterator[DoubleArray]:
    """Yield how often each image was drawn, float64 [at most `rows`, images], `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(images, size=(count, images))
        drawn += images * np.arange(count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=count * images)
        yield counts.reshape(count, images).astype(np.float64)


def percentile_interval(draws: DoubleArray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of a metric's draws, ignoring undefined ones; NaN if all are undefined."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def interval_of(metric: str, value: float, draws: DoubleArray, images: int, seed: int) -> Interval:
    """The interval of one metric from its draws."""
    low, high = percentile_interval(draws)
    return Interval(
        metric=metric, value=value, low=low, high=high, confidence=CONFIDENCE, images=images,
        resamples=len(draws), undefined=int(np.isnan(draws).sum()), seed=seed,
        caution=caution(images, low, high),
    )  # fmt: skip


def difference_of(
    metric: str,
    first: tuple[str, float, DoubleArray],
    second: tuple[str, float, DoubleArray],
    *,
    images: int,
    seed: int,
) -> Difference:
    """The difference second − first of two models from their draws on the same resamples.

    Args:
        first: name, value and draws of one model.
        second: those of the other.
    """
    draws = second[2] - first[2]
    low, high = percentile_interval(draws)
    return Difference(
        metric=metric, first=first[0], second=second[0], value=second[1] - first[1], low=low, high=high,
        confidence=CONFIDENCE, images=images, resamples=len(draws), undefined=int(np.isnan(draws).sum()),
        seed=seed, caution=caution(images),
    )  # fmt: skip


def caution(images: int, low: float = 0.0, high: float = 1.0) -> str:
    """What to keep in mind about an interval; "" for nothing.

    Args:
        low: lower end of a metric's own interval; a difference has no ends that are worth a caution.
        high: its upper end.
    """
    cautions = []
    if images < FEW_IMAGES:
        cautions.append(f"with fewer than {FEW_IMAGES} images the true interval is wider")
    if low == high:
        # Hanley and Lippman-Hand, If nothing goes wrong, is everything all right? (JAMA 1983)
        cautions.append(
            "no resample differs, so the interval says nothing: where none of n images shows an error, up to "
            f"3 / n of new images ({min(1.0, 3 / images):.1%}) may still have one"
        )
    return "; ".join(cautions)
