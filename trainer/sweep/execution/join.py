"""Joins a sweep that another machine started."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from trainer.job.job import Job
from trainer.sweep.execution import study_setup
from trainer.sweep.execution.inputs import read_data
from trainer.sweep.execution.messages import Outcome
from trainer.sweep.execution.slots import make_slots
from trainer.sweep.execution.trial_records import log_outcome
from trainer.sweep.execution.worker import Worker, watch
from trainer.sweep.search import prepare_search
from trainer.training.mlflow_store import OFF

log = logging.getLogger("trainer")


def join_sweep(
    storage: str, study: str, *, output: Path | None = None, gpus: int | str = "auto", concurrent: int = 1
) -> int:
    """Run trials of a sweep that another machine started, until none are left.

    Args:
        storage: URL of the study's database. This machine must see the job's data under the same paths.
        study: name of the study.
        output: directory for the runs of the trials; None: the sweep's own if this machine sees it, else a
            new one under `runs`.
        concurrent: trials at a time.

    Returns:
        How many trials finished here or were pruned.

    Raises:
        JobError: there is no such study, its storage cannot be reached, or more GPUs are asked for than
            there are.
        DataError: this machine does not see the data, or they break the schema.
    """
    attributes = study_setup.worker_attributes(storage, study)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{study}.yaml"
        file.write_text(attributes[study_setup.JOB], encoding="utf-8")
        job = Job.read(file, where=f"the job of study {study}", gpus=gpus)
    sweep_directory = Path(attributes[study_setup.DIRECTORY])
    is_shared = sweep_directory.is_dir()
    directory = output or (sweep_directory if is_shared else Path("runs") / study) / "trials"
    if job.augmentation is not None and not Path(job.augmentation).is_file():
        directory.mkdir(parents=True, exist_ok=True)
        copied = directory.absolute() / Path(job.augmentation).name
        copied.write_bytes(attributes[study_setup.AUGMENTATION].encode("latin-1"))
        job = job.model_copy(update={"augmentation": str(copied)})
    search = prepare_search(job)
    read_data(job)  # if this machine does not see the data, every trial would fail
    queue = study_setup.load_study(job, search, storage, study)
    address, parent = attributes.get(study_setup.TRACKING, (OFF, None))
    if address.startswith("sqlite") and not is_shared:
        address, parent = OFF, None  # the database file is on the other machine
    count = 0

    def on_trial_end(number: int, outcome: Outcome) -> None:
        nonlocal count
        count += outcome.state in ("complete", "pruned")
        log_outcome(number, outcome, job.metric)

    worker = Worker(
        queue, job.model_copy(update={"tracking_uri": address}), search,
        storage, directory, make_slots(job, concurrent), deadline=attributes.get(study_setup.DEADLINE),
        parent_run=parent, on_trial_end=on_trial_end,
    )  # fmt: skip
    log.info("joined study %s; its trials are written to %s", study, directory)
    watch(worker)
    return count
