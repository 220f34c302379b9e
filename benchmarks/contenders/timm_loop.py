"""A training loop built from timm's public components, as in its train.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from timm.data import create_loader, resolve_data_config
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.utils.data import Dataset

from benchmarks import data
from benchmarks.contenders.common import Clock, Options, autocast, main, score
from benchmarks.measuring import Measurements
from trainer.annotations import Classification, Prediction
from trainer.data.reading.records import Records
from trainer.models import catalog
from trainer.tasks import Task


class Images(Dataset[Any]):
    """Pairs of a transformed image and its class index or, for multilabel, float32 [C] of 0 and 1.

    create_loader sets the transform.
    """

    def __init__(self, found: Records) -> None:
        self.found = found
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Any:
        image = ImageOps.exif_transpose(Image.open(self.found.source(index)))
        labels = self.found.target(index)
        target = torch.from_numpy(labels).float() if isinstance(labels, np.ndarray) else labels
        return self.transform(image.convert("RGB")), target


def create(name: str, options: Options, **arguments: Any) -> Any:
    """Create a network: with random weights, or with published ones and a new head."""
    classes = len(options.classes)
    if options.weights == "none":
        return timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
    file = {"file": f"{options.weights}/{name}.safetensors"}
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, **arguments)
    network.reset_classifier(classes)  # create_model would draw the heads of EfficientNets too large
    return network


def train(options: Options) -> Measurements:
    torch.manual_seed(options.seed)
    task, classes = options.of_task, options.classes
    name = catalog.find(options.model, task).library_name
    sized = {"img_size": options.image_size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    network = create(name, options, **sized)
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True  # as train.py does
    network = network.to(device, memory_format=torch.channels_last)
    config = resolve_data_config({"input_size": (3, options.image_size, options.image_size)}, model=network)
    pretrained = options.weights != "none"
    interpolation = config["interpolation"] if pretrained else "bilinear"
    common = {
        "input_size": config["input_size"], "batch_size": options.batch, "mean": config["mean"],
        "std": config["std"], "num_workers": options.workers, "device": device,
        "interpolation": interpolation, "use_prefetcher": True, "pin_memory": options.device == "cuda",
    }  # fmt: skip
    loader = create_loader(
        Images(data.records(Path(options.train), task, classes)), is_training=True, hflip=0.5,
        color_jitter=0.4, color_jitter_prob=0.5, persistent_workers=options.workers > 0, **common,
    )  # fmt: skip
    validation = create_loader(
        Images(data.records(Path(options.validation), task, classes)), is_training=False,
        crop_pct=224 / 256, persistent_workers=options.workers > 0, **common,
    )  # fmt: skip
    rate = 0.01 if options.learning_rate is None else options.learning_rate
    optimizer = create_optimizer_v2(
        network, opt=options.optimizer, lr=rate, weight_decay=options.weight_decay, momentum=0.9
    )
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=options.epochs, warmup_epochs=min(2, options.epochs - 1),
        step_on_epochs=False, updates_per_epoch=len(loader),
    )  # fmt: skip
    loss_of = BinaryCrossEntropy() if task is Task.MULTILABEL else torch.nn.CrossEntropyLoss()
    clock, best, updates = Clock(options.device, options.counted), -1.0, 0
    for epoch in range(options.epochs):
        network.train()
        clock.start()
        for images, targets in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast(options):
                loss = loss_of(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            schedule.step_update(updates)
            clock.step(len(images))
        clock.stop()
        if options.score and not (options.last and epoch + 1 < options.epochs):
            best = max(best, score(options, _predictions(network, validation, options)))
    return {**clock.measurements(), **({"metric": best} if options.score else {})}


@torch.inference_mode()
def _predictions(network: Any, loader: Any, options: Options) -> Iterator[Prediction]:
    network.eval()
    for images, _ in loader:
        with autocast(options):
            logits = network(images)
        probs = logits.sigmoid() if options.of_task is Task.MULTILABEL else logits.softmax(1)
        yield from (Classification(each.float().cpu().numpy()) for each in probs)


if __name__ == "__main__":
    main(train)
