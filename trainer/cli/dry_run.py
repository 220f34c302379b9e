"""Shows what a job would do, as YAML, for `trainer fit --dry-run`.

It imports torch only to check an augmentation file, and reads the data only if they are to be checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from trainer.automode import plan as automode
from trainer.job import substitutes
from trainer.job.job import Job
from trainer.sweep.first_trials import FirstTrials
from trainer.sweep.search import Search, prepare_search

if TYPE_CHECKING:
    from trainer.automode.plan import Plan
    from trainer.data.training_data import Data

_MAX_TRIALS_SHOWN = 5


def preview(job: Job, where: str = "", *, check_data: bool = False) -> str:
    """The resolved job, its search space and the settings of its first trials, as YAML with notes.

    Args:
        where: the job's file, for errors.
        check_data: also read, check and count the data.

    Raises:
        JobError: the job, its settings, its search space or its augmentation file cannot be used.
        DataError: the data are checked and break the schema.
    """
    notes = [f"{where}: without effect here: {', '.join(job.ignored_keys)}"] if job.ignored_keys else []
    notes += [f"model: {note}" for note in substitutes.notes(job.substitutes)]
    if not job.sweeps:
        job.resolve_settings(where)
        job.require_library(where)
        notes += job.without_effect()
    if job.augmentation is not None:
        from trainer.models.augmentation.pipeline import load

        notes.append(f"augmentation: {load(job.augmentation, job.task).file.in_words()}")
    is_automatic = automode.is_automatic(job)
    if is_automatic:
        prepare_search(automode.check(job, where), where)
    data = _read(job) if check_data else None
    if not job.sweeps and data is not None:
        job = job.for_images(len(data.train))
    elif not job.sweeps and (left := job.left_to_images()):
        notes.append(f"{', '.join(left)}: chosen by the number of training images; --check-data shows them")
    content: dict[str, Any] = {"job": job.to_dict()}
    first_trials = FirstTrials()
    if is_automatic and data is not None:
        chosen = _plan(job, data)
        job, first_trials = chosen.job, chosen.first_trials
        notes += first_trials.reasons
    if job.search_space:
        search = prepare_search(job, where)
        content["search_space"] = search.space.to_content()
        images = None if data is None else len(data.train)
        content["trials"] = _preview_trials(job, search, first_trials, images)
        samples_some = len(first_trials.settings) < min(job.limits.max_trials, _MAX_TRIALS_SHOWN)
        if samples_some and not search.is_repeatable:
            notes.append("without a seed, the sweep itself will draw other settings than these")
    elif job.sweeps:
        content["search_space"] = "automatic"
        notes.append("without search_space, models and settings are chosen once the data are known")
        notes.append("add --check-data to see what would be chosen on this machine")
    if data is not None:
        content["data"] = _counts(data)
    comments = "".join(f"# {note}\n" for note in notes)
    return comments + yaml.dump(content, Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=110)


class _NoAliases(yaml.SafeDumper):
    """Repeats equal values instead of referring to the first, which is hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read(job: Job) -> Data:
    from trainer.sweep.execution.inputs import read_data

    return read_data(job)


def _plan(job: Job, data: Data) -> Plan:
    from trainer.automode.data_statistics import measure_data
    from trainer.sweep.execution.slots import make_slots

    slots = make_slots(job, job.limits.max_concurrent_trials)
    return automode.plan(job, measure_data(data), len(slots[0].gpus))


def _preview_trials(
    job: Job, search: Search, first_trials: FirstTrials, images: int | None
) -> list[dict[str, Any]]:
    """The first trials, followed by those that the sampler proposes to a study without results.

    Args:
        images: training images, if the data are known.
    """
    import optuna

    from trainer.sweep.execution.storage import quiet
    from trainer.sweep.sampling import GridSampler

    trials: list[dict[str, Any]] = []
    with quiet():
        study = optuna.create_study(sampler=search.sampler, direction="maximize")
        first_trials.enqueue_missing(study, search.space, job.limits.max_trials)
        while len(trials) < min(job.limits.max_trials, _MAX_TRIALS_SHOWN):
            if isinstance(search.sampler, GridSampler) and search.sampler.is_exhausted(study):
                break
            trial = study.ask()
            settings = search.space.suggest(trial)
            single = job.for_trial(settings)
            resolved = (single if images is None else single.for_images(images)).to_dict()
            trials.append(
                {
                    "trial": trial.number,
                    "proposed": settings,
                    "training_parameters": resolved["training_parameters"],
                }
            )
    return trials


def _counts(data: Data) -> dict[str, Any]:
    return {
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "classes": list(data.classes),
        "skipped_lines": data.skipped.lines,
        "skipped_objects": data.skipped.objects,
        "warnings": [str(warning) for warning in data.warnings],
    }
