"""Callbacks of a training run: when it stops, what progress it shows, and how it records metrics."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.errors import RunError
from trainer.files import atomic_writer
from trainer.metric_names import CLASSWISE, named_by_class
from trainer.models.catalog import find
from trainer.models.defaults import has_recipes
from trainer.runs import Run
from trainer.settings import Settings
from trainer.training.checkpoints import KeepBest
from trainer.training.loggers import Loggers
from trainer.training.module import TrainingModule
from trainer.training.tracking import Tracker

log = logging.getLogger("trainer")


class EvaluateLast(Callback):
    """Evaluates the last epoch whatever the evaluation frequency."""

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class StopAt(Callback):
    """Ends training at a deadline.

    A run that is too slow gets fewer epochs, so that its learning rate still decays to the end; one by the
    reference recipe of a model that has another does not. Any run stops after its first evaluation past the
    deadline.

    Args:
        deadline: in seconds, on rank 0's `time.monotonic` clock.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._wanted = self._epochs = 0
        self._started = 0.0

    def on_sanity_check_end(self, trainer: Trainer, module: Any) -> None:
        if module.metrics:
            self._stop_if_late(trainer, module)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._wanted, self._epochs, self._started = trainer.max_epochs or 0, 0, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        is_evaluated = module.evaluated_epoch == trainer.current_epoch
        spec = module.family.spec
        if module.settings.recipe == "modern" or not has_recipes(find(spec.model, spec.task)):
            self._fit_in_time(trainer, module, least=0 if is_evaluated else 1)
        if is_evaluated:
            self._stop_if_late(trainer, module)

    def _fit_in_time(self, trainer: Trainer, module: Any, least: int) -> None:
        """Train as many more epochs as there is time for, at least `least`, up to what the settings say."""
        now = time.monotonic()
        seconds = (now - self._started) / max(1, self._epochs)
        if not self._epochs:
            self._started = now  # leave out the first epoch, which decodes and caches images
        self._epochs += 1
        more = int((self.deadline - now) / seconds) if seconds else self._wanted
        epochs = min(self._wanted, trainer.current_epoch + 1 + max(least, more))
        epochs = trainer.strategy.broadcast(epochs, src=0)
        if epochs != trainer.max_epochs:
            if not module.timed_out:
                log.info("training about %d of %d epochs, as the time limit allows", epochs, self._wanted)
            trainer.fit_loop.max_epochs = epochs
            module.train_until(epochs)
            loader = trainer.train_dataloader
            assert loader is not None, "an epoch is over"
            loader.sampler.epochs = epochs
        module.timed_out = epochs < self._wanted

    def _stop_if_late(self, trainer: Trainer, module: Any) -> None:
        is_late = time.monotonic() >= self.deadline
        if trainer.strategy.broadcast(is_late, src=0):
            trainer.should_stop = module.timed_out = True
            log.info("stopping: the time limit is reached")


