"""`fit`: one job from its data to a packaged model."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from torch import nn

from serving.answers import to_answer
from serving.package import write_model
from trainer.data.checking import Data, load
from trainer.data.datasets import RecordExamples
from trainer.errors import JobError, Problem
from trainer.job import Job
from trainer.models import Family, create, specify, weights
from trainer.models.weights import Loaded
from trainer.models.weights_choice import NONE
from trainer.runs import Durations, Result, Run
from trainer.settings import Settings
from trainer.training.callbacks import EvaluateLast, KeepBest, Record, SayProgress, ShowProgress, StopEarly
from trainer.training.loading import Batches
from trainer.training.module import TrainingModule

log = logging.getLogger("trainer")

_RUN_VARIABLE = "TRAINER_RUN_DIRECTORY"
"""Tells the processes of the other GPUs which directory the first one claimed."""
_SEED_VARIABLE = "TRAINER_SEED"
_LIBRARIES = ("torch", "torchvision", "lightning", "timm", "ultralytics", "mlflow", "numpy")


def fit(job: Job, *, progress: bool = False) -> Run:
    """Train a model on the job's data, package the best epoch's, and score the validation data with it.

    Args:
        progress: show how far long work is: bars on a terminal, lines elsewhere.

    Raises:
        DataError: the data break the schema; all problems at once, before anything is written.
        JobError: a setting is unknown, misplaced or out of range, or more GPUs are asked for than there are.
        WeightsError: the weights to start from are missing or do not fit.
        RunError: the output directory is taken.
        TrainingError: the loss diverged.
    """
    started = time.perf_counter()
    settings = job.resolve_settings()
    devices = _devices(job, settings)
    seed = _seed(settings)
    with tempfile.TemporaryDirectory() as scratch:
        skipped = Path(scratch) / "skipped.jsonl"
        data = load(
            job.task,
            job.training_data,
            job.validation_data,
            validation_size=job.validation_data_size,
            seed=settings.random_seed or 0,
            datastores=job.datastores,
            skip_invalid=job.skip_invalid,
            skipped_path=skipped,
            progress=progress and _leads(),
        )
        seed_everything(seed, workers=True, verbose=False)
        family, network, loaded = _network(job, settings, data)
        # Only what can be trained claims a run's directory.
        run = _claim(job)
        if not _leads():
            _train(job, run, settings, devices, data, family, network, seed, progress=False)
            sys.exit(0)  # the caller's program goes on once, in the first process
        if skipped.exists():
            shutil.copyfile(skipped, run.skipped)
    with _logging_to(run.log):
        _announce(job, data, run, loaded)
        run.job.write_text(job.to_yaml(), encoding="utf-8")
        prepared = time.perf_counter()

        module, best = _train(job, run, settings, devices, data, family, network, seed, progress)
        trained = time.perf_counter()
        _load_best(module, run)
        _write_predictions(run, module.scored, family, data)
        evaluated = time.perf_counter()
        write_model(run.model, family.spec, module.scored)
        ended = time.perf_counter()
        durations = Durations(
            prepare=prepared - started,
            train=trained - prepared - module.evaluation_seconds,
            evaluate=module.evaluation_seconds + evaluated - trained,
            package=ended - evaluated,
            total=ended - started,
        )
        run.write_result(
            Result(
                task=job.task,
                model=job.model_name,
                primary_metric=job.metric,
                value=best.value,
                best_epoch=best.epoch,
                epochs=module.current_epoch,
                durations=durations,
                model_path=run.model.relative_to(run.directory).as_posix(),
                metrics=best.metrics,
                seed=settings.random_seed,
                versions=_versions(),
            )
        )
        log.info(
            "%s %.4f at epoch %d of %d, in %.0f s",
            job.metric, best.value, best.epoch, module.current_epoch, durations.total,
        )  # fmt: skip
    return run


def _leads() -> bool:
    """Whether this is the job's first process, which alone speaks and writes."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _seed(settings: Settings) -> int:
    """The job's seed or one drawn now; the processes of the other devices take over that of the first."""
    if settings.random_seed is not None:
        return settings.random_seed
    if not _leads():
        return int(os.environ[_SEED_VARIABLE])
    seed = time.time_ns() % 2**31
    os.environ[_SEED_VARIABLE] = str(seed)
    return seed


