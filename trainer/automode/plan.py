"""AutoMode: which models and settings a sweep tries when its job leaves them open. docs/automode.md tells.

The job becomes one with a search space, so that whoever goes on with the sweep, here or on another machine,
searches the same. Beside it stand the trials to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.automode import candidates
from trainer.automode.data_statistics import Facts, Machine
from trainer.automode.design import design
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.job.sweep import SamplingAlgorithm, Sweep
from trainer.sweep.first_trials import FirstTrials
from trainer.sweep.space.search_space import SUB_SPACE, SearchSpace

_TYPICAL = Facts(images=500, classes=5, width=1280, height=960, most_objects=10, small_object_side=0.1)


@dataclass(frozen=True)
class Plan:
    """What a sweep is to try.

    Attributes:
        job: with the search space.
    """

    job: Job
    first_trials: FirstTrials


def is_automatic(job: Job) -> bool:
    """Whether the job leaves models and settings to the sweep."""
    return job.sweeps and not job.search_space


def plan(job: Job, facts: Facts, machine: Machine, concurrent: int = 1) -> Plan:
    """Choose what to try.

    Args:
        job: what it fixes stays as it is.
        machine: what each trial has.
        concurrent: trials at a time.

    Raises:
        JobError: no model takes the job's settings, or there are no weights for any.
    """
    reasons = [facts.in_words(job.task), machine.in_words()]
    groups = candidates.groups(job, facts.images, on_gpu=machine.gpus > 0, reasons=reasons)
    parts = design(job, facts, machine, concurrent, groups, reasons)
    changes = {
        "search_space": tuple(SearchSpace(tuple(part.sub_space for part in parts)).to_content()),
        "sweep": _sweep(job, min(part.evaluations for part in parts)),
    }
    # In turns: the best of each sub-space, then the second of each.
    turns = [
        {SUB_SPACE: index, **part.first[turn]}
        for turn in range(max(len(part.first) for part in parts))
        for index, part in enumerate(parts)
        if turn < len(part.first)
    ]
    by_grid = job.sweep is not None and job.sweep.sampling_algorithm.type == "grid"
    first_trials = FirstTrials(() if by_grid else tuple(turns), tuple(reasons))
    return Plan(job.model_copy(update=changes), first_trials)


def check(job: Job, where: str = "") -> Job:
    """The job as it might become, to find out before the data are read what is wrong with it.

    Args:
        where: the file that the job stands in, for errors.

    Raises:
        JobError: as `plan`.
    """
    try:
        return plan(job, _TYPICAL, Machine(0, 0.0, 0.0, 8)).job
    except JobError as error:
        problems = [replace(problem, where=problem.where or where) for problem in error.problems]
        raise JobError(error.summary, problems) from error


def _sweep(job: Job, evaluations: int) -> Sweep:
    """What the job says of the sweep; what it leaves open is TPE and, without latency, successive halving.

    Args:
        evaluations: that each trial has at least.
    """
    given = job.sweep
    algorithm, policy = SamplingAlgorithm(type="bayesian"), None
    if given is not None and "sampling_algorithm" in given.model_fields_set:
        algorithm = given.sampling_algorithm
    if given is not None:
        policy = given.early_termination
    elif evaluations > 1 and not job.measures_latency:
        policy = {
            "type": "successive_halving",
            "min_resource": max(1, evaluations // 4),
            "reduction_factor": 2,
        }
    return Sweep(sampling_algorithm=algorithm, early_termination=policy)
