"""AutoMode: chooses models and settings for a sweep whose job leaves them open; see docs/automode.md.

The job becomes one with a search space, so that the sweep searches the same space when it is resumed or
joined from another machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.automode.candidates import choose_groups
from trainer.automode.data_statistics import DataStatistics
from trainer.automode.design import design
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.job.sweep import SamplingAlgorithm, Sweep
from trainer.sweep.first_trials import FirstTrials
from trainer.sweep.space.search_space import SUB_SPACE, SearchSpace

_TYPICAL_DATA = DataStatistics(
    images=500, classes=5, width=1280, height=960, most_objects=10, small_object_side=0.1
)


@dataclass(frozen=True)
class Plan:
    """What a sweep is to try.

    Attributes:
        job: the job with a search space and a complete `sweep`.
    """

    job: Job
    first_trials: FirstTrials


def is_automatic(job: Job) -> bool:
    """Whether the job leaves models and settings to AutoMode."""
    return job.sweeps and not job.search_space


def plan(job: Job, data: DataStatistics, gpus: int) -> Plan:
    """Choose what to try; whatever the job fixes stays.

    Args:
        gpus: that each trial has; 0: it trains on the CPU.

    Raises:
        JobError: no model accepts the job's settings, or there are no weights for any.
    """
    groups, group_reasons = choose_groups(job, data.images, on_gpu=gpus > 0)
    parts, design_reasons = design(job, data, gpus, groups)
    changes = {
        "search_space": tuple(SearchSpace(tuple(part.sub_space for part in parts)).to_content()),
        "sweep": _complete_sweep(job, min(part.evaluations for part in parts)),
    }
    # Round robin: the best model of each sub-space, then the second of each.
    first_trials = [
        {SUB_SPACE: index, **part.first_trials[turn]}
        for turn in range(max(len(part.first_trials) for part in parts))
        for index, part in enumerate(parts)
        if turn < len(part.first_trials)
    ]
    if job.sweep is not None and job.sweep.sampling_algorithm.type == "grid":
        first_trials = []  # the grid has its own order
    probing = [trial for trial in first_trials if parts[trial[SUB_SPACE]].probes]
    if probing:
        first_trials.insert(0, {**probing[0], "number_of_epochs": 0})
        design_reasons.append("the first trial is a probe alone, which takes less than an epoch")
    hardware = "trials on the CPU: small models"
    if gpus:
        hardware = f"trials on {gpus} GPU{'s' if gpus > 1 else ''} each"
    reasons = [data.in_words(job.task), hardware, *group_reasons, *design_reasons]
    return Plan(
        job.model_copy(update=changes), FirstTrials(tuple(first_trials), tuple(dict.fromkeys(reasons)))
    )


def check(job: Job, where: str = "") -> Job:
    """Plan for typical data on a CPU, to report the job's problems before the data are read.

    Args:
        where: the job's file, for errors.

    Returns:
        A job as the real plan may make it.

    Raises:
        JobError: as `plan`.
    """
    try:
        return plan(job, _TYPICAL_DATA, gpus=0).job
    except JobError as error:
        problems = [replace(problem, where=problem.where or where) for problem in error.problems]
        raise JobError(error.summary, problems) from error


def _complete_sweep(job: Job, evaluations: int) -> Sweep:
    """The job's sampling and early termination; by default TPE and, without latency, successive halving.

    Args:
        evaluations: the fewest that a trial has.
    """
    sweep = job.sweep or Sweep()
    algorithm, policy = sweep.sampling_algorithm, sweep.early_termination
    if "sampling_algorithm" not in sweep.model_fields_set:
        algorithm = SamplingAlgorithm(type="bayesian")
    if job.sweep is None and evaluations > 1 and not job.measures_latency:
        first_rung = max(1, evaluations // 4)
        policy = {"type": "successive_halving", "min_resource": first_rung, "reduction_factor": 2}
    return Sweep(sampling_algorithm=algorithm, early_termination=policy)
