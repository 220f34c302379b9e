"""The one LightningModule: any family's network, its losses, and the evaluation after an epoch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn

from trainer import metrics
from trainer.annotations import Prediction, Truth
from trainer.errors import TrainingError
from trainer.models import Family
from trainer.models.family import Batch
from trainer.models.weights_reading import SPEC_KEY
from trainer.settings import Settings
from trainer.training.averaging import WeightAverage
from trainer.training.loading import gather, move
from trainer.training.optimizers import build_optimizer, build_schedule

LARGEST_LOSS = 100.0
_CHECK_EVERY = 10


class TrainingModule(LightningModule):
    """Trains `network`; evaluates its running average where the family keeps one.

    Attributes:
        metrics: the figures of the last evaluation by name, the same on every rank.
        evaluated_epoch: the epoch that they are of, from 0.
    """

    def __init__(
        self, family: Family, network: nn.Module, truths: Sequence[Truth], settings: Settings
    ) -> None:
        super().__init__()
        self.family = family
        self.network = network
        self.settings = settings
        self.truths = truths
        self.average = WeightAverage(network) if family.averages_weights else None
        self.frozen = self._freeze(settings.layers_to_freeze)
        self.evaluator = metrics.create(
            family.spec.task,
            family.spec.classes,
            iou_threshold=settings.validation_iou_threshold,
            metric_type=settings.validation_metric_type,
        )
        self.metrics: dict[str, float] = {}
        self.evaluated_epoch = -1
        self.evaluation_seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._predictions: list[tuple[int, Prediction]] = []
        self._validation_losses: list[Tensor] = []

    @property
    def scored(self) -> nn.Module:
        """The network that evaluations score and that is packaged."""
        return self.network if self.average is None else self.average.network

    def _freeze(self, groups: int | None) -> list[nn.Module]:
        frozen = [
            layer for group in self.family.freeze_groups(self.network)[: groups or 0] for layer in group
        ]
        for layer in frozen:
            layer.requires_grad_(False)
        return frozen

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.network, self.settings)
        _ = self.trainer.estimated_stepping_batches  # makes Lightning set up the loaders, which count them
        batches = int(self.trainer.num_training_batches)
        schedule = build_schedule(optimizer, self.settings, batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return move(batch, device)

    def on_train_epoch_start(self) -> None:
        self.network.train()
        for layer in self.frozen:
            layer.eval()  # frozen batch norms keep their statistics, too
        self._sums, self._batches = {}, 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        try:
            losses = self.family.losses(self.network, batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"a batch of {len(batch['images'])} image is too small for the batch norms of "
                f"{self.family.spec.model}; raise training_batch_size ({self.settings.training_batch_size}) "
                "or give it more images"
            ) from error
        total = torch.stack(list(losses.values())).sum()
        for name, loss in {**losses, "loss": total}.items():
            self._sums[name] = self._sums.get(name, 0) + loss.detach()
        self._batches += 1
        # Looking at a loss waits for the device, so not at each.
        if batch_idx % _CHECK_EVERY == 0:
            self._check(total.detach())
        return total * self._images_summed(batch)

    def _images_summed(self, batch: Batch) -> int:
        """1, or the images of all ranks' batches where the recipe sums over them: ranks average gradients."""
        if not self.family.sums_losses:
            return 1
        return len(batch["images"]) * self.trainer.world_size

    def _check(self, total: Tensor) -> None:
        loss = total.item()
        if not loss <= LARGEST_LOSS:
            raise TrainingError(
                f"the training diverged in epoch {self.current_epoch + 1}: its loss is {loss:.4g}, over "
                f"{LARGEST_LOSS:g}. Lower learning_rate ({self.settings.learning_rate:g}) or lengthen "
                f"warmup_cosine_lr_warmup_epochs ({self.settings.warmup_cosine_lr_warmup_epochs})"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Says whose weights these are, wherever the file is moved.
        checkpoint[SPEC_KEY] = self.family.spec.model_dump_json()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.network)

    @property
    def losses(self) -> dict[str, float]:
        """Mean of each training loss, and of their sum, "loss", over this rank's epoch so far."""
        return {name: (total / self._batches).item() for name, total in self._sums.items()}

    def on_train_epoch_end(self) -> None:
        self._check(torch.tensor(self.losses["loss"]))

    def on_validation_epoch_start(self) -> None:
        self._predictions, self._validation_losses = [], []
        self._evaluation_start = time.perf_counter()
        self.scored.eval()

    def validation_step(self, batch: list[dict[str, Any]], batch_idx: int) -> None:
        parameters = self.family.spec.parameters
        outputs = self.family.infer(self.scored, [item["tensor"] for item in batch], parameters)
        for item, output in zip(batch, outputs, strict=True):
            prediction = self.family.postprocess(output, item["geometry"], parameters)
            self._predictions.append((item["index"], prediction))
        if self.family.spec.task.has_boxes and self.settings.log_validation_loss == "Enable":
            losses = self.family.losses(
                self.scored, self.family.collate([self._item(item) for item in batch])
            )
            self._validation_losses.append(torch.stack(list(losses.values())).sum())

    def _item(self, item: dict[str, Any]) -> Any:
        built = self.family.validation_item(item["tensor"].cpu(), item["truth"], item["geometry"])
        return move(built, self.device)

    def on_validation_epoch_end(self) -> None:
        self.evaluator.reset()
        # In the data's order, whichever rank scored them: ties of score then break alike everywhere.
        # Each image counts once, though several ranks may have scored it.
        for index, prediction in sorted(dict(gather(self._predictions)).items()):
            self.evaluator.update(prediction, self.truths[index])
        self.metrics = self.evaluator.compute()
        if self._validation_losses:
            self.metrics["log_loss"] = float(
                np.mean(gather([loss.item() for loss in self._validation_losses]))
            )
        self.evaluated_epoch = self.current_epoch
        self.evaluation_seconds += time.perf_counter() - self._evaluation_start
