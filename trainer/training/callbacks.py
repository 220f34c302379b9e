"""What happens at the end of an epoch: keep the best, record the figures, say so, stop when it is time."""

from __future__ import annotations

import csv
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.errors import BrokenOffError
from trainer.runs import Run
from trainer.settings import Settings
from trainer.training.evaluation import CLASSWISE
from trainer.training.module import TrainingModule
from trainer.training.tracker import Tracker

log = logging.getLogger("trainer")

WRITTEN = "written.partial"
"""The checkpoint that is being written."""


class EvaluateLast(Callback):
    """The last epoch is evaluated whatever the evaluation frequency."""

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class KeepBest(Callback):
    """Knows the best epoch so far by the primary metric.

    Attributes:
        epoch: the best epoch, from 1; 0 before the first evaluation.
        metrics: all figures of the best epoch.
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
            # The first evaluation is the best so far even if it is undefined; without a metric the latest is.
            if not self.epoch or value > self.value or math.isnan(self.value):
                self.epoch, self.metrics = trainer.current_epoch + 1, dict(module.metrics)


class SaveCheckpoints(Callback):
    """Writes best.ckpt at a new best epoch, last.ckpt at each, and others as often as asked.

    It comes after the other callbacks, so that a checkpoint holds what they made of the epoch. A file
    appears at once and whole, so that a training killed at any moment can go on from last.ckpt. What an epoch
    leaves under several names is written once.

    Raises:
        BrokenOffError: a checkpoint cannot be written, as on a full disk.
    """

    def __init__(self, run: Run, best: KeepBest, every: int | None) -> None:
        self.run, self.best, self.every = run, best, every

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        trainer.strategy.checkpoint_io = CheckpointFile()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        epoch = trainer.current_epoch + 1
        paths = [self.run.last_checkpoint]
        if self.every and epoch % self.every == 0:
            paths.insert(0, self.run.checkpoints / f"epoch-{epoch}.ckpt")
        if self.best.epoch == epoch:
            paths.insert(0, self.run.best_checkpoint)
        try:
            self._write(trainer, paths)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and "inline_container" not in str(error):
                raise  # PyTorch's part that writes files does not pass on what the system said
            (self.run.checkpoints / WRITTEN).unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else "not all of it was taken"
            free = shutil.disk_usage(self.run.directory).free
            raise BrokenOffError(
                f"{self.run.checkpoints}: epoch {epoch}'s checkpoint cannot be written there ({reason}; "
                f"{free / 1e6:,.0f} MB are free). Make room or raise the quota, then go on with --resume"
            ) from error

    def _write(self, trainer: Trainer, paths: Sequence[Path]) -> None:
        written = self.run.checkpoints / WRITTEN
        if trainer.is_global_zero:
            # A training that was killed may have left it as one more name of best.ckpt.
            written.unlink(missing_ok=True)
        trainer.save_checkpoint(written)
        if trainer.is_global_zero:
            *others, last = paths
            for path in others:
                _name(written, path)
            written.replace(last)


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint as it is made; Lightning's own makes it in memory first, in twice the time."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)


def _name(file: Path, path: Path) -> None:
    """Have `path` be this file, at once; where the file system has no links, a copy of it."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
    partial.replace(path)


class StopAt(Callback):
    """Ends the training after the first evaluation past a point in time, of `time.monotonic`."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        late = time.monotonic() >= self.deadline and module.evaluated_epoch == trainer.current_epoch
        if trainer.strategy.broadcast(late, src=0):
            trainer.should_stop = module.timed_out = True
            log.info("stopping: the time is up")


class StopEarly(Callback):
    """Ends the training after `patience` evaluations without a new best, not counting those in the delay."""

    def __init__(self, best: KeepBest, settings: Settings) -> None:
        self.best = best
        self.patience, self.delay = settings.early_stopping_patience, settings.early_stopping_delay
        self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.waited = state_dict["waited"]

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if module.evaluated_epoch != trainer.current_epoch or epoch <= self.delay:
            return
        self.waited = 0 if self.best.epoch == epoch else self.waited + 1
        if self.waited >= self.patience and epoch < (trainer.max_epochs or math.inf):
            trainer.should_stop = True
            log.info("stopping early: no better %s in %d evaluations", self.best.primary_metric, self.waited)


class ShowProgress(Callback):
    """A bar for each epoch's batches, training and validation, on a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, transient=True)

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self._begin(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", trainer.num_training_batches)

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self._begin("evaluating", sum(trainer.num_val_batches))

    def on_train_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()

    def _begin(self, text: str, batches: float) -> None:
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.bar.add_task(text, total=batches)
        self.bar.start()

    def _advance(self) -> None:
        self.bar.advance(self.bar.task_ids[-1])


class SayProgress(Callback):
    """A line in the log now and then within an epoch, so that long ones are seen to move."""

    SECONDS_BETWEEN_LINES = 60.0

    def __init__(self) -> None:
        self.last = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if time.monotonic() - self.last < self.SECONDS_BETWEEN_LINES or not trainer.is_global_zero:
            return
        self.last = time.monotonic()
        total = int(trainer.num_training_batches)
        log.info(
            "epoch %d/%d: %d of %d batches, loss %.4f",
            trainer.current_epoch + 1, trainer.max_epochs, index + 1, total, module.losses["loss"],
        )  # fmt: skip


class Record(Callback):
    """Writes metrics.csv, a row an epoch, and to the log a line an epoch and one with all its figures."""

    def __init__(self, path: Path, best: KeepBest) -> None:
        self.path, self.best = path, best
        self.rows: list[dict[str, Any]] = []
        self.started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        assert isinstance(module, TrainingModule)
        losses = module.losses_of_all()
        if not trainer.is_global_zero:
            return
        evaluated = module.evaluated_epoch == trainer.current_epoch
        figures = module.metrics if evaluated else {}
        seconds = time.perf_counter() - self.started
        row = {
            "epoch": trainer.current_epoch + 1,
            "seconds": round(seconds, 3),
            "learning_rate": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            **{f"train_{name}": value for name, value in losses.items()},
            **figures,
        }
        self.rows.append(row)
        self._write()
        text = f"epoch {row['epoch']}/{trainer.max_epochs}  loss {losses['loss']:.4f}"
        if evaluated:
            name = self.best.primary_metric
            value = figures.get(name, math.nan)
            text += f"  {name} {value:.4f} (best {self.best.value:.4f}, epoch {self.best.epoch})"
        log.info("%s  %.1f s", text, seconds)
        others = [
            f"{name} {value:.4f}"
            for name, value in figures.items()
            if name != self.best.primary_metric and not name.startswith(CLASSWISE)
        ]
        if others:
            log.info("    %s", "  ".join(others))

    def _write(self) -> None:
        # Columns that appear late (an epoch without evaluation came first) make rewriting the simple way.
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


class Track(Callback):
    """Tells MLflow of an epoch once its checkpoint stands: none is trained again that MLflow has."""

    def __init__(self, record: Record, tracker: Tracker) -> None:
        self.record, self.tracker = record, tracker
        self.told = 0

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        self._tell()  # of epochs before a stop what MLflow lacks

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._tell()

    def _tell(self) -> None:
        for row in self.record.rows[self.told :]:
            self.tracker.log(row["epoch"], {name: value for name, value in row.items() if name != "epoch"})
        self.told = len(self.record.rows)
