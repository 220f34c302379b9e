"""One evaluation: the predictions for a set of images, gathered from all ranks, and the figures on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer import metrics
from trainer.annotations import Prediction, Target
from trainer.metrics.classification import MultilabelEvaluator
from trainer.models import Family
from trainer.models.tiling import View, merge
from trainer.settings import Settings
from trainer.training.loading import gather

CLASSWISE = "iou_classwise."


class Evaluation:
    """Scores a set of images batch by batch, in any order and share of the ranks."""

    def __init__(self, family: Family, targets: Sequence[Target], settings: Settings) -> None:
        self.family = family
        self.targets = targets
        self.evaluator = metrics.create(
            family.spec.task,
            family.spec.classes,
            iou_threshold=settings.validation_iou_threshold,
            metric_type=settings.validation_metric_type,
        )
        self.start()

    def start(self) -> None:
        """Forget what was scored before."""
        self._predictions: list[tuple[int, Prediction]] = []
        self._views: dict[int, list[tuple[View, Prediction]]] = {}
        self._losses: list[tuple[list[int], Tensor]] = []

    def add(self, network: nn.Module, batch: dict[str, Any]) -> None:
        """Score a batch of a ValidationDataset, which lies on the network's device, in eval mode."""
        parameters = self.family.spec.parameters
        if plain := batch["plain"]:
            tensors = [item["tensor"] for item in plain]
            self._note(plain, self.family.infer(network, tensors, parameters))
        if whole := batch["whole"]:
            outputs, losses = self.family.infer_with_losses(network, batch["batch"], parameters)
            self._note(whole, outputs)
            images = [item["index"] for item in whole]
            self._losses.append((images, torch.stack(list(losses.values())).sum()))

    def _note(self, items: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        family, parameters = self.family, self.family.spec.parameters
        for item, output in zip(items, outputs, strict=True):
            prediction = family.postprocess(output, item["geometry"], parameters)
            views = self._views.setdefault(item["index"], [])
            views.append((item["view"], prediction))
            if len(views) == item["views"]:
                self._predictions.append((item["index"], merge(self._views.pop(item["index"]), parameters)))

    def figures(self, ranks: int) -> dict[str, float]:
        """The metrics by name, the same on every rank; with the mean validation loss as log_loss.

        Of multi-label also iou_classwise, a figure a class: `iou_classwise.NAME`.

        Args:
            ranks: that score, each of which has to ask.
        """
        self.evaluator.reset()
        # In the data's order, whichever rank scored them: ties of score then break alike everywhere.
        # Each image counts once, though several ranks may have scored it.
        for index, prediction in sorted(dict(gather(self._predictions, ranks)).items()):
            self.evaluator.update(prediction, self.targets[index])
        figures: dict[str, float] = self.evaluator.compute()
        if isinstance(self.evaluator, MultilabelEvaluator):
            by_class = self.evaluator.iou_classwise()
            figures |= {f"{CLASSWISE}{name}": iou for name, iou in by_class.items()}
        if self._losses:
            losses = [(images, loss.item()) for images, loss in self._losses]
            figures["log_loss"] = _mean(gather(losses, ranks))
        self.start()
        return figures


def _mean(batches: Sequence[tuple[list[int], float]]) -> float:
    """The mean over images of the mean losses of batches of them, each image counted once."""
    counted: set[int] = set()
    total = 0.0
    for images, loss in batches:
        fresh = set(images) - counted
        total += len(fresh) * loss
        counted |= fresh
    return total / len(counted)
