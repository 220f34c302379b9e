"""The LightningModule for every family: training steps, losses and the evaluation after an epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from trainer.errors import NoMemoryError, TrainingError
from trainer.models import Family
from trainer.models.catalog import CARDS
from trainer.models.family import in_float32
from trainer.models.training_items import Batch, Progress
from trainer.models.weights.reading import SPEC_KEY
from trainer.settings import Settings
from trainer.training.averaging import WeightAverage
from trainer.training.divergence import DivergenceWatch
from trainer.training.evaluation import Evaluation
from trainer.training.loading import gather, move, share_buffers
from trainer.training.memory import free_memory, ran_out_of_memory
from trainer.training.micro_batches import least_images, parts_of, zero_of
from trainer.training.optimizers import (
    build_optimizer,
    build_schedule,
    factor_at_step,
    restart,
    steps_per_epoch,
)
from trainer.training.stepping import clip, step_within_memory

log = logging.getLogger("trainer")

SEED_KEY, MICRO_BATCHES_KEY = "trainer_seed", "trainer_parts"
"""The keys of a checkpoint for the run's seed and for `TrainingModule.micro_batches`."""
_WATCH_KEY = "trainer_divergence"
_BATCHES_PER_CHECK = 10
_MOST_MEMORY_TO_OVERLAP = 0.8
"""Ranks exchange gradients during the backward pass as long as batches use less than this fraction of a GPU's
memory. A rank that runs out of memory meanwhile cannot repeat its batch, as the others wait for its part."""