def _versions() -> dict[str, str]:
    """Those of the libraries that are installed: ultralytics need not be."""
    installed = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def _devices(job: Job, settings: Settings) -> dict[str, Any]:
    """Lightning's accelerator, devices, strategy and precision."""
    there = torch.cuda.device_count()
    if job.processes:
        strategy = "ddp" if job.processes > 1 else "auto"
        return {"accelerator": "cpu", "devices": job.processes, "strategy": strategy}
    wanted = there if job.gpus == "auto" else job.gpus
    if wanted > there:
        got = f"{wanted}, but this machine has {there or 'none'}"
        hint = f"ask for at most {there}" if there else "leave --gpus out to train on the CPU"
        raise JobError("the job cannot be run:", [Problem("--gpus", "", "asks for too many", got, hint)])
    if not wanted:
        return {"accelerator": "cpu", "devices": 1}
    precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    count = wanted if settings.distributed else 1
    strategy = "ddp" if count > 1 else "auto"
    return {"accelerator": "gpu", "devices": count, "strategy": strategy, "precision": precision}


def _claim(job: Job) -> Run:
    if not _leads():
        return Run.open(Path(os.environ[_RUN_VARIABLE]))
    if job.output is not None:
        run = Run.create_at(job.output)
    else:
        run = Run.create(Path("runs"), job.name or f"{job.task}-{job.model_name}")
    os.environ[_RUN_VARIABLE] = str(run.directory.resolve())
    return run


def _announce(job: Job, data: Data, run: Run, loaded: Loaded | None) -> None:
    for warning in data.warnings:
        log.warning("%s", warning)
    if data.skipped:
        log.warning("%d invalid records are left out; %s says which and why", data.skipped, run.skipped)
    log.info(
        "training %s for %s: %d training and %d validation images, %d classes",
        job.model_name, job.task, len(data.train), len(data.validation), len(data.classes),
    )  # fmt: skip
    log.info("weights: %s", loaded or "none, training from scratch")
    log.info("run directory: %s", run.directory)


def _network(job: Job, settings: Settings, data: Data) -> tuple[Family, nn.Module, Loaded | None]:
    choice = job.weights_choice
    spec = specify(job.task, job.model_name, settings, data.classes, pretrained=choice != NONE)
    family = create(spec)
    network = family.build()
    loaded = weights.load(network, job.model_name, family.published(), choice, spec)
    return family, network.to(memory_format=torch.channels_last), loaded


def _train(
    job: Job,
    run: Run,
    settings: Settings,
    devices: dict[str, Any],
    data: Data,
    family: Family,
    network: nn.Module,
    seed: int,
    progress: bool,
) -> tuple[TrainingModule, KeepBest]:
    validation = RecordExamples(data.validation, data.classes)
    batches = Batches(family, RecordExamples(data.train, data.classes), validation, settings, seed)
    module = TrainingModule(family, network, validation.truths, settings)
    best = KeepBest(run, job.metric, settings.checkpoint_frequency)
    shown: list[Callback] = []
    if progress:
        shown = [ShowProgress()] if sys.stdout.isatty() else [SayProgress()]
    # The bar ends its epoch before the line on it is written.
    callbacks = [*shown, EvaluateLast(), best, Record(run.metrics, best)]
    if settings.early_stopping:
        callbacks.append(StopEarly(best, settings))
    clips_norm = settings.gradient_clip_norm is not None
    with _quiet_lightning():
        trainer = Trainer(
            **devices,
            max_epochs=settings.number_of_epochs,
            accumulate_grad_batches=settings.gradient_accumulation_step,
            check_val_every_n_epoch=settings.evaluation_frequency,
            gradient_clip_val=settings.gradient_clip_norm if clips_norm else settings.gradient_clip_value,
            gradient_clip_algorithm="norm" if clips_norm else "value",
            callbacks=callbacks,
            default_root_dir=run.directory,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(module, batches)
        except SystemExit as error:
            # Lightning's answer to Ctrl-C, after it has ended its processes.
            raise KeyboardInterrupt from error
    return module, best


def _load_best(module: TrainingModule, run: Run) -> None:
    checkpoint = torch.load(run.best_checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    module.scored.eval()


def _write_predictions(run: Run, network: nn.Module, family: Family, data: Data) -> None:
    """The validation answers of the packaged network, in the schema, in the data's order."""
    examples = RecordExamples(data.validation, data.classes)
    points = family.spec.parameters.max_number_of_polygon_points
    with run.predictions.open("w", encoding="utf-8") as file, torch.inference_mode():
        for index in range(len(examples)):
            prediction = family.predict(network, [examples[index].image])[0]
            answer = to_answer(prediction, family.spec.classes, points)
            line = {"image_url": data.validation.image_url(index), **answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Everything that is said about the run also goes into its own log."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    except KeyboardInterrupt:
        log.warning("interrupted; %s holds what was reached", path.parent)
        raise
    except Exception:
        log.debug("the run failed", exc_info=True)  # for the file; the caller shows the error itself
        raise
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice on settings that are decided here stays unsaid."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
