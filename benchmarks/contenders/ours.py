"""Our trainer, as run by `trainer fit`."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

import trainer as product
from benchmarks.contenders.common import Clock, Options, limit_regions, main
from benchmarks.measuring import Measurements
from trainer.models import catalog
from trainer.runs import Run
from trainer.training.fit import fit


class _Timing(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.clock.start()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.clock.step(len(batch["images"]))
        if index + 1 == trainer.num_training_batches:
            self.clock.stop()


class _LimitRegions(Callback):
    def __init__(self, options: Options) -> None:
        self.options = options

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        for network in {module.network, module.scored}:
            limit_regions(network, self.options)


def settings(options: Options) -> dict[str, Any]:
    """Return the settings that differ from the defaults, with the image size by each family's name for it."""
    size = options.image_size
    family = catalog.find(options.model, options.of_task).family
    sizes: dict[str, Any] = {
        "classifiers": {"training_crop_size": size, "validation_crop_size": size},
        "rcnn": {"min_size": size, "max_size": 2 * size},
    }.get(family, {"image_size": size})
    boxes = options.of_task.has_boxes
    # Crops and expansions make batches a sixth larger than those of torchvision's loop. For timing, both
    # train without augmentation.
    plain = family == "rcnn" and not options.score
    return {
        **sizes,
        **({"advanced_settings": {"apply_automl_train_augmentations": False}} if plain else {}),
        **({"box_score_threshold": 0.01, "nms_iou_threshold": 0.5} if boxes else {}),
        **({"learning_rate": options.learning_rate} if options.learning_rate is not None else {}),
        "number_of_epochs": options.epochs,
        **({} if options.batch is None else {"training_batch_size": options.batch}),
        "validation_batch_size": options.batch or 16,
        "number_of_workers": options.workers,
        "early_stopping": False,
        # Evaluate once, at the end, a run that is only timed or whose last epoch counts.
        "evaluation_frequency": 1 if options.score and not options.last else options.epochs,
        "random_seed": options.seed,
        "recipe": options.recipe,
        "compile": options.compile,
        **({"backbone": options.backbone} if options.backbone else {}),
        **options.settings,
    }


def train(options: Options) -> Measurements:
    clock = Clock(options.device, options.counted)
    timing = _Timing(clock)
    job = product.Job(
        task=options.task,
        training_data=(options.train,),
        validation_data=(options.validation,),
        model=options.model,
        weights=options.weights,
        settings=settings(options),
        gpus=1 if options.device == "cuda" else 0,
        output=Path(options.folder),
        tracking_uri="none",
    )
    began = time.perf_counter()
    # Progress as shown by `trainer fit` if the output is not a terminal.
    run = fit(job, progress=True, callbacks=[timing, _LimitRegions(options)], packages=False)
    measurements = {**clock.measurements(), "fit_seconds": time.perf_counter() - began}
    if options.score:
        value = _last_metric(run, options) if options.last else run.read_result().value
        return {**measurements, "metric": value}
    return measurements


def _last_metric(run: Run, options: Options) -> float:
    """Return the primary metric of the last evaluation, which need not be the best."""
    with run.metrics.open(newline="") as file:
        *_, last = csv.DictReader(file)
    return float(last[options.of_task.primary_metric])


if __name__ == "__main__":
    main(train)
