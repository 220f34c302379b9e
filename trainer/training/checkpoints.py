"""A run's checkpoints: which epoch is the best, and files that are written once and whole."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from trainer.errors import BrokenOffError
from trainer.metric_names import is_minimised
from trainer.runs import Run
from trainer.training.module import TrainingModule

WRITTEN = "written.partial"
"""Name of the checkpoint that is being written."""


class KeepBest(Callback):
    """Keeps the metrics of the best epoch so far by the primary metric.

    Attributes:
        epoch: the best epoch, counted from 1; 0 before the first evaluation.
        metrics: all metrics of the best epoch.
    """

    def __init__(self, primary_metric: str) -> None:
        self.primary_metric = primary_metric
        self.epoch = 0
        self.metrics: dict[str, float] = {}

    @property
    def value(self) -> float:
        """The primary metric at the best epoch; NaN before the first evaluation."""
        return self.metrics.get(self.primary_metric, math.nan)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.metrics = state_dict["epoch"], state_dict["metrics"]

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        assert isinstance(module, TrainingModule)
        if module.evaluated_epoch == trainer.current_epoch:
            value = module.metrics.get(self.primary_metric, math.nan)
            is_better = value < self.value if is_minimised(self.primary_metric) else value > self.value
            # While the best value is undefined, the latest evaluation counts as the best.
            if not self.epoch or is_better or math.isnan(self.value):
                self.epoch, self.metrics = trainer.current_epoch + 1, dict(module.metrics)


class SaveCheckpoints(Callback):
    """Saves last.ckpt after every epoch, best.ckpt at a new best, and epoch-N.ckpt as often as configured.

    It must follow the callbacks whose state a checkpoint includes. A checkpoint is written once, under a
    temporary name, and then given its names, so that a run killed at any moment can resume from last.ckpt.

    Args:
        every: epochs between the checkpoints that are kept as epoch-N.ckpt; None keeps none.

    Raises:
        BrokenOffError: a checkpoint cannot be written, for example because the disk is full.
    """

    def __init__(self, run: Run, best: KeepBest, every: int | None) -> None:
        self.run, self.best, self.every = run, best, every

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        trainer.strategy.checkpoint_io = _StreamedCheckpoint()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        epoch = trainer.current_epoch + 1
        others = [self.run.best_checkpoint] if self.best.epoch == epoch else []
        if self.every and epoch % self.every == 0:
            others.append(self.run.checkpoints / f"epoch-{epoch}.ckpt")
        try:
            self._write(trainer, others)
        except (OSError, RuntimeError) as error:
            # PyTorch's file writer raises a RuntimeError that does not pass on the system's reason.
            if not isinstance(error, OSError) and "inline_container" not in str(error):
                raise
            (self.run.checkpoints / WRITTEN).unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else "only a part of it was written"
            free = shutil.disk_usage(self.run.directory).free
            raise BrokenOffError(
                f"{self.run.checkpoints}: epoch {epoch}'s checkpoint cannot be written there ({reason}; "
                f"{free / 1e6:,.0f} MB are free). Make room or raise the quota, then resume with --resume"
            ) from error

    def _write(self, trainer: Trainer, others: Sequence[Path]) -> None:
        written = self.run.checkpoints / WRITTEN
        if trainer.is_global_zero:
            # After a kill it may still be a second name of best.ckpt, which must not be overwritten.
            written.unlink(missing_ok=True)
        trainer.save_checkpoint(written)
        if trainer.is_global_zero:
            for path in others:
                _link_or_copy(written, path)
            written.replace(self.run.last_checkpoint)


class _StreamedCheckpoint(TorchCheckpointIO):
    """Writes straight to the file; Lightning's own builds the file in memory first, in twice the time."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)


def _link_or_copy(file: Path, path: Path) -> None:
    """Make `path` another name of the file, atomically; a copy where the file system has no links."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
    partial.replace(path)
