"""`fit`: one job from its data to a packaged model; `resume`: on from where one was stopped."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from torch import nn

from trainer.data.datasets import RecordExamples
from trainer.data.fingerprint import fingerprint
from trainer.data.training_data import load
from trainer.errors import JobError, NoMemoryError, Problem, RunError
from trainer.job.job import Job
from trainer.models import Family, Spec, create, specify
from trainer.models.weights import loading as weights
from trainer.models.weights.choice import NONE
from trainer.models.weights.loading import Loaded
from trainer.models.weights.reading import SPEC_KEY, read_spec
from trainer.runs import Durations, Result, Run
from trainer.settings import Settings
from trainer.training import devices, report_writing, tracking
from trainer.training.batch_size import FindBatchSize
from trainer.training.callbacks import (
    EvaluateLast,
    KeepBest,
    Record,
    SaveCheckpoints,
    SayProgress,
    ShowProgress,
    StopAt,
    StopEarly,
    Track,
)
from trainer.training.evaluation import Evaluation
from trainer.training.loading import Batches
from trainer.training.memory import peak, ran_out_of_memory, reused
from trainer.training.module import SEED_KEY, TrainingModule
from trainer.training.origin import git_commit, library_versions
from trainer.training.packaging import package
from trainer.training.ranks import EndAtOnce, OtherRanks, silenced
from trainer.training.run_log import logging_to, quiet_lightning
from trainer.training.tracker import Tracker

log = logging.getLogger("trainer")

_SEED_OF_ALL = 0
"""Of ranks that begin apart from one another and were given none."""
_RUNS = Path("runs")
_OF_THE_STATE = ("optimizer", "ams_gradient", "layer_decay", "layers_to_freeze", "average_weights")
"""Settings by which a checkpoint holds other tensors; a run cannot go on with others."""


def fit(
    job: Job,
    *,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    packages: bool = True,
    parent_run_id: str | None = None,
    parts: int = 1,
) -> Run:
    """Train a model on the job's data, package the best epoch's, and score the validation data with it.

    Args:
        progress: show how far long work is: bars on a terminal, lines elsewhere.
        callbacks: Lightning's, to be told of the training's course; they come before a checkpoint is written.
        packages: without, the run ends with its checkpoints; of a sweep's trials only the best is packaged.
        parent_run_id: the run in MLflow that this one is below of, a sweep's.
        parts: how many parts each batch is trained in, one after the other, to need less memory. Their
            gradients add up; batch norms see the parts. Validation batches are smaller, too.

    Raises:
        DataError: the data break the schema; all problems at once, before anything is written.
        JobError: a setting is unknown, misplaced or out of range, or more GPUs are asked for than there are.
        WeightsError: the weights to start from are missing or do not fit.
        RunError: the output directory is taken.
        TrainingError: the loss diverged, memory ran out, a checkpoint could not be written, or the process of
            another device ended.
        TrackingError: MLflow does not answer at the start, or does not register the model at the end.
    """
    if job.sweeps:
        raise JobError("the job cannot be run:", [Problem("", "", "is a sweep, which trainer.fit runs")])
    return _Fitting(job, progress, callbacks, packages, parent_run_id=parent_run_id, parts=parts).run(None)


def resume(
    run: Run,
    job: Job,
    *,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    packages: bool = True,
    parent_run_id: str | None = None,
    parts: int = 1,
) -> Run:
    """Go on with a run that was stopped, or train a finished one for more epochs.

    It goes on after the last epoch whose checkpoint was written, with the batches and figures that it would
    have had without the stop, if as many processes load the images. More epochs stretch the learning rate's
    course over the new number.

    Args:
        run: to resume; its directory is the job's output.
        job: the run's own, perhaps with other settings, devices or limits: number_of_epochs for more epochs,
            or a lower learning_rate.

    Raises:
        RunError: the run is being trained at present, or it has finished all of its epochs.
        JobError: also a change of what its checkpoint's state is made for, such as the optimizer.
        Others as `fit`.
    """
    return _Fitting(job, progress, callbacks, packages, parent_run_id=parent_run_id, parts=parts).run(run)


@dataclass
class _Fitting:
    """One training on its way from job to result."""

    job: Job
    progress: bool
    callbacks: Sequence[Callback]
    packages: bool = True
    place: devices.Devices | None = None
    seed: int | None = None
    ready: Callable[[], object] | None = None
    parent_run_id: str | None = None
    parts: int = 1

    def run(self, earlier: Run | None) -> Run:
        """Train in the directory of an earlier run, or in a new one."""
        started = time.perf_counter()
        job = self.job
        self.settings = job.resolve_settings()
        self.devices = self.place or devices.choose(job, self.settings)
        if not self.devices.leads:
            with silenced(self.devices):
                self._assist(earlier)
            sys.exit(0)  # the caller's program goes on once, in the first process
        if earlier is not None:
            _refuse_finished(earlier, self.settings)
            _refuse_other_state(earlier, self.settings)
        directory = earlier.directory if earlier is not None else job.output or _RUNS / "new"
        store = tracking.find(job.tracking_uri, directory)
        if store is not None and not store.is_local:
            store.check(registers=job.register_model is not None)  # now, for reading the data may take long
        with tempfile.TemporaryDirectory() as scratch:
            skipped = Path(scratch) / "skipped.jsonl"
            first_epoch, loaded = self._prepare(earlier, skipped)
            if store is not None:
                store.check(registers=job.register_model is not None)
            # Only what can be trained claims a run's directory.
            run = earlier or _claim(job)
            if skipped.exists():
                shutil.copyfile(skipped, run.skipped)
        with (
            run.lock(),
            logging_to(run.log),
            tracking.start_training(
                store, run, job, self.data, library_versions(), self.parent_run_id
            ) as tracker,
        ):
            self._announce(run, loaded, first_epoch)
            run.write_job(job.to_yaml())
            prepared = time.perf_counter()

            module, best = self._train(run, first_epoch, tracker)
            trained = time.perf_counter()
            if self.packages:
                package(run, self.data, on_gpu=self.devices.gpus)
            ended = time.perf_counter()
            durations = Durations(
                prepare=prepared - started,
                train=trained - prepared - module.evaluation_seconds,
                evaluate=module.evaluation_seconds,
                package=ended - trained,
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
                    timed_out=module.timed_out,
                    durations=durations,
                    model_path=run.model.relative_to(run.directory).as_posix(),
                    metrics=best.metrics,
                    seed=self.settings.random_seed,
                    versions=library_versions(),
                    data_fingerprint=fingerprint(self.data),
                    git_commit=git_commit(),
                    peak_memory=peak(),
                )
            )
            log.info(
                "%s %.4f at epoch %d of %d, in %.0f s",
                job.metric, best.value, best.epoch, module.current_epoch, durations.total,
            )  # fmt: skip
            report_writing.report(run, job, self.data)
            figures = {f"best_{name}": value for name, value in best.metrics.items()}
            tracker.log(best.epoch, {**figures, "best_epoch": best.epoch})
            if self.packages:
                tracker.tag({"model_path": str(run.model.absolute())})
                if job.register_model is not None:
                    tracker.register(job.register_model, run.model)
        return run

    def _assist(self, earlier: Run | None) -> None:
        """What a rank other than the first does: it trains, and writes nothing."""
        with tempfile.TemporaryDirectory() as scratch:
            first_epoch, _ = self._prepare(earlier, Path(scratch) / "skipped.jsonl")
            self._train(earlier or Run(Path(scratch)), first_epoch)

    def _prepare(self, earlier: Run | None, skipped: Path) -> tuple[int, Loaded | None]:
        """Load the data and make the network: the epoch to begin with, from 0, and the weights loaded."""
        job = self.job
        checkpoint = _read_checkpoint(earlier) if earlier is not None else None
        if checkpoint is not None:
            self.seed = checkpoint[SEED_KEY]
        elif self.seed is None:
            self.seed = _seed(self.settings, self.devices)
        self.data = load(
            job.task,
            job.training_data,
            job.validation_data,
            validation_size=job.validation_data_size,
            seed=self.settings.random_seed or 0,
            datastores=job.datastores,
            skip_invalid=job.skip_invalid,
            skipped_path=skipped,
            # The images of a machine are looked at once, unless what is found decides what is left out.
            check_images=self.devices.local_rank == 0 or job.skip_invalid,
            progress=self.progress and self.devices.leads,
        )
        seed_everything(self.seed, workers=True, verbose=False)
        loaded = self._make_network(checkpoint)
        return (0 if checkpoint is None else checkpoint["epoch"] + 1), loaded

    def _make_network(self, checkpoint: Mapping[str, Any] | None) -> Loaded | None:
        job, choice = self.job, self.job.weights_choice
        spec = specify(job.task, job.model_name, self.settings, self.data.classes, pretrained=choice != NONE)
        if checkpoint is not None and _other_network(checkpoint[SPEC_KEY], spec, job):
            raise RunError(
                f"{job.output}: its checkpoint is of another network, or of data with other classes; "
                "start a new run, from its weights by --weights if that is meant"
            )
        self.family: Family = create(spec)
        network = self.family.build()
        loaded = None
        if checkpoint is None and self.devices.leads:  # the other ranks are given what the first one has
            loaded = weights.load(network, job.model_name, self.family.published(), choice, spec)
        if self.settings.sync_batch_norm and self.devices.ranks > 1:
            network = self.family.sync_batch_norms(network)
        self.network: nn.Module = network.to(memory_format=torch.channels_last)
        return loaded

    def _announce(self, run: Run, loaded: Loaded | None, first_epoch: int) -> None:
        data = self.data
        for warning in data.warnings:
            log.warning("%s", warning)
        if data.skipped:
            log.warning("%d invalid records are left out; %s says which and why", data.skipped, run.skipped)
        log.info(
            "training %s for %s: %d training and %d validation images, %d classes",
            self.job.model_name, self.job.task, len(data.train), len(data.validation), len(data.classes),
        )  # fmt: skip
        if self.devices.ranks > 1:
            log.info("training on %s", self.devices)
        if self.devices.apart and self.settings.random_seed is None and not first_epoch:
            log.info("random_seed: %d, since ranks that begin apart could not agree on another", self.seed)
        if first_epoch:
            log.info("going on from %s after epoch %d", run.last_checkpoint, first_epoch)
        else:
            log.info("weights: %s", loaded or "none, training from scratch")
        if self.parts > 1:
            log.info("every batch is trained in %d parts, whose gradients are added up", self.parts)
        log.info("run directory: %s", run.directory)

    def _train(
        self, run: Run, first_epoch: int, tracker: Tracker | None = None
    ) -> tuple[TrainingModule, KeepBest]:
        settings = self.settings
        assert self.seed is not None, "it is prepared"
        # A tile is a part of the image, which then needs all of its pixels.
        tiled = settings.tile_grid_size is not None
        short_side = None if tiled else self.family.short_side(settings)
        training = RecordExamples(self.data.train, self.data.classes)
        cache = 0 if self.family.images_at_hand(settings) else settings.image_cache_megabytes * 2**20
        reduced = RecordExamples(self.data.train, self.data.classes, short_side, cache, quickly=True)
        validation = RecordExamples(self.data.validation, self.data.classes)
        batches = Batches(
            self.family, reduced, validation, settings, self.seed, first_epoch, self.parts, training
        )
        if tiled:
            tiles = len(batches.training) - len(training)
            log.info("tile_grid_size %s: training on %d tiles as well", settings.tile_grid_size, tiles)
        targets = [validation.targets, training.targets][: len(batches.scored)]
        evaluations = [Evaluation(self.family, of, settings) for of in targets]
        module = TrainingModule(self.family, self.network, evaluations, settings, self.seed, self.parts)
        best = KeepBest(self.job.metric)
        keeping = nullcontext() if self.devices.gpus else reused()
        with quiet_lightning(), OtherRanks(self.devices, run.directory) as others, keeping:
            if self.ready is not None:
                self.ready()
            else:
                others.start(
                    _follow, self.job, run if first_epoch else None, self.callbacks, self.seed, self.parts
                )
            trainer = Trainer(
                **others.devices.options(),
                max_epochs=settings.number_of_epochs,
                check_val_every_n_epoch=settings.evaluation_frequency,
                callbacks=self._callbacks(run, best, batches, tracker),
                default_root_dir=run.directory,
                num_sanity_val_steps=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            try:
                trainer.fit(module, batches, ckpt_path=run.last_checkpoint if first_epoch else None)
            except SystemExit as error:
                # Lightning's answer to Ctrl-C, after it has ended its processes.
                raise KeyboardInterrupt from error
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0] or "the machine's"
                raise NoMemoryError(
                    f"memory ran out: {reason}. Lower validation_batch_size "
                    f"({settings.validation_batch_size}) or the image size"
                ) from error
        return module, best

    def _callbacks(
        self, run: Run, best: KeepBest, batches: Batches, tracker: Tracker | None
    ) -> list[Callback]:
        """In the order in which they hear of an epoch's end; a checkpoint holds what those before it made."""
        settings = self.settings
        callbacks: list[Callback] = []
        if self.progress and self.devices.leads:
            # The bar ends its epoch before the line on it is written.
            callbacks.append(ShowProgress() if sys.stdout.isatty() else SayProgress())
        if settings.training_batch_size == "auto" and not batches.first_epoch:
            callbacks.append(FindBatchSize(batches))
        record = Record(run.metrics, best)
        callbacks += [EndAtOnce(), EvaluateLast(), best, record]
        if settings.early_stopping:
            callbacks.append(StopEarly(best, settings))
        if self.job.limits.timeout_minutes is not None:
            callbacks.append(StopAt(time.monotonic() + 60 * self.job.limits.timeout_minutes))
        callbacks += [*self.callbacks, SaveCheckpoints(run, best, settings.checkpoint_frequency)]
        return callbacks if tracker is None else [*callbacks, Track(record, tracker)]


