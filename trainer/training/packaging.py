"""Packages a run's best checkpoint as an MLflow model, and scores the validation data with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import nn

from serving.answers import to_answer
from trainer.annotations import Classification
from trainer.data.datasets import RecordExamples
from trainer.data.training_data import Data
from trainer.job.job import Job
from trainer.metrics.analysis import analyse_classes, analyse_objects
from trainer.metrics.bootstrap import FEW_IMAGES
from trainer.metrics.calibration import LOWEST_BOX_SCORE
from trainer.metrics.evaluated_image import EvaluatedImage
from trainer.metrics.results import Calibration
from trainer.models import Family, create
from trainer.models.weights.reading import SPEC_KEY, read_spec, scored
from trainer.runs import Run
from trainer.scoring import ScoringParameters, requested
from trainer.tasks import Task

log = logging.getLogger("trainer")


def package(
    run: Run, data: Data, into: Run | None = None, *, on_gpu: bool, calibrate: bool = False
) -> Calibration | None:
    """Write `model/` and `predictions.jsonl` from the run's best checkpoint.

    Args:
        data: the validation part is scored.
        into: the run to write to: for a trial, its sweep. None writes to the run itself.
        on_gpu: use a GPU if there is one.
        calibrate: fit a calibration to the validation images, and package it with the model.

    Returns:
        The scores before and after calibration; None if the model is not calibrated.
    """
    into = into or run
    checkpoint = torch.load(run.best_checkpoint, map_location="cpu", weights_only=True)
    family = create(read_spec(checkpoint[SPEC_KEY], run.best_checkpoint))
    network = family.build()
    network.load_state_dict(scored(checkpoint["state_dict"]))
    device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    calibration = _fit_calibration(run, family, network, data) if calibrate else None
    if calibration is not None:
        log.info("calibrated by %s", calibration.in_words())
        family = create(family.spec.calibrated(calibration.fitted))
    _write_predictions(into.predictions, family, network, data)
    _write_model(into.model, family, network)
    return calibration


def _fit_calibration(run: Run, family: Family, network: nn.Module, data: Data) -> Calibration | None:
    """Measure the scores on the validation images; None if there is nothing to measure."""
    task, examples = family.spec.task, RecordExamples(data.validation, data.classes)
    parameters: ScoringParameters = family.spec.parameters
    if task.has_boxes:
        parameters = requested(parameters, {"box_score_threshold": LOWEST_BOX_SCORE})
    predictions: list[Classification] = []
    images: list[EvaluatedImage] = []
    with torch.inference_mode():
        for index in range(len(examples)):
            (prediction,) = family.predict(network, [examples[index].image], parameters)
            if isinstance(prediction, Classification):
                predictions.append(prediction)
                continue
            target, by_masks = examples.targets[index], task is Task.SEGMENTATION
            images.append(EvaluatedImage.create(prediction, target, data.classes, by_masks=by_masks))
    if len(examples) < FEW_IMAGES:
        log.warning(
            "calibrating on %d validation images, which are few: at least %d are needed for a temperature to "
            "rely on, and hundreds for a close one", len(examples), FEW_IMAGES,
        )  # fmt: skip
    if task.is_classification:
        analysis = analyse_classes(task, data.classes, predictions, list(examples.targets))
    else:
        iou_threshold = Job.read(run.job).resolve_settings().validation_iou_threshold
        analysis = analyse_objects(task, data.classes, images, iou_threshold=iou_threshold, metric_type="voc")
    if analysis.calibration is None:
        log.warning(
            "not calibrated: no box on the validation images has a score of %g or more", LOWEST_BOX_SCORE
        )
    return analysis.calibration


def _write_predictions(path: Path, family: Family, network: nn.Module, data: Data) -> None:
    """Write the network's answers on the validation images, in the documented schema and the data's order."""
    spec = family.spec
    examples = RecordExamples(data.validation, data.classes)
    points = spec.parameters.max_number_of_polygon_points
    with path.open("w", encoding="utf-8") as file, torch.inference_mode():
        for index in range(len(examples)):
            prediction = family.predict(network, [examples[index].image])[0]
            answer = to_answer(prediction, spec.classes, points)
            line = {"image_url": data.validation.image_url(index), **answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_model(directory: Path, family: Family, network: nn.Module) -> None:
    """Write the model. If the run was resumed, it replaces the earlier one once it is complete."""
    from serving.package import (  # imports pandas, which training should not wait for
        replace_model,
        write_model,
    )

    if directory.exists():
        replace_model(directory, family.spec, network)
    else:
        write_model(directory, family.spec, network)
