"""ultralytics' own trainer, which is behind `yolo detect train`, with its defaults for all other options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

import torch

from benchmarks import data
from benchmarks.contenders.common import Clock, Options, main, score
from benchmarks.measuring import Measurements, need
from trainer.annotations import Detections, Mask, Prediction
from trainer.tasks import Task


def train(options: Options) -> Measurements:
    need("ultralytics")
    from ultralytics import YOLO
    from ultralytics.utils import SETTINGS

    dict.__setitem__(SETTINGS, "mlflow", False)  # bypasses SETTINGS' own setter, which writes the user's file
    folder = Path(options.folder)
    config = data.as_yolo(Path(options.train), Path(options.validation), options.of_task, folder / "data")
    clock = Clock(options.device, options.counted)
    model = YOLO(f"{options.model}.yaml")

    images = len(data.records(Path(options.train), options.of_task))
    # On a CPU it would leave one core unused.
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(options.threads))
    model.add_callback("on_train_epoch_start", lambda _: clock.start())
    model.add_callback("on_train_batch_end", lambda _: clock.step(options.batch))
    model.add_callback("on_train_epoch_end", lambda _: clock.stop())
    timed = {} if options.score else {
        # One optimizer step per batch, like ours, instead of accumulating 64 images, and no evaluation
        # except at the end.
        "nbs": options.batch, "val": False,
        "optimizer": "SGD", "lr0": 0.01, "deterministic": False,
        # Mosaic ends when ours does, halfway through a short run.
        "close_mosaic": options.epochs - max(options.epochs - 10, options.epochs // 2),
    }  # fmt: skip
    model.train(
        data=str(config), epochs=options.epochs, imgsz=options.image_size, batch=options.batch,
        workers=options.workers, device=0 if options.device == "cuda" else "cpu", seed=options.seed,
        pretrained=False, plots=False, project=str(folder), name="run", exist_ok=True, verbose=False,
        patience=0, amp="bf16" if options.device == "cuda" else False, **timed,
    )  # fmt: skip
    # The last batch of an epoch may be smaller.
    clock.epochs = [(images, seconds) for _, seconds in clock.epochs]
    measurements = clock.measurements()
    if options.score:
        measurements["metric"] = score(
            options, _predictions(YOLO(folder / "run" / "weights" / "best.pt"), options)
        )
    return measurements


def _predictions(model: Any, options: Options) -> Iterator[Prediction]:
    """Yield the best epoch's predictions with ultralytics' own predict and our thresholds."""
    found = data.records(Path(options.validation), options.of_task, options.classes)
    for index in range(len(found)):
        (result,) = model.predict(
            found.source(index), imgsz=options.image_size, conf=0.01, iou=0.5, max_det=300,
            retina_masks=True, verbose=False, device=0 if options.device == "cuda" else "cpu",
        )  # fmt: skip
        masks = None
        if options.of_task is Task.SEGMENTATION:
            pixels = [] if result.masks is None else result.masks.data.cpu().numpy() > 0.5
            masks = tuple(Mask(0, 0, each) for each in pixels)
        yield Detections(
            boxes=result.boxes.xyxyn.cpu().numpy(),
            labels=result.boxes.cls.long().cpu().numpy(),
            scores=result.boxes.conf.cpu().numpy(),
            image_size=result.orig_shape,
            masks=masks,
        )


if __name__ == "__main__":
    main(train)
