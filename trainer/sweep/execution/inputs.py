"""What a sweep needs before its first trial: checked data, and the devices of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.data.training_data import Data
from trainer.job.job import Job
from trainer.sweep.execution import study_setup
from trainer.sweep.execution.slots import Slot, make_slots
from trainer.sweep.search import random_seed
from trainer.training.job_data import load_data


@dataclass(frozen=True)
class Inputs:
    """The data of a sweep and the devices of this machine that its trials run on.

    Attributes:
        skipped: the file that lists the records left out; missing if there are none.
    """

    data: Data
    slots: Sequence[Slot]
    skipped: Path


@contextmanager
def read_inputs(job: Job, *, progress: bool) -> Iterator[Inputs]:
    """Check the job's storage and augmentation, read its data and divide this machine among its trials.

    Raises:
        JobError: the storage or the augmentation file cannot be used, or the job asks for more GPUs than
            there are.
        DataError: the data break the schema.
    """
    study_setup.check_storage(job)
    if job.augmentation is not None:
        from trainer.models.augmentation.pipeline import load  # imports torch

        load(job.augmentation, job.task)
    slots = make_slots(job, job.limits.max_concurrent_trials)
    if any(slot.gpus for slot in slots):
        from trainer.training.devices import check_cuda_in_subprocess

        check_cuda_in_subprocess()
    with tempfile.TemporaryDirectory() as scratch:
        skipped = Path(scratch) / "skipped.jsonl"
        yield Inputs(read_data(job, skipped, progress=progress), slots, skipped)


def read_data(job: Job, skipped: Path | None = None, *, progress: bool = False) -> Data:
    """Read and check the job's data.

    Args:
        skipped: where to write the records left out.

    Raises:
        DataError: the data break the schema.
    """
    return load_data(job, random_seed(job), skipped_path=skipped, progress=progress)
