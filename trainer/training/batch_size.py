"""Finds the largest training batch that fits a GPU by trying batches before the first epoch."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, Trainer

from trainer.models.training_items import Draw, Progress
from trainer.training.loading import Batches, gather, move
from trainer.training.memory import ran_out_of_memory
from trainer.training.module import TrainingModule
from trainer.training.optimizers import build_optimizer

log = logging.getLogger("trainer")

_HEADROOM = 0.15
"""Fraction of the GPU's memory to leave free: images and objects differ from batch to batch."""
_EXAMPLES = 16  # number of different examples in a batch to try


def largest_power_of_two(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two up to `most` that fits, trying 2, 4, …; 1 if 2 does not fit."""
    size = 1
    while 2 * size <= most and fits(2 * size):
        size *= 2
    return size


class FindBatchSize(Callback):
    """Sets the batch size for `training_batch_size: auto`, alike on all ranks, before the loader is made."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        device = trainer.strategy.root_device
        if device.type != "cuda":
            log.info(
                "training_batch_size auto: %d, the model's default; memory does not limit it on a CPU",
                self.batches.batch_size,
            )
            return
        most = -(-len(self.batches.training) // trainer.world_size)
        module.to(device)
        weights = {name: tensor.cpu() for name, tensor in module.network.state_dict().items()}
        with torch.random.fork_rng(devices=[device]):
            size = largest_power_of_two(lambda size: self._fits(trainer, module, size), most)
        module.network.load_state_dict(weights)
        self.batches.batch_size = min(gather([size], trainer.world_size))
        log.info(
            "training_batch_size auto: %d images fit %s; learning_rate stays %g",
            self.batches.batch_size, torch.cuda.get_device_name(device), module.settings.learning_rate,
        )  # fmt: skip

    def _fits(self, trainer: Trainer, module: TrainingModule, size: int) -> bool:
        """Whether a whole training step leaves the headroom free."""
        device = trainer.strategy.root_device
        torch.cuda.reset_peak_memory_stats(device)
        try:
            self._step(trainer, module, size)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return False
        finally:
            peak = torch.cuda.max_memory_reserved(device)
            module.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        available = free + torch.cuda.memory_reserved(device)  # other processes may use memory, too
        return peak <= available - _HEADROOM * total

    def _step(self, trainer: Trainer, module: TrainingModule, size: int) -> None:
        family, dataset = self.batches.family, self.batches.training_items
        count = min(_EXAMPLES, len(self.batches.training))
        items = [dataset[Draw(0, index)] for index in range(count)]
        batch = dataset.collate([items[i % count] for i in range(size)])
        if dataset.dataset.largest_size is not None:
            batch = {**batch, "shared": {**batch["shared"], "size": dataset.dataset.largest_size}}
        batch = move(batch, trainer.strategy.root_device)
        layers = family.freeze_groups(module.network)
        optimizer = build_optimizer(module.network, module.settings, layers)
        module.on_train_epoch_start()
        with trainer.precision_plugin.forward_context():
            losses = family.losses(module.network, batch, Progress(0, module.settings.number_of_epochs))
        total = torch.stack(list(losses.values())).sum()
        torch.autograd.backward(total)
        optimizer.step()
