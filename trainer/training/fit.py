"""`fit` trains, packages and reports a single run, a new one or one that it resumes."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback

from trainer.data.fingerprint import changes, fingerprint
from trainer.data.quality.finding import counted
from trainer.data.training_data import Data
from trainer.errors import JobError, Problem, RunError
from trainer.job.job import Job
from trainer.metric_names import WHY_UNDEFINED
from trainer.models.catalog import find
from trainer.models.defaults import has_recipes, without_effect
from trainer.models.precision import float32_products
from trainer.runs import Durations, Result, Run, best_of
from trainer.settings import Settings
from trainer.training import tracking
from trainer.training.checkpoints import KeepBest
from trainer.training.devices import check_cuda, choose_devices
from trainer.training.memory import peak_memory
from trainer.training.mlflow_store import Store
from trainer.training.origin import git_commit, library_versions
from trainer.training.packaging import package
from trainer.training.prepare import Plan, Prepared, prepare
from trainer.training.report_writing import report
from trainer.training.resume import check_resumable, settle
from trainer.training.run_log import logging_to
from trainer.training.train import Trained, assist, train

log = logging.getLogger("trainer")

_RUNS = Path("runs")


def fit(
    job: Job,
    *,
    earlier: Run | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    packages: bool = True,
    parent_run_id: str | None = None,
    micro_batches: int = 1,
) -> Run:
    """Train a model on the job's data, package the best epoch's weights, and score the validation data.

    Resuming continues after the last epoch that has a checkpoint, with the batches and metrics of an
    uninterrupted run if the number of loader processes is the same. More epochs stretch the learning-rate
    schedule over the new number.

    If torchrun or srun starts the processes, each of them calls `fit` and gets the run. Rank 0 writes it. The
    others return when training ends, with `Run.is_rank_zero` false, while rank 0 still packages.

    Args:
        job: for a resumed run its own, perhaps with other settings, devices or limits, and with the run's
            directory as output.
        earlier: the run to resume: one that was stopped, or a finished one if the job has more epochs.
        progress: show the progress of long work: bars on a terminal, log lines elsewhere.
        callbacks: Lightning's; they are called before a checkpoint is saved.
        packages: package the model; without, the run ends with its checkpoints. Of a sweep's trials, only the
            best is packaged.
        parent_run_id: the run in MLflow that becomes the parent, a sweep's.
        micro_batches: split each batch into this many micro-batches with accumulated gradients, to save
            memory. Batch norms see the micro-batches. Validation batches are split, too.

    Raises:
        DataError: the data break the schema; lists all problems, before anything is written.
        JobError: a setting is unknown, misplaced or out of range, there are fewer GPUs than asked for, or a
            setting that shapes the checkpoint has changed, such as the optimizer.
        WeightsError: the weights to start from are missing or do not fit.
        RunError: the output directory is taken, another process is training the run, or no epochs are left.
        TrainingError: the loss diverged, memory ran out, a checkpoint could not be written, or another rank
            ended.
        TrackingError: MLflow does not answer at the start, or does not register the model at the end.
    """
    if job.sweeps:
        raise JobError("the job cannot be run:", [Problem("", "", "is a sweep; use trainer.fit")])
    settings = job.resolve_settings()
    devices = choose_devices(job, settings)
    if devices.gpus:
        check_cuda(devices.local_rank)
    plan = Plan(
        job, settings, devices, earlier, progress and devices.is_rank_zero,
        callbacks, packages, parent_run_id, micro_batches,
    )  # fmt: skip
    if devices.is_rank_zero:
        with float32_products(job.precision, on_gpu=devices.gpus):
            return _lead(plan)
    return Run(assist(devices, None, plan), is_rank_zero=False)


def _lead(plan: Plan) -> Run:
    """Train, package and report as rank 0."""
    start = time.perf_counter()
    if plan.earlier is not None:
        check_resumable(plan.earlier, plan.settings)
    directory = plan.earlier.directory if plan.earlier is not None else plan.job.output or _RUNS / "new"
    store = tracking.find(plan.job.tracking_uri, directory)
    run, prepared = _prepare(plan, store)
    plan = prepared.plan
    job = plan.job.with_augmentation_in(run.directory)
    data, versions = prepared.data, library_versions()
    parameters = _parameters(job, data)
    tags = {"model": job.model_name, **tracking.tags_of(job, data, versions)}
    with (
        run.full_disk_told(),
        run.lock(),
        _logging(plan, prepared, run),
        tracking.start(store, run.directory, job, parameters, tags, plan.parent_run_id) as tracker,
    ):
        best = _best_so_far(plan, prepared)
        run.write_job(job.to_yaml(run.directory))
        prepared_at = time.perf_counter()
        trained = train(plan, prepared, run, best, tracker=tracker)
        trained_at = time.perf_counter()
        calibration = None
        if plan.packages:
            calibration = package(run, data, on_gpu=plan.devices.gpus, calibrate=job.calibrate)
        end = time.perf_counter()
        durations = Durations(
            prepare=prepared_at - start,
            train=trained_at - prepared_at - trained.evaluation_seconds,
            evaluate=trained.evaluation_seconds,
            package=end - trained_at,
            total=end - start,
        )
        result = _result(plan, run, data, trained, durations, versions)
        if calibration is not None:
            result = result.model_copy(update={"calibration": calibration.summary()})
        run.write_result(result)
        best = trained.best
        log.info(
            "best epoch: %s, %s %.4f on the validation images; took %.0f s",
            best_of(best.epoch, trained.epochs), job.metric, best.value, durations.total,
        )  # fmt: skip
        if best.is_undefined:
            log.warning(
                "%s was undefined in every evaluation, so it chose no epoch: %s", job.metric, WHY_UNDEFINED
            )
        report(run, job, data, calibration)
        best_metrics = {f"best_{name}": value for name, value in best.metrics.items()}
        tracker.log(best.epoch, {**best_metrics, "best_epoch": best.epoch})
        if plan.packages:
            tracker.tag({"model_path": str(run.model.absolute())})
            tracker.publish(run.model, register_as=job.register_model)
    return run


def _prepare(plan: Plan, store: Store | None) -> tuple[Run, Prepared]:
    """Prepare training, then claim the run's directory, so that a bad job leaves nothing behind."""
    registers = plan.job.register_model is not None
    if store is not None and not store.is_local:
        store.check(registers=registers)  # first, because reading the data may take long
    with tempfile.TemporaryDirectory() as scratch:
        skipped = Path(scratch) / "skipped.jsonl"
        prepared = prepare(plan, skipped)
        if store is not None:
            store.check(registers=registers)
        run = plan.earlier or _claim(plan.job)
        if skipped.exists():
            shutil.copyfile(skipped, run.skipped)
    return run, prepared


