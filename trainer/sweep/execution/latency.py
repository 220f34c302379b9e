"""The second objective: how long the packaged model takes for one image on this machine."""

from __future__ import annotations

import statistics
import time

import numpy as np

from serving.locate import find_artifacts
from serving.scorer import Scorer
from trainer.runs import Run

_WARM_UP, _TIMED = 3, 15
_SIZE = (480, 640)


def median_latency(run: Run, device: str | None = None) -> float:
    """Median milliseconds from a decoded image of 640 × 480 pixels to its predictions, one image at a time.

    Args:
        device: name of torch's device; None: the first GPU, or the CPU without one.
    """
    scorer = Scorer.load(find_artifacts(run.directory), device)
    generator = np.random.default_rng(0)
    milliseconds = []
    for turn in range(_WARM_UP + _TIMED):
        image = generator.integers(0, 255, (*_SIZE, 3), dtype=np.uint8)
        started = time.perf_counter()
        scorer.score_images([image], scorer.parameters({}))
        if turn >= _WARM_UP:
            milliseconds.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(milliseconds), 3)