class TrainingModule(LightningModule):
    """Trains a network and evaluates it, or the moving average of its weights if the settings say so.

    Attributes:
        metrics: the last evaluation's metrics by name, the same on every rank; empty before the first.
        metrics_by_class: its metrics of each class of the validation images: class name → metric → value.
        evaluated_epoch: the epoch of that evaluation, counted from 0; −1 for one before training.
        micro_batches: the number into which each batch is split; above 1 once memory ran out on this rank.
            Their gradients add up to those of the whole batch.
        timed_out: a time limit ended the run.
        frozen: modules that stay in evaluation mode.
    """

    def __init__(
        self,
        family: Family,
        network: nn.Module,
        evaluations: Sequence[Evaluation],
        settings: Settings,
        seed: int,
        micro_batches: int = 1,
    ) -> None:
        """
        Args:
            evaluations: of the validation images and, if the settings say so, of the training images.
        """
        super().__init__()
        # Optimise manually, so that a step that ran out of memory can be repeated in smaller micro-batches.
        self.automatic_optimization = False
        self.seed = seed
        self.micro_batches = micro_batches
        self._window: list[Batch] = []
        self._least_images = 1
        self._overlaps = False
        self.family = family
        self.network = network
        self.settings = settings
        self.average = WeightAverage(network, tau=family.average_tau) if settings.average_weights else None
        self.frozen = self._freeze()
        if settings.freeze_batch_norm:
            self.frozen += _batch_norms(network)
        if settings.compile:
            for part in family.parts_to_compile(network):
                part.compile()
        self.evaluations = list(evaluations)
        self.metrics: dict[str, float] = {}
        self.metrics_by_class: dict[str, dict[str, float]] = {}
        self.evaluated_epoch = -1
        self.timed_out = False
        self.evaluation_seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._groups: list[dict[str, Any]] = []
        self._watch = DivergenceWatch(settings)

    @property
    def scored(self) -> nn.Module:
        """The network that is evaluated and packaged."""
        return self.network if self.average is None else self.average.network

    def _freeze(self) -> list[nn.Module]:
        """Stop the training of the layers that the settings name; return them."""
        groups, network = self.settings.layers_to_freeze, self.network
        head = self.family.linear_head(network)
        if groups == "backbone" and head is not None:
            network.requires_grad_(False)
            head.requires_grad_(True)
            return list(network.children())
        layers = self.family.freeze_groups(network)
        frozen = list(chain.from_iterable(layers if groups == "backbone" else layers[: groups or 0]))
        for layer in frozen:
            layer.requires_grad_(False)
        return frozen

    def start_head(self, weight: Tensor, bias: Tensor, loss: float) -> None:
        """Replace a classifier's linear head before the first epoch, in the moving average, too.

        Args:
            weight, bias: float32 [C, D] and [C].
            loss: of the training images under this head, for the metrics of an evaluation before training.
        """
        for network in {self.network, self.scored}:
            head = self.family.linear_head(network)
            assert head is not None, "the network has a linear head"
            with torch.no_grad():
                head.weight.copy_(weight)
                head.bias.copy_(bias)
        self._sums, self._batches = {"loss": torch.tensor(loss)}, 1

    def configure_optimizers(self) -> Any:
        layers = self.family.freeze_groups(self.network)
        optimizer = build_optimizer(self.network, self.settings, layers)
        _ = self.trainer.estimated_stepping_batches  # makes Lightning set up the loaders and count batches
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
        """Replace a checkpoint's learning rates and steps by those of the current settings and batches."""
        steps = steps_per_epoch(self.settings, int(self.trainer.num_training_batches))
        restart(self._schedule(), self._groups, self.current_epoch * steps)

    def train_until(self, epochs: int) -> None:
        """Change the number of epochs, over which the learning rate decays."""
        self.settings = self.settings.model_copy(update={"number_of_epochs": epochs})
        factor = factor_at_step(self.settings, int(self.trainer.num_training_batches))
        self._schedule().lr_lambdas = [factor] * len(self._groups)

    def on_train_epoch_start(self) -> None:
        self.network.train()
        for layer in self.frozen:
            layer.eval()  # so that batch norms keep their statistics
        self._least_images = least_images(self.network)
        self._sums, self._batches = {}, 0

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's gradients to those of its accumulation window; step at the window's end."""
        accumulation_steps = self.settings.gradient_accumulation_step
        window_start = batch_idx - batch_idx % accumulation_steps
        window_size = min(accumulation_steps, int(self.trainer.num_training_batches) - window_start)
        is_last_of_window = batch_idx + 1 == window_start + window_size
        # Random numbers of a loss, such as pairs of images to mix, depend only on the batch's position in the
        # run, so that a resumed run draws the same ones.
        position = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        seed = int(position.generate_state(1)[0])
        # torch.manual_seed would also record a stack trace for each unused device, permanently.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._window.append(batch)
        losses = self._add_gradients([batch], window_size, sync=is_last_of_window)
        while losses is None:
            self._halve_micro_batches(batch)
            losses = self._add_gradients(self._window, window_size, sync=is_last_of_window)
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss
        self._batches += 1
        self._watch.add(batch_idx + 1, losses)
        batches = int(self.trainer.num_training_batches)
        # Reading a loss waits for a GPU, so several are read at once. After the last batch, callbacks save a
        # checkpoint: no run may resume from a diverged one.
        if self.device.type == "cpu" or batch_idx % _BATCHES_PER_CHECK == 0 or batch_idx + 1 == batches:
            self._watch.check(self.current_epoch + 1, batches)
            self._overlaps = self._has_memory_to_spare()
        if is_last_of_window:
            self._step()

    def _add_gradients(
        self, batches: Sequence[Batch], window_size: int, sync: bool
    ) -> dict[str, Tensor] | None:
        """Compute gradients of batches; return the last one's losses with their sum as "loss".

        Args:
            window_size: number of batches whose gradients are averaged in a step.
            sync: ranks exchange gradients after the last micro-batch, as at the end of a window.

        Returns:
            None if memory ran out.
        """
        overlaps = self._overlaps or self._is_synchronised_in_forward
        try:
            for number, batch in enumerate(batches, start=1):
                losses: dict[str, Tensor] = {}
                images = len(batch["images"])
                # Ranks average their gradients, so a summed loss counts the images of all ranks' batches.
                scale = images * self.trainer.world_size if self.family.sums_losses else 1
                parts = parts_of(images, self.micro_batches, self._least_images)
                for start, stop in parts:
                    exchanges = sync and overlaps and number == len(batches) and stop == images
                    with nullcontext() if exchanges else self._unsynchronised():
                        micro_batch = batch if len(parts) == 1 else self.family.part(batch, start, stop)
                        new_losses = self._losses(micro_batch)
                        fraction = (stop - start) / images
                        self._backward(new_losses["loss"] * (fraction * scale / window_size))
                    for name, loss in new_losses.items():
                        losses[name] = losses.get(name, 0) + fraction * loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if overlaps and self.trainer.world_size > 1:
                raise NoMemoryError(self._cannot_repeat(images)) from error
            return None
        if sync and not overlaps and self.trainer.world_size > 1:
            # All gradients are computed; the backward pass of a zero only makes the ranks average them.
            self._backward(zero_of([p for p in self.network.parameters() if p.requires_grad]))
        return losses

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, each product in the precision of its forward pass.

        Lightning calls `training_step` under autocast, in which the backward pass of parts that are float32
        on purpose would run in the run's precision.
        """
        with in_float32(self.device):
            self.manual_backward(loss)

    @property
    def _is_synchronised_in_forward(self) -> bool:
        """Whether ranks exchange statistics in the forward pass, which none can then repeat alone."""
        return self.settings.sync_batch_norm and self.trainer.world_size > 1

    def _has_memory_to_spare(self) -> bool:
        if self.device.type != "cuda":
            return False
        total = torch.cuda.get_device_properties(self.device).total_memory
        return torch.cuda.max_memory_reserved(self.device) < _MOST_MEMORY_TO_OVERLAP * total

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()

    def _halve_micro_batches(self, batch: Batch) -> None:
        """Drop the window's gradients after memory ran out, and use micro-batches half as large from now on.

        Raises:
            NoMemoryError: they are single images already, or pairs that batch norms need.
        """
        self._optimizer().zero_grad(set_to_none=True)
        images = len(batch["images"])
        least = min(self._least_images, images)
        if self.micro_batches >= images // least:
            how = "one image" if least == 1 else "two images, which batch norms need,"
            raise NoMemoryError(f"{self._out_of_memory(images)} even {how} at a time; {self._smaller()}")
        self.micro_batches *= 2
        free_memory(self.device)
        parts = parts_of(images, self.micro_batches, self._least_images)
        log.warning(
            "%s; continuing from the last step with micro-batches of %d and gradients accumulated over %d",
            self._out_of_memory(images), max(stop - start for start, stop in parts),
            len(parts) * self.settings.gradient_accumulation_step,
        )  # fmt: skip

    def _out_of_memory(self, images: int) -> str:
        epoch = self.current_epoch + 1
        return f"epoch {epoch}: {self.device} ran out of memory with batches of {images} images"

    def _smaller(self) -> str:
        size = CARDS[self.family.spec.family].size_setting
        return f"lower {size} ({getattr(self.settings, size)}) or take a smaller model"

    def _cannot_repeat(self, images: int) -> str:
        """The error's text if the other ranks wait for the batch that failed: how to continue."""
        accumulated = 2 * self.settings.gradient_accumulation_step
        halved = (
            f"`trainer fit --resume RUN --training-batch-size {images // 2} --gradient-accumulation-step "
            f"{accumulated}` resumes after the last epoch with the same number of images in each step"
        )
        return f"{self._out_of_memory(images)}; {halved if images > 1 else self._smaller()}"

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer), "there is one optimizer"
        return optimizer

    def _schedule(self) -> LambdaLR:
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR), "there is one schedule"
        return schedule

    def _step(self) -> None:
        self._window.clear()  # frees the batches' memory for the step
        optimizer = self._optimizer()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # Fused optimizers would unscale the gradients in their step, after clipping.
            scaler.unscale_(optimizer.optimizer)
        clip(parameters, self.settings)
        step_within_memory(optimizer, self.settings, self.device)
        optimizer.zero_grad(set_to_none=True)
        self._schedule().step()
        if self.average is not None:
            self.average.update(self.network)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The named losses, with their sum as "loss"."""
        progress = Progress(self.current_epoch, self.settings.number_of_epochs)
        try:
            losses = self.family.losses(self.network, batch, progress)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"a batch of {len(batch['images'])} image is too small for the batch norms of "
                f"{self.family.spec.model}; raise training_batch_size ({self.settings.training_batch_size}) "
                "or give it more images"
            ) from error
        return {**losses, "loss": torch.stack(list(losses.values())).sum()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # With the spec the file describes its own weights, wherever it is moved.
        checkpoint[SPEC_KEY] = self.family.spec.model_dump_json()
        checkpoint[SEED_KEY], checkpoint[MICRO_BATCHES_KEY] = self.seed, self.micro_batches
        checkpoint[_WATCH_KEY] = self._watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.micro_batches = max(self.micro_batches, checkpoint[MICRO_BATCHES_KEY])
        if _WATCH_KEY in checkpoint:  # earlier versions' have none
            self._watch.load_state_dict(checkpoint[_WATCH_KEY])

    @property
    def losses(self) -> dict[str, float]:
        """Mean training losses over this rank's epoch so far, by name; "loss" is their sum."""
        return {name: (total / self._batches).item() for name, total in self._sums.items()}

    def losses_of_all(self) -> dict[str, float]:
        """`losses` over all ranks. Every rank must call it."""
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
        validation, *training = [evaluation.compute(ranks) for evaluation in self.evaluations]
        self.metrics_by_class = self.evaluations[0].by_class
        self.metrics = {**validation, "log_loss_train": self.losses_of_all()["loss"]}
        for metrics in training:
            self.metrics |= {f"train_{name}": value for name, value in metrics.items()}
        if not self.trainer.sanity_checking:
            self.evaluated_epoch = self.current_epoch
        self.evaluation_seconds += time.perf_counter() - self._evaluation_start


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    """The batch norms that update their statistics; a transformer has none."""
    norms: list[nn.Module] = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms:
        log.info("freeze_batch_norm has no effect: the network has no batch norms that update statistics")
    return norms
