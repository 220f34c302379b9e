"""Runs a job that leaves models and settings open: AutoMode chooses a search space, the sweep searches it."""

from __future__ import annotations

from trainer.automode.data_statistics import measure_data
from trainer.automode.plan import check, plan
from trainer.job.job import Job
from trainer.runs import Run
from trainer.sweep.execution.inputs import read_inputs
from trainer.sweep.execution.sweep_run import start
from trainer.sweep.search import prepare_search


def fit(job: Job, *, progress: bool = False) -> Run:
    """Choose a search space and first trials for the job's data and this machine, then run the sweep.

    Raises:
        JobError: no model accepts the job's settings, there are no weights for any, or the storage cannot be
            used.
        DataError: the data break the schema.
        RunError: the output directory is taken, or no trial finished.
    """
    prepare_search(check(job))  # report problems before the data are read
    with read_inputs(job, progress=progress) as inputs:
        slots = inputs.slots
        chosen = plan(job, measure_data(inputs.data), len(slots[0].gpus))
        search = prepare_search(chosen.job)
        return start(chosen.job, search, inputs, chosen.first_trials, progress=progress)
