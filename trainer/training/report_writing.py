"""The report of a run at its end, and made anew later: gathers what `trainer.report` shows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.annotations import Objects
from trainer.data.fingerprint import fingerprint
from trainer.data.training_data import Data, load
from trainer.errors import RunError, TrainerError
from trainer.evaluating import answer_file
from trainer.job.job import Job
from trainer.metrics import analysis as analysing
from trainer.metrics import masks
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.report.comparison_report import write_comparison
from trainer.report.evaluated_run import EvaluatedRun
from trainer.report.run_report import write_run_report
from trainer.runs import Run
from trainer.tasks import Task

log = logging.getLogger("trainer")

BY_POLYGONS = (
    "What follows on predictions compares the polygons of predictions.jsonl, which have no holes and a "
    "limited number of points; the training compares masks, so its figures may differ a little."
)


def report(run: Run, job: Job, data: Data) -> None:
    """Write a run's report at its end; what goes wrong with it costs a line in the log, never the run.

    Without predictions, as a sweep's trials are, only the training is reported.
    """
    try:
        if not run.predictions.exists():
            write_run_report(run)
            return
        evaluated = evaluate(run, job, data)
        write_run_report(run, data=data, evaluated=evaluated, notes=_remarks(job.task))
    except Exception as error:
        log.warning(
            "the report could not be written: %s; `trainer report %s` tries again", error, run.directory
        )
        log.debug("no report", exc_info=True)
    else:
        log.info("report: %s", run.report)


def remake(directories: Sequence[Path], output: Path | None = None) -> Path:
    """Write a run's report anew; of several runs their reports, and a page that compares them.

    Args:
        output: the file; None: report.html in the run's directory, comparison.html here for several.

    Raises:
        RunError: there is no finished run, they are of different tasks, or a page cannot be written.
    """
    runs = [Run.open(directory, needs=("job.yaml", "result.json")) for directory in directories]
    single = len(runs) == 1
    try:
        for run in runs:
            written = _remake(run, output if single else None)
        return written if single else write_comparison(runs, output or Path("comparison.html"))
    except OSError as error:
        raise RunError(f"the report cannot be written: {error}") from error


def _remake(run: Run, output: Path | None) -> Path:
    job = Job.read(run.job)
    if not run.predictions.exists():
        return write_run_report(run, output=output)
    remarks = _remarks(job.task)
    data = evaluated = None
    try:
        data = load_data(job)
        evaluated = evaluate(run, job, data)
    except TrainerError as error:
        log.warning("%s: its report has less in it: %s", run.directory, error)
        what = "the data" if data is None else "the predictions"
        remarks = [f"{what[0].upper()}{what[1:]} could not be read, so parts are missing: {error}"]
    known = run.read_result().data_fingerprint
    if data is not None and known and fingerprint(data) != known:
        remarks.append("The data have changed since the run was trained on them.")
    return write_run_report(run, data=data, evaluated=evaluated, notes=remarks, output=output)


def load_data(job: Job) -> Data:
    """The data as the run had them, with the same split.

    Raises:
        DataError: they are wrong or gone.
    """
    seed = job.settings.get("random_seed")
    return load(
        job.task,
        job.training_data,
        job.validation_data,
        validation_size=job.validation_data_size,
        seed=seed if isinstance(seed, int) else 0,
        datastores=job.datastores,
        skip_invalid=job.skip_invalid,
        # What is left out for damaged images must be left out again.
        check_images=job.skip_invalid,
        progress=False,
    )


def evaluate(run: Run, job: Job, data: Data) -> EvaluatedRun:
    """Figures and errors of a run's predictions on its validation data.

    Raises:
        DataError: the predictions are not of these data.
    """
    records, classes, task = data.validation, data.classes, job.task
    answers = answer_file.read(run.predictions, task, records)
    targets = [records.target(index, classes) for index in range(len(records))]
    if task.is_classification:
        predictions = [answers.classification(index, classes) for index in range(len(answers))]
        found = analysing.analyse_classes(task, classes, predictions, targets, records)
        return EvaluatedRun(found, records, answers)
    sizes = _sizes(data)
    by_masks = task is Task.SEGMENTATION
    compared = []
    for index, (size, target) in enumerate(zip(sizes, targets, strict=True)):
        assert isinstance(target, Objects), "it is a detector's"
        prediction, polygons = answers.detections(index, classes, size)
        rles = [masks.from_polygons(each, size) for each in polygons] if by_masks else None
        compared.append(EvaluatedImage.create(prediction, target, classes, by_masks=by_masks, rles=rles))
    iou_threshold, metric_type = _validation_settings(run, job)
    found = analysing.analyse_scenes(
        task, classes, compared, iou_threshold=iou_threshold, metric_type=metric_type, sources=records
    )
    return EvaluatedRun(found, records, answers, sizes)


def _sizes(data: Data) -> list[tuple[int, int]]:
    """(height, width) of the validation images, as they were decoded where they were."""
    looks = data.validation.looks
    if looks is None or not np.all(looks.sizes):
        return answer_file.image_sizes(data.validation)
    return [(int(height), int(width)) for width, height in looks.sizes]


def _validation_settings(run: Run, job: Job) -> tuple[float, str]:
    """validation_iou_threshold and validation_metric_type, of a sweep those of its best trial."""
    if job.sweeps:
        result = run.read_result()
        of = job.for_trial({"model_name": result.model})
    else:
        of = job
    settings = of.resolve_settings()
    return settings.validation_iou_threshold, settings.validation_metric_type


def _remarks(task: Task) -> list[str]:
    return [BY_POLYGONS] if task is Task.SEGMENTATION else []
