"""Trains all epochs of a run, on one of its ranks."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from lightning import Callback, Trainer

from trainer.data.datasets import RecordExamples
from trainer.data.fingerprint import summarise
from trainer.errors import NoMemoryError
from trainer.job.job import Job
from trainer.models.catalog import find
from trainer.models.precision import float32_products
from trainer.runs import Run
from trainer.settings import Settings
from trainer.training.batch_size import FindBatchSize
from trainer.training.callbacks import (
    EvaluateLast,
    LogProgress,
    RecordMetrics,
    ShowProgress,
    StopAt,
    StopEarly,
    TrackMetrics,
)
from trainer.training.checkpoints import KeepBest, SaveCheckpoints
from trainer.training.devices import Devices
from trainer.training.evaluation import Evaluation, evaluation_size
from trainer.training.loading import Batches
from trainer.training.loggers import Loggers
from trainer.training.memory import keep_freed_memory, ran_out_of_memory
from trainer.training.module import TrainingModule
from trainer.training.prepare import Plan, Prepared, prepare
from trainer.training.probe import ProbeFirst
from trainer.training.rank_process import silenced
from trainer.training.ranks import EndOnSigterm, OtherRanks
from trainer.training.run_log import quiet_lightning
from trainer.training.tracking import Tracker
from trainer.training.user_callbacks import make_callbacks

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Trained:
    """The outcome of training.

    Attributes:
        directory: of the run; rank 0 sends it to the others.
        epochs: number of epochs trained, including those before the run was resumed.
        best: the best epoch and its metrics.
        timed_out: a time limit ended training.
        evaluation_seconds: time spent in evaluations.
    """

    directory: Path
    epochs: int
    best: KeepBest
    timed_out: bool
    evaluation_seconds: float


def train(
    plan: Plan,
    prepared: Prepared,
    run: Run,
    best: KeepBest,
    *,
    tracker: Tracker | None = None,
    ready: Callable[[], object] | None = None,
) -> Trained:
    """Train on this rank. Rank 0 starts the other ranks of its machine, and writes the run.

    Args:
        best: keeps the best epoch.
        ready: for a rank that rank 0 started; called once training can start.

    Raises:
        TrainingError: see `trainer.training.fit.fit`.
    """
    settings = plan.settings
    batches, module = _batches_and_module(plan, prepared)
    checkpoint = run.last_checkpoint if prepared.checkpoint else None
    with (
        quiet_lightning(),
        Loggers(plan.job, run, is_rank_zero=plan.devices.is_rank_zero) as loggers,
        OtherRanks(plan.devices, run.directory) as others,
        nullcontext() if plan.devices.gpus else keep_freed_memory(),
    ):
        if ready is not None:
            ready()
            devices = plan.devices
        else:
            earlier = run if checkpoint else None
            devices = others.start(assist, replace(plan, earlier=earlier, seed=prepared.seed, progress=False))
        trainer = Trainer(
            **devices.options(plan.job.precision),
            max_epochs=settings.number_of_epochs,
            check_val_every_n_epoch=settings.evaluation_frequency,
            callbacks=_callbacks(plan, prepared, run, best, batches, tracker, loggers),
            default_root_dir=run.directory,
            num_sanity_val_steps=-1 if prepared.probes else 0,
            logger=list(loggers.by_name.values()) or False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            benchmark=plan.devices.gpus and prepared.family.has_one_size and not settings.multi_scale,
        )
        try:
            trainer.fit(module, batches, ckpt_path=checkpoint)
        except SystemExit as error:
            # Lightning exits on Ctrl-C, after it has ended its processes.
            raise KeyboardInterrupt from error
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or "the machine's"
            advice = settings_to_lower(plan.job, settings)
            raise NoMemoryError(f"memory ran out: {reason}. Lower {advice}") from error
        directory = trainer.strategy.broadcast(run.directory, src=0)
    return Trained(directory, module.current_epoch, best, module.timed_out, module.evaluation_seconds)


def settings_to_lower(job: Job, settings: Settings) -> str:
    """The settings of the model that decide how much memory an evaluation takes, with their values."""
    size = evaluation_size(find(job.model_name, job.task))
    names = ["validation_batch_size"] if settings.validation_batch_size > 1 else []
    return " or ".join(f"{name} ({getattr(settings, name)})" for name in (*names, size))


def assist(devices: Devices, ready: Callable[[], object] | None, plan: Plan) -> Path:
    """Train as a rank other than 0, which writes nothing. Returns the run's directory.

    Args:
        devices: with this process's rank.
        ready: see `train`.
    """
    plan = replace(plan, devices=devices)
    with (
        silenced(devices),
        float32_products(plan.job.precision, on_gpu=devices.gpus),
        tempfile.TemporaryDirectory() as scratch,
    ):
        prepared = prepare(plan, Path(scratch) / "skipped.jsonl")
        plan = prepared.plan
        run, best = plan.earlier or Run(Path(scratch)), KeepBest(plan.job.metric)
        return train(plan, prepared, run, best, ready=ready).directory


def _batches_and_module(plan: Plan, prepared: Prepared) -> tuple[Batches, TrainingModule]:
    settings, data, family, seed = plan.settings, prepared.data, prepared.family, prepared.seed
    is_tiled = settings.tile_grid_size is not None
    # Tiles are cut from the full image, and a user's transforms count its pixels: do not decode it smaller.
    short_side = None if is_tiled or prepared.augment else family.short_side(settings)
    cache_bytes = 0 if family.cached_images(settings) else settings.image_cache_megabytes * 2**20
    reduced = RecordExamples(data.train, data.classes, short_side, cache_bytes, quickly=True)
    training = RecordExamples(data.train, data.classes)
    validation = RecordExamples(data.validation, data.classes)
    batches = Batches(
        family, reduced, validation, settings, seed, prepared.first_epoch, plan.micro_batches, training,
        prepared.augment,
    )  # fmt: skip
    if is_tiled:
        tiles = len(batches.training) - len(training)
        log.info("tile_grid_size %s: training on %d tiles, too", settings.tile_grid_size, tiles)
    targets = [validation.targets, training.targets][: len(batches.scored)]
    evaluations = [Evaluation(family, each, settings) for each in targets]
    return batches, TrainingModule(family, prepared.network, evaluations, settings, seed, plan.micro_batches)


def _callbacks(
    plan: Plan,
    prepared: Prepared,
    run: Run,
    best: KeepBest,
    batches: Batches,
    tracker: Tracker | None,
    loggers: Loggers,
) -> list[Callback]:
    """The callbacks in calling order: a checkpoint holds the state of those before `SaveCheckpoints`."""
    settings = plan.settings
    callbacks: list[Callback] = []
    if plan.progress:
        # First, so that the bar is gone before the epoch's line is written.
        callbacks.append(ShowProgress() if sys.stdout.isatty() else LogProgress())
    if settings.training_batch_size == "auto" and not batches.first_epoch:
        callbacks.append(FindBatchSize(batches))
    record = RecordMetrics(run, best)
    callbacks += [EndOnSigterm(), EvaluateLast(), best, record]
    if prepared.probes:
        has_trained_head = prepared.weights is not None and prepared.weights.has_trained_head
        callbacks.append(ProbeFirst(batches, has_trained_head=has_trained_head, progress=plan.progress))
    if settings.early_stopping:
        callbacks.append(StopEarly(best, settings))
    if plan.job.limits.timeout_minutes is not None:
        callbacks.append(StopAt(time.monotonic() + 60 * plan.job.limits.timeout_minutes))
    save = SaveCheckpoints(run, best, settings.checkpoint_frequency, summarise(prepared.data))
    callbacks += [*plan.callbacks, *make_callbacks(plan.job), save]
    return callbacks if tracker is None else [*callbacks, TrackMetrics(record, tracker, loggers)]
