"""Measures trainer/automode/costs.json: `python -m tools.measure_costs [MODEL …]`, by default all its models.

It trains one step with each model and counts what does not depend on the machine: multiply-adds of the
forward pass, and memory of the activations kept for the backward pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from trainer.annotations import Example, Objects, Target
from trainer.automode.costs import FILE, MEASURED, StepCost, side_of
from trainer.files import write_atomically
from trainer.models import catalog, create, specify
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw, Progress
from trainer.tasks import Task
from trainer.training.loading import SeededItems

_IMAGES = 2
_SHAPE = (768, 1024, 3)
_BOXES = np.array(
    [[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.8, 0.9], [0.2, 0.6, 0.35, 0.8], [0.6, 0.1, 0.9, 0.3]],
    dtype=np.float32,
)


class _Noise:
    """Noise images with four objects each."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._image = np.random.default_rng(0).integers(0, 255, _SHAPE, dtype=np.uint8)

    def __len__(self) -> int:
        return _IMAGES

    def __getitem__(self, index: int) -> Example:
        return Example(self._image, self.targets[index])

    @property
    def targets(self) -> Sequence[Target]:
        if self._task.is_classification:
            return [0] * _IMAGES
        labels, crowd = np.zeros(len(_BOXES), dtype=np.int64), np.zeros(len(_BOXES), dtype=bool)
        polygons = None
        if self._task is Task.SEGMENTATION:
            polygons = tuple((box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2),) for box in _BOXES)
        return [Objects(_BOXES, labels, crowd, polygons)] * _IMAGES


def measure(model: str, task: Task) -> StepCost:
    """Measure one image in a training step at the model's default size, in bfloat16."""
    settings = resolve(task, model, {"number_of_workers": 0})
    family = create(specify(task, model, settings, ("a", "b"), pretrained=False))
    network = family.build().train()
    items = SeededItems(family.training_dataset(_Noise(task), settings, 0), 0)
    batch = items.collate([items[Draw(0, index)] for index in range(_IMAGES)])
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    activations: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            activations[storage.data_ptr()] = storage
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        family.losses(network, batch, Progress(0, settings.number_of_epochs))
    activation_bytes = sum(storage.nbytes() for storage in activations.values())
    return StepCost(
        side=side_of(catalog.find(model, task), settings.model_dump()),
        forward_gmacs=round(counter.get_total_flops() / 2 / _IMAGES / 1e9, 2),
        activations_mib=round(activation_bytes / _IMAGES / 2**20),
    )


def main(models: Sequence[str]) -> None:
    """Measure models and write the file, in which other models keep their costs."""
    costs = dict(MEASURED)
    for model in models or list(MEASURED):
        entry = catalog.MODELS.get(model)
        costs[model] = measure(model, entry.tasks[0] if entry else Task.CLASSIFICATION)
        sys.stdout.write(f"{model}: {costs[model]}\n")
        sys.stdout.flush()
    rows = [f"  {json.dumps(model)}: {json.dumps(asdict(cost))}" for model, cost in costs.items()]
    write_atomically(FILE, "{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