class StopEarly(Callback):
    """Stops training after `patience` evaluations without a new best, not counting those within the delay."""

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
    """Shows a progress bar on a terminal: the epoch's training batches, then its validation batches."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, transient=True)

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self._start(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", trainer.num_training_batches)

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._start("evaluating", sum(batches))

    def on_train_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_sanity_check_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()

    def _start(self, text: str, batches: float) -> None:
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.bar.add_task(text, total=batches)
        self.bar.start()

    def _advance(self) -> None:
        self.bar.advance(self.bar.task_ids[-1])


class LogProgress(Callback):
    """Logs a line every minute within an epoch, to show the progress of long epochs."""

    SECONDS_BETWEEN_LINES = 60.0

    def __init__(self) -> None:
        self.last_line = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.last_line = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if time.monotonic() - self.last_line < self.SECONDS_BETWEEN_LINES or not trainer.is_global_zero:
            return
        self.last_line = time.monotonic()
        total = int(trainer.num_training_batches)
        log.info(
            "epoch %d/%d: %d of %d batches, loss %.4f",
            trainer.current_epoch + 1, trainer.max_epochs, index + 1, total, module.losses["loss"],
        )  # fmt: skip


class RecordMetrics(Callback):
    """Records each epoch's metrics in metrics.csv, metrics_by_class.csv and the log; the probe is epoch 0.

    The files are the only record of earlier epochs: a resumed run reads them, and keeps the epochs up to its
    checkpoint.

    Attributes:
        rows: of metrics.csv, one for each epoch.
        by_class: metrics of single classes: evaluated epoch → class name → metric → value.
    """

    def __init__(self, run: Run, best: KeepBest) -> None:
        self.best = best
        self.file, self.class_file = _Table(run.metrics), _Table(run.class_metrics)
        self.rows: list[dict[str, Any]] = []
        self.by_class: dict[int, dict[str, dict[str, float]]] = {}
        self.start = 0.0

    def on_sanity_check_start(self, trainer: Trainer, module: Any) -> None:
        self.start = time.perf_counter()

    def on_sanity_check_end(self, trainer: Trainer, module: Any) -> None:
        if module.metrics:
            self._record(trainer, module, 0, 0.0, module.metrics)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if trainer.is_global_zero and not self.rows:
            self.rows = self.file.read(trainer.current_epoch)
            for row in self.class_file.read(trainer.current_epoch):
                values = {
                    name: float(v or "nan") for name, v in row.items() if name not in ("epoch", "class")
                }
                self.by_class.setdefault(int(row["epoch"]), {})[row["class"]] = values

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        is_evaluated = module.evaluated_epoch == trainer.current_epoch
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self._record(trainer, module, trainer.current_epoch + 1, rate, module.metrics if is_evaluated else {})

    def _record(
        self, trainer: Trainer, module: TrainingModule, epoch: int, rate: float, metrics: Mapping[str, float]
    ) -> None:
        losses = module.losses_of_all()
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self.start
        row = {
            "epoch": epoch,
            "seconds": round(seconds, 3),
            "learning_rate": rate,
            **{f"train_{name}": value for name, value in losses.items()},
            **metrics,
        }
        self.rows.append(row)
        self.file.add([row])
        if metrics and module.metrics_by_class:
            self.by_class[epoch] = module.metrics_by_class
            rows = [{"epoch": epoch, "class": name, **v} for name, v in module.metrics_by_class.items()]
            self.class_file.add(rows)
        text = f"epoch {epoch}/{trainer.max_epochs}" if epoch else "probe, as epoch 0"
        text += f"  loss {losses['loss']:.4f}"
        primary = self.best.primary_metric
        if metrics:
            value = metrics.get(primary, math.nan)
            text += f"  {primary} {value:.4f} (best {self.best.value:.4f}, epoch {self.best.epoch})"
        log.info("%s  %.1f s", text, seconds)
        others = {
            name: v for name, v in metrics.items() if name != primary and not name.startswith(CLASSWISE)
        }
        if others:
            log.info("    %s", "  ".join(f"{name} {value:.4f}" for name, value in others.items()))


class _Table:
    """A CSV file that grows by an epoch's rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._earlier: list[dict[str, Any]] = []  # read from the file, which may have later epochs, too

    def read(self, epochs: int) -> list[dict[str, Any]]:
        """Read the first epochs as text; nothing if there is no file. `add` then continues from there.

        Raises:
            RunError: the file is damaged.
        """
        self._earlier, self._columns = _read_rows(self.path, epochs), []
        return list(self._earlier)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; rewrite the file if it has other epochs or lacks one of the rows' columns."""
        if self._columns and all(row.keys() <= set(self._columns) for row in rows):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(rows)
            return
        earlier = _read_rows(self.path, None) if self._columns else self._earlier
        rows, self._earlier = [*earlier, *rows], []
        # A column may first appear in a later epoch, with its first evaluation.
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_writer(self.path, newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def _read_rows(path: Path, epochs: int | None) -> list[dict[str, Any]]:
    """Read the first epochs of a file of metrics, or all, as text; nothing if there is no file.

    Raises:
        RunError: it is damaged; an incomplete last line is no damage.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        end = text.rfind("\n") + 1
        if text and not end:
            raise ValueError("it has no complete line")
        whole = StringIO(text[:end], newline="")
        rows = [row for row in csv.DictReader(whole) if epochs is None or int(row["epoch"]) <= epochs]
        for name, value in chain.from_iterable(row.items() for row in rows):
            if name != "class":
                float(value or "nan")
    except (OSError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise RunError(
            f"{path}: is damaged, so the metrics of earlier epochs cannot be read ({type(error).__name__}: "
            f"{error}); restore it, or move it away to resume without them"
        ) from error
    return rows


class TrackMetrics(Callback):
    """Tracks an epoch's metrics once its checkpoint is saved, so that no tracked epoch is trained again."""

    def __init__(self, record: RecordMetrics, tracker: Tracker, loggers: Loggers) -> None:
        self.record, self.tracker, self.loggers = record, tracker, loggers
        self.tracked = 0

    def on_sanity_check_end(self, trainer: Trainer, module: Any) -> None:
        self._track()

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._track()  # epochs from before the run was resumed; the tracker skips those that the server has

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._track()

    def _track(self) -> None:
        for row in self.record.rows[self.tracked :]:
            self.tracker.log(*self._metrics(row))
        for name in self.loggers.by_name:
            for missing in self.loggers.missing(name, self.record.rows):
                self.loggers.log(name, *self._metrics(missing))
        self.tracked = len(self.record.rows)

    def _metrics(self, row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
        """An epoch, and its metrics by name."""
        epoch = int(row["epoch"])
        metrics = {name: float(v) for name, v in row.items() if name != "epoch" and v not in ("", None)}
        # Classes first: a server that has the other metrics of an epoch is taken to have these too.
        return epoch, {**named_by_class(self.record.by_class.get(epoch, {})), **metrics}