def _refuse_finished(run: Run, settings: Settings) -> None:
    """
    Raises:
        RunError: the run has its result, and no more epochs are asked for than it was made with; if its time
            limit ended it, than it has.
    """
    if not run.result.exists():
        return
    result = run.read_result()
    if result.timed_out and settings.number_of_epochs > result.epochs:
        return
    before = _settings_of(run).number_of_epochs
    if settings.number_of_epochs <= before:
        raise RunError(
            f"{run.directory}: has finished, after {result.epochs} of {before} epochs; "
            f"--number-of-epochs over {before} trains it for more"
        )


def _refuse_other_state(run: Run, settings: Settings) -> None:
    """
    Raises:
        JobError: settings that the checkpoint's weights or its optimizer's state do not fit.
    """
    if not run.last_checkpoint.exists():
        return  # it begins anew
    before = _settings_of(run)
    hint = f"leave it out, or start a new run, from this one's weights by --weights {run.directory}"
    problems = [
        Problem(name, "", f"must stay what the run was begun with, {getattr(before, name)}", str(value), hint)
        for name in _OF_THE_STATE
        if (value := getattr(settings, name)) != getattr(before, name)
    ]
    if problems:
        raise JobError(f"{run.directory} cannot go on like this:", problems)


def _settings_of(run: Run) -> Settings:
    return Job.read(run.job).resolve_settings()


