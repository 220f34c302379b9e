"""One evaluation: the predictions for a set of images, gathered from all ranks, and their metrics."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trainer import metrics as evaluators
from trainer.annotations import Detections, Prediction, Target
from trainer.errors import NoMemoryError, TrainingError
from trainer.metric_names import CLASSWISE
from trainer.metrics.classification import MultilabelEvaluator
from trainer.metrics.detection import DetectionEvaluator
from trainer.metrics.masks import Rle, from_crop
from trainer.models import Family
from trainer.models.card import ModelEntry
from trainer.models.catalog import find
from trainer.models.defaults import takes
from trainer.models.family import in_float32
from trainer.models.tiling import View, merge
from trainer.models.transfers import on_cpu
from trainer.settings import Settings
from trainer.training.loading import from_rank_zero, gather_on_rank_zero
from trainer.training.memory import free_memory, ran_out_of_memory

log = logging.getLogger("trainer")


def evaluation_size(entry: ModelEntry) -> str:
    """The setting with the size, in pixels, of the images that an evaluation of a model scores."""
    of_classifiers = "validation_crop_size"
    return of_classifiers if takes(entry, of_classifiers) else entry.card.size_setting


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
        self._most_images = sys.maxsize  # that are scored at a time, fewer once memory ran out
        self.start()

    def start(self) -> None:
        """Drop the predictions of an earlier evaluation."""
        self._predictions: list[tuple[int, Prediction, list[Rle] | None]] = []
        self._views: dict[int, list[tuple[View, Prediction]]] = {}
        self._losses: list[tuple[list[int], Tensor]] = []

    def add(self, network: nn.Module, batch: dict[str, Any]) -> None:
        """Score a ValidationDataset's batch on the network's device; in halves if memory runs out.

        Args:
            network: in eval mode.

        Raises:
            NoMemoryError: memory runs out with a single image.
        """
        images = len(batch["plain"]) + len(batch["whole"])
        if images <= self._most_images and self._score(network, batch):
            return
        device = next(network.parameters()).device
        if images == 1:
            size = evaluation_size(find(self.family.spec.model, self.family.spec.task))
            raise NoMemoryError(
                f"{device} ran out of memory with one validation image; lower {size} or take a smaller model"
            )
        if images <= self._most_images:
            free_memory(device)
            self._most_images = -(-images // 2)
            log.warning(
                "%s ran out of memory with %d validation images; scoring at most %d at a time",
                device, images, self._most_images,
            )  # fmt: skip
        step = self._most_images  # a copy: scoring a part may lower it
        for start in range(0, images, step):
            self.add(network, self._part(batch, start, start + step))

    def _part(self, batch: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
        """The batch with only the items from `start` to `stop`; whole images come first, then the others."""
        count = len(batch["whole"])
        whole = batch["whole"][start:stop]
        plain = batch["plain"][max(0, start - count) : max(0, stop - count)]
        part = self.family.part(batch["batch"], start, min(stop, count)) if whole else None
        return {"plain": plain, "whole": whole, "batch": part}

    def _score(self, network: nn.Module, batch: dict[str, Any]) -> bool:
        """Score a batch at once. Returns False, and keeps nothing, if memory runs out."""
        family, parameters = self.family, self.family.spec.parameters
        plain, whole = batch["plain"], batch["whole"]
        outputs: list[Any] = []
        losses: dict[str, Tensor] = {}
        try:
            with in_float32(next(network.parameters()).device):
                if whole:
                    images = batch["batch"]["images"]
                    if len({tuple(image.shape) for image in images}) == 1:
                        inferred, losses = family.infer_with_losses(network, batch["batch"], parameters)
                        outputs += inferred
                    else:  # infer apart from the losses, which pad the images to one size
                        outputs += family.infer_by_size(network, list(images), parameters)
                        losses = family.losses(network, batch["batch"])
                outputs += family.infer_by_size(network, [item["tensor"] for item in plain], parameters)
            items = [*whole, *plain]
            predictions = [
                family.postprocess(output, item["geometry"], parameters)
                for item, output in zip(items, on_cpu(outputs), strict=True)
            ]
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            return False
        for item, prediction in zip(items, predictions, strict=True):
            self._record(item, prediction)
        if whole:
            indices = [item["index"] for item in whole]
            self._losses.append((indices, torch.stack(list(losses.values())).sum()))
        return True

    def _record(self, item: dict[str, Any], prediction: Prediction) -> None:
        """Keep the prediction of a view; merge those of an image once all are there."""
        views = self._views.setdefault(item["index"], [])
        views.append((item["view"], prediction))
        if len(views) == item["views"]:
            merged = merge(self._views.pop(item["index"]), self.family.spec.parameters)
            self._predictions.append((item["index"], *compressed(merged)))

    def compute(self, ranks: int) -> dict[str, float]:
        """The metrics by name, the same on every rank; the mean validation loss is `log_loss`.

        Multilabel also has a metric for each class: `iou_classwise.NAME`.

        Args:
            ranks: number of ranks. Every rank must call this method; rank 0 computes the metrics of all.

        Raises:
            TrainingError: a prediction is not finite.
        """
        losses = [(images, loss.item()) for images, loss in self._losses]
        scored, all_losses = gather_on_rank_zero(self._predictions, ranks), gather_on_rank_zero(losses, ranks)
        self.start()
        metrics: dict[str, float] = {}
        problem = ""
        if scored is not None:
            try:
                metrics = self._metrics(scored)
            except TrainingError as error:  # raised below, on all ranks: the others wait for the metrics
                problem = str(error)
            if all_losses:
                metrics["log_loss"] = _mean(all_losses)
            self.by_class = {} if problem else self.evaluator.by_class()
        metrics, self.by_class, problem = from_rank_zero((metrics, self.by_class, problem), ranks)
        if problem:
            raise TrainingError(problem)
        return metrics

    def _metrics(self, scored: list[tuple[int, Prediction, list[Rle] | None]]) -> dict[str, float]:
        """Compute the metrics of all ranks' predictions."""
        self.evaluator.reset()
        # In the data's order, whichever rank scored an image: equal scores are then ranked alike everywhere.
        # Each image counts once, even if several ranks scored it.
        by_image = {index: (prediction, rles) for index, prediction, rles in scored}
        for index in sorted(by_image):
            prediction, rles = by_image[index]
            if rles is None:
                self.evaluator.update(prediction, self.targets[index])
            else:
                assert isinstance(self.evaluator, DetectionEvaluator), "only objects have masks"
                self.evaluator.update(prediction, self.targets[index], rles)
        metrics: dict[str, float] = self.evaluator.compute()
        if isinstance(self.evaluator, MultilabelEvaluator):
            by_class = self.evaluator.iou_classwise()
            metrics |= {f"{CLASSWISE}{name}": iou for name, iou in by_class.items()}
        return metrics


def compressed(prediction: Prediction) -> tuple[Prediction, list[Rle] | None]:
    """A prediction without its masks, and the masks as run lengths, if it has any.

    The masks of 100 objects in an image of 12 megapixels take some 33 MB, their run lengths some kilobytes.
    """
    if not isinstance(prediction, Detections) or prediction.masks is None:
        return prediction, None
    rles = [from_crop(mask, prediction.image_size) for mask in prediction.masks]
    return replace(prediction, masks=None), rles


def _mean(batches: Sequence[tuple[list[int], float]]) -> float:
    """The mean loss over images, each counted once, from the mean losses of batches of them."""
    counted: set[int] = set()
    total = 0.0
    for images, loss in batches:
        uncounted = set(images) - counted
        total += len(uncounted) * loss
        counted |= uncounted
    return total / len(counted)
