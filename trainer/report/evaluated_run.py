"""A run's evaluation together with the data and predictions it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.annotations import Classification, Detections, FloatArray
from trainer.data.reading.records import Records
from trainer.metrics.results import Analysis


class Answers(Protocol):
    """A model's answers, one for each image in the order of the data."""

    def classification(self, index: int, classes: Sequence[str]) -> Classification:
        """Return a classifier's answer as probabilities of these classes."""

    def detections(
        self, index: int, classes: Sequence[str], size: tuple[int, int]
    ) -> tuple[Detections, list[tuple[FloatArray, ...]]]:
        """Return a detector's answer without masks, and each object's polygons [points, 2].

        Args:
            index: index of the image.
            classes: class names that the answer's labels index.
            size: (height, width) of the image in pixels.
        """


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation with the labelled images and the answers, which are in the same order.

    Attributes:
        analysis: the evaluation.
        records: images and labels.
        answers: the model's answers.
        sizes: (height, width) of each image in pixels; empty for classification.
    """

    analysis: Analysis
    records: Records
    answers: Answers
    sizes: Sequence[tuple[int, int]] = ()
