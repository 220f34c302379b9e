"""One evaluation: the predictions for a set of images, gathered from all ranks, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer import metrics as evaluators
from trainer.annotations import Prediction, Target
from trainer.metric_names import CLASSWISE
from trainer.metrics.classification import MultilabelEvaluator
from trainer.models import Family
from trainer.models.family import in_float32
from trainer.models.tiling import View, merge
from trainer.settings import Settings
from trainer.training.loading import gather


class Evaluation:
    """Scores a set of images batch by batch, in any order and split over the ranks in any way.

    Attributes:
        by_class: the last evaluation's metrics of each class: class name → metric → value.
    """

    def __init__(self, family: Family, targets: Sequence[Target], settings: Settings) -> None:
        self.family = family
        self.targets = targets
        self.evaluator = evaluators.create(
            family.spec.task,
            family.spec.classes,
            iou_threshold=settings.validation_iou_threshold,
            metric_type=settings.validation_metric_type,
        )
        self.by_class: dict[str, dict[str, float]] = {}
        self.start()

    def start(self) -> None:
        """Drop the predictions of an earlier evaluation."""
        self._predictions: list[tuple[int, Prediction]] = []
        self._views: dict[int, list[tuple[View, Prediction]]] = {}
        self._losses: list[tuple[list[int], Tensor]] = []

    def add(self, network: nn.Module, batch: dict[str, Any]) -> None:
        """Score a ValidationDataset's batch on the network's device.

        Args:
            network: in eval mode.
        """
        parameters = self.family.spec.parameters
        device = next(network.parameters()).device
        if plain := batch["plain"]:
            tensors = [item["tensor"] for item in plain]
            with in_float32(device):
                outputs = self.family.infer(network, tensors, parameters)
            self._record(plain, outputs)
        if whole := batch["whole"]:
            with in_float32(device):
                outputs, losses = self.family.infer_with_losses(network, batch["batch"], parameters)
            self._record(whole, outputs)
            images = [item["index"] for item in whole]
            self._losses.append((images, torch.stack(list(losses.values())).sum()))

    def _record(self, items: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        family, parameters = self.family, self.family.spec.parameters
        for item, output in zip(items, outputs, strict=True):
            prediction = family.postprocess(output, item["geometry"], parameters)
            views = self._views.setdefault(item["index"], [])
            views.append((item["view"], prediction))
            if len(views) == item["views"]:
                self._predictions.append((item["index"], merge(self._views.pop(item["index"]), parameters)))

    def compute(self, ranks: int) -> dict[str, float]:
        """The metrics by name, the same on every rank; the mean validation loss is `log_loss`.

        Multilabel also has a metric for each class: `iou_classwise.NAME`.

        Args:
            ranks: number of ranks. Every rank must call this method.
        """
        self.evaluator.reset()
        # In the data's order, whichever rank scored an image: equal scores are then ranked alike everywhere.
        # Each image counts once, even if several ranks scored it.
        for index, prediction in sorted(dict(gather(self._predictions, ranks)).items()):
            self.evaluator.update(prediction, self.targets[index])
        metrics: dict[str, float] = self.evaluator.compute()
        self.by_class = self.evaluator.by_class()
        if isinstance(self.evaluator, MultilabelEvaluator):
            by_class = self.evaluator.iou_classwise()
            metrics |= {f"{CLASSWISE}{name}": iou for name, iou in by_class.items()}
        if self._losses:
            losses = [(images, loss.item()) for images, loss in self._losses]
            metrics["log_loss"] = _mean(gather(losses, ranks))
        self.start()
        return metrics


def _mean(batches: Sequence[tuple[list[int], float]]) -> float:
    """The mean loss over images, each counted once, from the mean losses of batches of them."""
    counted: set[int] = set()
    total = 0.0
    for images, loss in batches:
        uncounted = set(images) - counted
        total += len(uncounted) * loss
        counted |= uncounted
    return total / len(counted)
