"""A training run before its first epoch: what is asked for, and the data, network and seed it starts with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning import Callback, seed_everything
from torch import nn

from trainer.data.datasets import RecordExamples
from trainer.data.training_data import Data
from trainer.job.job import Job
from trainer.models import Family, create, specify
from trainer.models.augmentation import pipeline
from trainer.models.heads import start_near_prior
from trainer.models.weights import loading as weights
from trainer.models.weights.choice import NONE
from trainer.models.weights.loading import Loaded
from trainer.runs import Run
from trainer.settings import Settings
from trainer.training.devices import Devices
from trainer.training.job_data import load_data
from trainer.training.probe import nothing_to_train
from trainer.training.resume import Checkpoint, check_same_network, read_checkpoint

_SHARED_SEED = 0
"""The default where a launcher starts the ranks: they could not agree on a random one."""


@dataclass(frozen=True)
class Plan:
    """What is asked for: the job and the other arguments of `trainer.training.fit.fit`.

    Attributes:
        settings: the job's, resolved.
        devices: with this process's rank.
        earlier: the run that is resumed.
        seed: rank 0's, for a rank that it started; None takes the checkpoint's or the job's, or draws one.
    """

    job: Job
    settings: Settings
    devices: Devices
    earlier: Run | None
    progress: bool
    callbacks: Sequence[Callback]
    packages: bool
    parent_run_id: str | None
    micro_batches: int
    seed: int | None = None


@dataclass(frozen=True)
class Prepared:
    """What a run starts with.

    Attributes:
        plan: with the settings that follow from the number of training images.
        network: on the CPU, with the weights to start from.
        seed: of everything random in the run.
        checkpoint: that training resumes from, if it does.
        weights: where the network's weights come from; None if they are random, or a checkpoint's.
        augment: the job's augmentation file, ready for use; None without one.
    """

    plan: Plan
    data: Data
    family: Family
    network: nn.Module
    seed: int
    checkpoint: Checkpoint | None
    weights: Loaded | None
    augment: pipeline.Augment | None

    @property
    def probes(self) -> bool:
        """Whether the head starts as a probe, if it is linear."""
        return self.checkpoint is None and self.plan.settings.probe_first

    @property
    def first_epoch(self) -> int:
        """Counted from 0; above 0 when the run is resumed."""
        return 0 if self.checkpoint is None else self.checkpoint.epoch + 1


def prepare(plan: Plan, skipped_path: Path) -> Prepared:
    """Check and load the data, and build the network.

    Args:
        skipped_path: gets the invalid lines that are skipped.

    Raises:
        DataError, WeightsError: see `trainer.training.fit.fit`.
        JobError: the augmentation file cannot be used, or the probe alone is asked for, of a network that can
            have none.
        TrainingError: the augmentation fails for one of the first images.
        RunError: the earlier run's checkpoint cannot be read, or is of another network.
    """
    job, settings, devices = plan.job, plan.settings, plan.devices
    checkpoint = None if plan.earlier is None else read_checkpoint(plan.earlier)
    seed = _seed(plan) if checkpoint is None else checkpoint.seed
    augment = pipeline.load(job.augmentation, job.task) if job.augmentation is not None else None
    data = load_data(
        job,
        settings.random_seed,
        skipped_path=skipped_path,
        # One rank per machine checks the images, unless every rank has to know which ones are skipped.
        check_images=devices.local_rank == 0 or job.skip_invalid,
        progress=plan.progress,
    )
    if augment is not None:
        augment.try_on(RecordExamples(data.train, data.classes))
    job = job.for_images(len(data.train) // devices.ranks)
    settings = job.resolve_settings()
    plan = replace(plan, job=job, settings=settings)
    seed_everything(seed, workers=True, verbose=False)
    choice = job.weights_choice
    description = job.describe() if checkpoint is None else checkpoint.description
    spec = specify(
        job.task, job.model_name, settings, data.classes, pretrained=choice != NONE, description=description
    ).model_copy(update={"substitute_for": job.substitute_for})
    if checkpoint is not None:
        check_same_network(checkpoint, spec)
    family = create(spec)
    network = family.build()
    if choice != NONE:
        start_near_prior(family.class_layers(network))
    if not settings.number_of_epochs and family.linear_head(network) is None:
        raise nothing_to_train(family)
    loaded = None
    if checkpoint is None and devices.is_rank_zero:  # DDP copies the weights of rank 0 to the other ranks
        name = job.model_name + (f" --backbone {settings.backbone}" if settings.backbone else "")
        loaded = weights.load(network, name, family.published(), choice, spec)
    if settings.sync_batch_norm and devices.ranks > 1:
        network = family.sync_batch_norms(network)
    network = network.to(memory_format=torch.channels_last)
    return Prepared(plan, data, family, network, seed, checkpoint, loaded, augment)


def _seed(plan: Plan) -> int:
    if plan.seed is not None:
        return plan.seed
    if plan.settings.random_seed is not None:
        return plan.settings.random_seed
    return _SHARED_SEED if plan.devices.are_launched_separately else time.time_ns() % 2**31
