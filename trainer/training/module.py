"""The one LightningModule: any family's network, its losses, and the evaluation after an epoch."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from trainer.errors import NoMemoryError, TrainingError
from trainer.models import Family
from trainer.models.family import Batch
from trainer.models.weights.reading import SPEC_KEY
from trainer.settings import Settings
from trainer.training.averaging import WeightAverage
from trainer.training.evaluation import Evaluation
from trainer.training.loading import gather, move, share_buffers
from trainer.training.memory import ran_out_of_memory
from trainer.training.optimizers import begin, build_optimizer, build_schedule, steps_per_epoch

log = logging.getLogger("trainer")

SEED_KEY, PARTS_KEY = "trainer_seed", "trainer_parts"
"""Where a checkpoint keeps the seed that was drawn, and `TrainingModule.parts`."""
LARGEST_LOSS = 100.0
_CHECK_EVERY = 10


class TrainingModule(LightningModule):
    """Trains `network`; evaluates its running average where the family keeps one.

    Attributes:
        metrics: the figures of the last evaluation by name, the same on every rank.
        parts: how many parts a batch is trained in, one after the other; more than 1 once memory ran out.
            The gradients add up to those of the whole batch.
        evaluated_epoch: the epoch that they are of, from 0.
        timed_out: a time limit ended the training.
    """

    def __init__(
        self,
        family: Family,
        network: nn.Module,
        evaluations: Sequence[Evaluation],
        settings: Settings,
        seed: int,
        parts: int = 1,
    ) -> None:
        """`evaluations`: of the validation images and, where asked for, of the training images."""
        super().__init__()
        # The loop is our own, so that a step which ran out of memory can be taken again in smaller parts.
        self.automatic_optimization = False
        self.seed = seed
        self.parts = parts
        self._window: list[Batch] = []
        self.family = family
        self.network = network
        self.settings = settings
        average = WeightAverage(network, tau=family.average_tau) if settings.average_weights else None
        self.average = average
        self.frozen = self._freeze(settings.layers_to_freeze)
        if settings.compile:
            for part in family.parts_to_compile(network):
                part.compile()
        self.evaluations = list(evaluations)
        self.metrics: dict[str, float] = {}
        self.evaluated_epoch = -1
        self.timed_out = False
        self.evaluation_seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._groups: list[dict[str, Any]] = []

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
        layers = self.family.freeze_groups(self.network)
        optimizer = build_optimizer(self.network, self.settings, layers)
        _ = self.trainer.estimated_stepping_batches  # makes Lightning set up the loaders, which count them
        batches = int(self.trainer.num_training_batches)
        schedule = build_schedule(optimizer, self.settings, batches)
        self._groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return move(batch, device)

    def on_train_start(self) -> None:
        """A checkpoint's rates and steps are those of the settings and batches that it was made with."""
        in_epoch = steps_per_epoch(self.settings, int(self.trainer.num_training_batches))
        begin(self._schedule(), self._groups, self.current_epoch * in_epoch)

    def on_train_epoch_start(self) -> None:
        self.network.train()
        for layer in self.frozen:
            layer.eval()  # frozen batch norms keep their statistics, too
        self._sums, self._batches = {}, 0

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's gradients to those of its window of accumulated batches; step at its end."""
        accumulated = self.settings.gradient_accumulation_step
        first = batch_idx - batch_idx % accumulated
        of_window = min(accumulated, int(self.trainer.num_training_batches) - first)
        steps = batch_idx + 1 == first + of_window
        # What a loss draws, such as pairs of images to mix, depends on the batch's place in the training
        # alone: one that goes on after a stop draws the same.
        place = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        seed = int(place.generate_state(1)[0])
        # torch.manual_seed would also note a stack trace for each device that is not in use, for good.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._window.append(batch)
        losses = self._add_gradients([batch], of_window, sync=steps)
        while losses is None:
            self._halve_parts(batch)
            losses = self._add_gradients(self._window, of_window, sync=steps)
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss
        self._batches += 1
        # Looking at a loss waits for the device, so not at each.
        if batch_idx % _CHECK_EVERY == 0:
            self._check(losses["loss"])
        if batch_idx + 1 == self.trainer.num_training_batches:
            # Before callbacks hear of the epoch's end, who keep it: nothing goes on from what diverged.
            self._check(torch.tensor(self.losses["loss"]))
        if steps:
            self._step()

    def _add_gradients(
        self, batches: Sequence[Batch], of_window: int, sync: bool
    ) -> dict[str, Tensor] | None:
        """The last batch's losses, their sum as "loss"; None if memory ran out on the way.

        Args:
            of_window: batches whose gradients are averaged in a step.
            sync: ranks exchange gradients after the last part; a window's earlier batches need not.
        """
        try:
            for number, batch in enumerate(batches, start=1):
                losses: dict[str, Tensor] = {}
                images = len(batch["images"])
                size = -(-images // self.parts)
                for start in range(0, images, size):
                    stop = min(start + size, images)
                    last = number == len(batches) and stop == images
                    with nullcontext() if sync and last else self._unsynchronised():
                        part = batch if size == images else self.family.part(batch, start, stop)
                        found = self._losses(part)
                        share = (stop - start) / images
                        self.manual_backward(found["loss"] * (share * self._images_summed(batch) / of_window))
                    for name, loss in found.items():
                        losses[name] = losses.get(name, 0) + share * loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            return None
        return losses

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()

    def _halve_parts(self, batch: Batch) -> None:
        """After memory ran out: forget the window's gradients, and train in parts half as large from now on.

        Raises:
            NoMemoryError: the parts are single images already, or other ranks train on, which do not know.
        """
        self._optimizer().zero_grad(set_to_none=True)
        images = len(batch["images"])
        where = (
            f"epoch {self.current_epoch + 1}: {self.device} ran out of memory with batches of {images} images"
        )
        if self.trainer.world_size > 1:
            raise NoMemoryError(f"{where}; {self._advice(images)}")
        if self.parts >= images:
            raise NoMemoryError(
                f"{where} even one image at a time; lower the image size or take a smaller model"
            )
        self.parts *= 2
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "%s; going on from the last step with batches of %d, gradients of %d of them added up for a step",
            where, -(-images // self.parts), self.parts * self.settings.gradient_accumulation_step,
        )  # fmt: skip

    def _advice(self, images: int) -> str:
        if images == 1:
            return "lower the image size or take a smaller model"
        accumulated = 2 * self.settings.gradient_accumulation_step
        return (
            f"`trainer fit --resume RUN --training-batch-size {images // 2} --gradient-accumulation-step "
            f"{accumulated}` goes on from the last epoch with steps of as many images"
        )

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer), "there is one optimizer"
        return optimizer

    def _schedule(self) -> LambdaLR:
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR), "there is one schedule"
        return schedule

    def _step(self) -> None:
        optimizer = self._optimizer()
        self._clip([parameter for group in optimizer.param_groups for parameter in group["params"]])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._schedule().step()
        self._window.clear()
        if self.average is not None:
            self.average.update(self.network)

    def _clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Not by Lightning, which refuses to with a fused optimizer, since that could unscale gradients."""
        norm, value = self.settings.gradient_clip_norm, self.settings.gradient_clip_value
        if norm:
            nn.utils.clip_grad_norm_(parameters, norm)
        elif value:
            # On a CPU the loop is faster: it goes over each gradient once, the other way twice.
            loops = self.device.type == "cpu"
            nn.utils.clip_grad_value_(parameters, value, foreach=False if loops else None)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The named losses, and their sum as "loss"."""
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
        return {**losses, "loss": torch.stack(list(losses.values())).sum()}

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
        checkpoint[SEED_KEY], checkpoint[PARTS_KEY] = self.seed, self.parts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.parts = max(self.parts, checkpoint[PARTS_KEY])

    @property
    def losses(self) -> dict[str, float]:
        """Mean of each training loss, and of their sum, "loss", over this rank's epoch so far."""
        return {name: (total / self._batches).item() for name, total in self._sums.items()}

    def losses_of_all(self) -> dict[str, float]:
        """The same over the epoch of all ranks, each of which has to ask."""
        ranks = gather([self.losses], self.trainer.world_size)
        return {name: float(np.mean([losses[name] for losses in ranks])) for name in ranks[0]}

    def on_validation_epoch_start(self) -> None:
        self._evaluation_start = time.perf_counter()
        self.scored.eval()
        share_buffers(self.scored, self.trainer.world_size)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluations[dataloader_idx].add(self.scored, batch)

    def on_validation_epoch_end(self) -> None:
        ranks = self.trainer.world_size
        validation, *training = [evaluation.figures(ranks) for evaluation in self.evaluations]
        self.metrics = {**validation, "log_loss_train": self.losses_of_all()["loss"]}
        for figures in training:
            self.metrics |= {f"train_{name}": value for name, value in figures.items()}
        self.evaluated_epoch = self.current_epoch
        self.evaluation_seconds += time.perf_counter() - self._evaluation_start