def _read_checkpoint(run: Run) -> dict[str, Any] | None:
    """The run's last checkpoint, None if it was stopped before its first.

    Raises:
        RunError: it cannot be read.
    """
    try:
        checkpoint = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise RunError(f"{run.last_checkpoint}: cannot be read: {error}") from error
    if SEED_KEY not in checkpoint or SPEC_KEY not in checkpoint:
        raise RunError(f"{run.last_checkpoint}: is not a checkpoint that this version can go on from")
    return {key: checkpoint[key] for key in (SEED_KEY, SPEC_KEY, "epoch")}


def _other_network(kept: str, spec: Spec, job: Job) -> bool:
    """A checkpoint's spec differs from what is trained now; how it is exported one day is no difference."""
    then = read_spec(kept, Path(str(job.output)))
    then = then.model_copy(update={"enable_onnx_normalization": spec.enable_onnx_normalization})
    return then.model_dump_json() != spec.model_dump_json()


def _follow(
    place: devices.Devices,
    ready: Callable[[], object],
    job: Job,
    earlier: Run | None,
    callbacks: Sequence[Callback],
    seed: int,
    parts: int,
) -> None:
    """Another rank's training, in a process that the first one on its machine started."""
    _Fitting(job, False, callbacks, place=place, seed=seed, ready=ready, parts=parts).run(earlier)


def _seed(settings: Settings, place: devices.Devices) -> int:
    """The job's seed, or one drawn now; every rank comes to the same, or is told by the first."""
    if settings.random_seed is not None:
        return settings.random_seed
    return _SEED_OF_ALL if place.apart else time.time_ns() % 2**31


def _claim(job: Job) -> Run:
    if job.output is not None:
        return Run.create_at(job.output)
    return Run.create(_RUNS, job.name or f"{job.task}-{job.model_name}")