def _parameters(job: Job, data: Data) -> dict[str, Any]:
    """What MLflow shows as the run's parameters."""
    return {
        "primary_metric": job.metric,
        **job.to_dict()["training_parameters"],
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "classes": len(data.classes),
    }


def _result(
    plan: Plan, run: Run, data: Data, trained: Trained, durations: Durations, versions: Mapping[str, str]
) -> Result:
    return Result(
        task=plan.job.task,
        model=plan.job.model_name,
        primary_metric=plan.job.metric,
        value=trained.best.value,
        best_epoch=trained.best.epoch,
        best_epoch_chosen_on=counted(len(data.validation), "validation image"),
        epochs=trained.epochs,
        timed_out=trained.timed_out,
        durations=durations,
        model_path=run.model.relative_to(run.directory).as_posix(),
        metrics=trained.best.metrics,
        seed=plan.settings.random_seed,
        versions=dict(versions),
        data_fingerprint=fingerprint(data),
        git_commit=git_commit(),
        peak_memory=peak_memory(),
    )


def _claim(job: Job) -> Run:
    if job.output is not None:
        return Run.create_at(job.output)
    return Run.create(_RUNS, job.name or f"{job.task}-{job.model_name}")


def _best_so_far(plan: Plan, prepared: Prepared) -> KeepBest:
    """Settle which checkpoints a resumed run continues with, and say what is not as it was.

    Raises:
        RunError: no epoch is left to train, and the best one's checkpoint is damaged.
    """
    checkpoint = prepared.checkpoint
    if checkpoint is None:
        return KeepBest(plan.job.metric)
    if checkpoint.damage:
        log.warning(
            "%s; resuming from %s instead, so the epochs after %d are trained again",
            checkpoint.damage, checkpoint.file.name, prepared.first_epoch,
        )  # fmt: skip
    if changed := changes(checkpoint.data, prepared.data):
        log.warning(
            "the data have changed since the run's last epoch: %s. Metrics of earlier epochs are of the data "
            "as they were; for comparable ones, start a new run", changed,
        )  # fmt: skip
    has_best = settle(checkpoint)
    if not has_best:
        lost = f"{checkpoint.run.best_checkpoint}: epoch {checkpoint.best_epoch}, the best so far, is damaged"
        if prepared.first_epoch >= plan.settings.number_of_epochs:
            more = f"--number-of-epochs over {prepared.first_epoch}"
            raise RunError(f"{lost}, and no epoch is left to find another; resume with {more}")
        log.warning("%s; the best epoch is chosen from those after %d", lost, prepared.first_epoch)
    return KeepBest(plan.job.metric, starts_anew=not has_best)


def _recipe_in_words(settings: Settings) -> str:
    """The recipe and how to get the other, with a place for the number of training images."""
    if settings.recipe == "modern":
        return "recipe: modern, for %d training images; --recipe reference has Azure AutoML's defaults"
    return "recipe: reference, Azure AutoML's defaults; --recipe modern fits its own to %d training images"


@contextmanager
def _logging(plan: Plan, prepared: Prepared, run: Run) -> Iterator[None]:
    """Log to the run's file, beginning with what it trains, the recipe first."""
    with logging_to(run.log):
        _log_start(plan, prepared, run)
        yield


def _log_start(plan: Plan, prepared: Prepared, run: Run) -> None:
    data, devices = prepared.data, plan.devices
    if has_recipes(find(plan.job.model_name, plan.job.task)):
        log.info(_recipe_in_words(plan.settings), len(data.train))
    for note in plan.job.without_effect():
        log.warning(note)
    data.log_findings(run.skipped)
    log.info("run directory: %s", run.directory)
    backbone = plan.settings.backbone
    model = plan.job.model_name + (f" on {backbone}" if backbone else "")
    log.info(
        "training %s for %s: %d training and %d validation images, %d classes",
        model, plan.job.task, len(data.train), len(data.validation), len(data.classes),
    )  # fmt: skip
    if devices.ranks > 1:
        log.info("training on %s", devices)
    if prepared.checkpoint is not None:
        log.info("resuming from %s after epoch %d", prepared.checkpoint.file, prepared.first_epoch)
    else:
        log.info("weights: %s", prepared.weights or "none, training from scratch")
        if devices.are_launched_separately and plan.settings.random_seed is None:
            log.info("random_seed: %d, the default when a launcher starts the ranks", prepared.seed)
    for note in without_effect(plan.settings, prepared.family):
        log.warning("%s", note)
    if prepared.augment is not None:
        log.info("augmentation: %s", prepared.augment.file.in_words())
    if plan.micro_batches > 1:
        log.info("splitting each batch into %d micro-batches with accumulated gradients", plan.micro_batches)
