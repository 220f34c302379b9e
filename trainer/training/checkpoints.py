"""A run's checkpoints: which epoch is the best, and files that are written once and whole."""

from __future__ import annotations

import math
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from trainer.errors import BrokenOffError, FullDiskError, TrainingError
from trainer.full_disk import full_disk_reason, make_room
from trainer.metric_names import is_minimised
from trainer.metrics.voc import UNDEFINED
from trainer.runs import Run
from trainer.training.module import TrainingModule

WRITTEN = "written.partial"
"""Name of the checkpoint that is being written."""
_TENSORS = ("state_dict", "optimizer_states")
"""The keys of a checkpoint that hold what is large."""
DATA_KEY = "trainer_data"
"""The key of a checkpoint for the summary of the data that it was trained on."""


class KeepBest(Callback):
    """Keeps the metrics of the best epoch so far by the primary metric.

    Of equal epochs it is the first, since early stopping counts an equal value as no improvement.

    Attributes:
        epoch: the best epoch, counted from 1; 0 is an evaluation before training.
        metrics: all metrics of the best epoch; empty before the first evaluation.
    """

    def __init__(self, primary_metric: str, *, starts_anew: bool = False) -> None:
        """
        Args:
            starts_anew: ignore the best epoch of the checkpoint that training resumes from.
        """
        self.primary_metric, self.starts_anew = primary_metric, starts_anew
        self.epoch = 0
        self.metrics: dict[str, float] = {}

    @property
    def value(self) -> float:
        """The primary metric at the best epoch; NaN before the first evaluation."""
        return self.metrics.get(self.primary_metric, math.nan)

    @property
    def is_undefined(self) -> bool:
        """Whether no evaluation could compute the primary metric, so that it chose no epoch."""
        return math.isnan(self.value) or self.value == UNDEFINED

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.starts_anew:
            self.epoch, self.metrics = state_dict["epoch"], state_dict["metrics"]

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.world_size > 1:  # rank 0 knows which checkpoints there are
            state = trainer.strategy.broadcast(self.state_dict(), src=0)
            self.epoch, self.metrics = state["epoch"], state["metrics"]

    def on_sanity_check_end(self, trainer: Trainer, module: Any) -> None:
        self._compare(0, module.metrics)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        assert isinstance(module, TrainingModule)
        if module.evaluated_epoch == trainer.current_epoch:
            self._compare(trainer.current_epoch + 1, module.metrics)

    def _compare(self, epoch: int, metrics: Mapping[str, float]) -> None:
        value = metrics.get(self.primary_metric, math.nan)
        is_better = value < self.value if is_minimised(self.primary_metric) else value > self.value
        # While the best value is undefined, the latest evaluation counts as the best.
        if not self.metrics or is_better or math.isnan(self.value):
            self.epoch, self.metrics = epoch, dict(metrics)


class SaveCheckpoints(Callback):
    """Saves last.ckpt after every epoch, best.ckpt at a new best, and epoch-N.ckpt as often as configured.

    A probe is saved as an epoch is.

    It must follow the callbacks whose state a checkpoint includes. A checkpoint is written once, under a
    temporary name, and then given its names, so that a run killed at any moment can resume. The last but one
    stays as previous.ckpt, because a power failure may tear the last one.

    Args:
        every: epochs between the checkpoints that are kept as epoch-N.ckpt; None keeps none.
        data: summary of the data, which goes into each checkpoint.

    Raises:
        BrokenOffError: a checkpoint cannot be written, for example because the disk is full.
        TrainingError: a callback of the user's puts something into it that could not be read back.
    """

    def __init__(self, run: Run, best: KeepBest, every: int | None, data: Mapping[str, Any]) -> None:
        self.run, self.best, self.every, self.data = run, best, every, dict(data)

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        trainer.strategy.checkpoint_io = _StreamedCheckpoint()

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[DATA_KEY] = self.data
        if trainer.sanity_checking:
            checkpoint["epoch"] = -1  # no epoch is finished; Lightning itself does not read it
        if trainer.is_global_zero:
            for name, state in checkpoint.get("callbacks", {}).items():
                _check_readable(state, f"the state of the callback {name}")
            others = {key: value for key, value in checkpoint.items() if key not in _TENSORS}
            _check_readable(others, f"what a callback adds to checkpoints, one of {', '.join(others)},")

    def on_sanity_check_end(self, trainer: Trainer, module: Any) -> None:
        if module.metrics:
            self._save(trainer, 0)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._save(trainer, trainer.current_epoch + 1)

    def _save(self, trainer: Trainer, epoch: int) -> None:
        others = [self.run.best_checkpoint] if self.best.epoch == epoch else []
        if self.every and epoch and epoch % self.every == 0:
            others.append(self.run.checkpoints / f"epoch-{epoch}.ckpt")
        try:
            self._write(trainer, others)
        except (OSError, RuntimeError) as error:
            full = full_disk_reason(error)
            if full is None and not isinstance(error, OSError):
                raise
            (self.run.checkpoints / WRITTEN).unlink(missing_ok=True)
            reason = full or str(getattr(error, "strerror", None) or error)
            what = f"epoch {epoch}'s checkpoint cannot be written there"
            step = f"resume with --resume {self.run.directory}"
            text = make_room(self.run.checkpoints, reason, step, what)
            raise (BrokenOffError if full is None else FullDiskError)(text) from error

    def _write(self, trainer: Trainer, others: Sequence[Path]) -> None:
        written = self.run.checkpoints / WRITTEN
        if trainer.is_global_zero:
            # After a kill it may still be a second name of best.ckpt, which must not be overwritten.
            written.unlink(missing_ok=True)
        trainer.save_checkpoint(written)
        if trainer.is_global_zero:
            for path in others:
                link_or_copy(written, path)
            # A run that is killed between the two resumes from previous.ckpt.
            if self.run.last_checkpoint.exists():
                self.run.last_checkpoint.replace(self.run.previous_checkpoint)
            written.replace(self.run.last_checkpoint)


def _check_readable(content: Any, what: str) -> None:
    """Check that a part of a checkpoint can be read back without running code from the file.

    Tensors always can, so their values, which may be as large as the network, are not copied.
    """
    file = BytesIO()
    try:
        torch.save(_without_values(content), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise TrainingError(
            f"{what} cannot be kept in a checkpoint: it may hold tensors, numbers, texts, lists and "
            f"dictionaries ({str(error).partition(chr(10))[0]})"
        ) from error


def _without_values(content: Any) -> Any:
    """Copy nested containers with empty tensors in place of the tensors."""
    if type(content) in (Tensor, nn.Parameter):
        return torch.empty(0)
    if type(content) in (dict, OrderedDict):
        return type(content)((key, _without_values(value)) for key, value in content.items())
    if type(content) in (list, tuple):
        return type(content)(map(_without_values, content))
    return content


class _StreamedCheckpoint(TorchCheckpointIO):
    """Writes straight to the file; Lightning's own builds the file in memory first, in twice the time."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)


def link_or_copy(file: Path, path: Path) -> None:
    """Make `path` another name of the file, atomically; a copy where the file system has no links."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
    partial.replace(path)
