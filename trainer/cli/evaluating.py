"""`trainer evaluate` and `trainer report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from trainer.cli.application import app
from trainer.cli.arguments import Datastores, Switch, a_task, mapping
from trainer.cli.evaluation_tables import show_analysis, show_differences
from trainer.cli.flags import flag
from trainer.errors import JobError, Problem
from trainer.files import distinct_names
from trainer.models.precision import Precision
from trainer.scoring import OLDER_NAMES


@app.command
def evaluate(
    runs_or_models: list[Path] | None = None,
    /,
    *,
    data: list[str],
    output: Path | None = None,
    task: Annotated[str | None, a_task("Task of the --predictions.")] = None,
    predictions: Path | None = None,
    slice_by: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    iou_threshold: Annotated[float | None, Parameter(alias="--validation-iou-threshold")] = None,
    box_score_threshold: Annotated[
        float | None, Parameter(alias=[*map(flag, OLDER_NAMES["box_score_threshold"])])
    ] = None,
    unknown_classes: Literal["error", "missed", "ignored"] = "error",
    datastore: Datastores = None,
    target_column_name: str | None = None,
    skip_invalid: Switch = False,
    device: str | None = None,
    precision: Precision = "auto",
    primary_metric: str | None = None,
    resamples: int = 1000,
    random_seed: int = 0,
    apply_thresholds: Switch = False,
    calibrate: Switch = False,
    model_output: Path | None = None,
) -> None:
    """Evaluate a trained model, or predictions made anywhere, and show what goes wrong.

    The primary metric has a 95 % confidence interval: how much it would vary with other images of the same
    kind. Of several models, each difference has one too, from the same images for both; where it includes 0,
    the models cannot be told apart on these images.

    Examples:

        trainer evaluate runs/one --data test.jsonl --output evaluation
        trainer evaluate runs/one runs/two --data test.jsonl --output evaluation
        trainer evaluate --task object-detection --predictions answers.jsonl --data test.jsonl

    Parameters
    ----------
    runs_or_models
        Directory of a run or of an MLflow model; several are compared.
    data
        A .jsonl file or an MLTable folder with the targets. May be repeated.
    output
        Write metrics.json, a CSV file for each table, and a model's predictions.jsonl into this folder. Each
        of several models has a folder in it, next to comparison.json and comparison.html.
    predictions
        Evaluate these predictions instead of a model: JSON lines of the documented schema, one per image.
        Either all name their image by image_url (the data's own, a path, or a file name that only one image
        has), or none does and they are in the order of the data.
    slice_by
        Also compute the metrics for each value of this key of the data's lines, such as camera, or
        meta.camera within an object. May be repeated.
    iou_threshold
        Minimum IoU for a match of boxes, in [0.1, 1]. [default: 0.5]
    box_score_threshold
        Ignore objects with lower scores. Average precision needs all objects that a model finds, so this is
        not the threshold that the model answers with; its metrics at that threshold are shown too. To repeat
        the metrics of a training run, give its box_score_threshold. [default: 0.001]
    unknown_classes
        How to treat classes of the data that the model does not know: error, missed (their objects count as
        never found) or ignored (their objects are left out).
    target_column_name
        Key of the data's lines that holds the label. [default: that of the run's job, or label]
    skip_invalid
        Skip invalid objects and lines instead of stopping.
    device
        Device of the model, as torch names it: cpu, cuda, cuda:1. [default: a GPU if there is one]
    precision
        Precision in which the model computes: float32, tf32, bf16 or fp16, as of `trainer serve`.
    primary_metric
        Metric that gets a confidence interval, such as AUC_weighted or map. [default: that of the run's job,
        or the task's]
    resamples
        Number of times that the images are resampled for the interval; 0 computes none.
    random_seed
        Seed of the resamples.
    apply_thresholds
        Make the model answer with the score threshold that is best for F1, for each class; a request's own
        box_score_threshold overrides it. Choose thresholds on other data than you report metrics on.
    calibrate
        Calibrate the model's scores, so that of answers with a score of 0.8 four in five are right: by a
        temperature, for boxes also a bias, fitted to these data. Use other data than you report metrics on,
        such as the validation data.
    model_output
        With --apply-thresholds or --calibrate: write the changed model here and leave the evaluated one as it
        is.
    """
    models = runs_or_models or []
    for switch, is_set in (("--apply-thresholds", apply_thresholds), ("--calibrate", calibrate)):
        if is_set and len(models) != 1:
            raise _unusable(switch, "needs one model to change", str(len(models)))
    if calibrate and unknown_classes == "missed":
        raise _unusable("--calibrate", "cannot learn from classes that the model cannot name", "missed")
    if calibrate and box_score_threshold is not None:
        rule = "is fitted to boxes of every score, so it cannot be combined with --box-score-threshold"
        raise _unusable("--calibrate", rule)
    if model_output is not None and not (apply_thresholds or calibrate):
        raise _unusable("--model-output", "needs --apply-thresholds or --calibrate")
    from trainer.api import evaluate as run_evaluation

    names = distinct_names(models) if len(models) > 1 else [""]
    if len(set(names)) < len(names):
        raise _unusable("RUNS_OR_MODELS", "must name each model once", ", ".join(map(str, models)))
    subjects: list[Path | None] = [*models] or [None]
    evaluations = []
    for name, model in zip(names, subjects, strict=True):
        evaluation = run_evaluation(
            model,
            data=data,
            predictions=predictions,
            task=task,
            output=output and output / name,
            slice_by=slice_by or (),
            iou_threshold=iou_threshold,
            box_score_threshold=box_score_threshold,
            unknown_classes=unknown_classes,
            datastores=mapping(datastore),
            target_column_name=target_column_name,
            skip_invalid=skip_invalid,
            device=device,
            precision=precision,
            primary_metric=primary_metric,
            resamples=resamples,
            random_seed=random_seed,
            progress=True,
        )
        for note in evaluation.notes:
            print(note if note.startswith("warning: ") else f"note: {note}", file=sys.stderr)
        if name:
            print(f"\n── {name} ──")
        show_analysis(evaluation.analysis)
        evaluations.append((name, evaluation))
        if primary_metric is None and evaluation.primary is not None:
            primary_metric = evaluation.primary.name  # measure all models by that of the first
    if len(models) > 1:
        from trainer.evaluating.comparison import compare_evaluations
        from trainer.evaluating.intervals import Resampling

        show_differences(compare_evaluations(evaluations, Resampling(resamples, random_seed, True), output))
    if output is not None:
        print(f"\nwritten: {output}")
    changed: Path | None = None
    if apply_thresholds:
        from trainer.evaluating import model_changes

        best = {name: threshold.score for name, threshold in evaluation.analysis.thresholds.items()}
        changed = model_changes.apply_thresholds(models[0], best, model_output)
        print(f"thresholds applied: {changed}")
    if calibrate:
        from trainer.evaluating import model_changes
        from trainer.metrics.calibration import LOWEST_BOX_SCORE

        fit = evaluation.analysis.calibration
        if fit is None:
            raise _unusable("--calibrate", f"needs boxes with a score of at least {LOWEST_BOX_SCORE}")
        # The model with new thresholds is changed in place: they are calibrated with its scores.
        output_of_this = None if changed else model_output
        calibrated = model_changes.apply_calibration(changed or models[0], fit.fitted, output_of_this)
        print(f"calibrated by {fit.in_words()}: {calibrated}")


@app.command
def report(
    runs: Annotated[list[Path], Parameter(consume_multiple=True)], /, *, output: Path | None = None
) -> None:
    """Rewrite a run's report.html, or compare several runs of one task side by side.

    A run writes its report when it ends; this command writes it again, for example after an update. Where the
    data have moved, the report says so and omits the parts that need them.

    Examples:

        trainer report runs/one
        trainer report runs/one runs/two --output comparison.html

    Parameters
    ----------
    runs
        Directories of finished runs.
    output
        File to write. [default: report.html in the run's directory; comparison.html here for several runs]
    """
    from trainer.training.report_writing import remake

    print(f"report  {remake(runs, output)}")


def _unusable(flag: str, rule: str, got: str = "") -> JobError:
    return JobError("the evaluation cannot be run:", [Problem(flag, "", rule, got)])
