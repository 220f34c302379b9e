"""Prints the figures of costs.py: `python -m tools.measure_costs MODEL …` trains a step with each model.

It counts what does not depend on the machine: multiplications, and what a step keeps for its way back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from trainer.annotations import Example, Objects, Target
from trainer.automode.costs import Cost, side_of
from trainer.models import catalog, create, specify
from trainer.models.defaults import resolve
from trainer.tasks import Task
from trainer.training.loading import Draw, SeededItems

_IMAGES = 2
_SHAPE = (768, 1024, 3)
_BOXES = np.array(
    [[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.8, 0.9], [0.2, 0.6, 0.35, 0.8], [0.6, 0.1, 0.9, 0.3]],
    dtype=np.float32,
)


class _Noise:
    """Examples of noise, with four objects each."""

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


def measure(model: str, task: Task) -> Cost:
    """The cost of an image in a training step at the model's default size, in bfloat16."""
    settings = resolve(task, model, {"number_of_workers": 0})
    family = create(specify(task, model, settings, ("a", "b"), pretrained=False))
    network = family.build().train()
    items = SeededItems(family.training_dataset(_Noise(task), settings, 0), 0)
    batch = family.collate([items[Draw(0, index)] for index in range(_IMAGES)])
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        family.losses(network, batch)
    return Cost(
        side=side_of(catalog.find(model, task), settings.model_dump()),
        multiplications=round(counter.get_total_flops() / 2 / _IMAGES / 1e9, 2),
        kept=round(sum(storage.nbytes() for storage in kept.values()) / _IMAGES / 2**20),
    )


def main(models: Sequence[str]) -> None:
    for model in models:
        entry = catalog.MODELS.get(model)
        cost = measure(model, entry.tasks[0] if entry else Task.CLASSIFICATION)
        sys.stdout.write(f'    "{model}": Cost({cost.side}, {cost.multiplications}, {cost.kept}),\n')
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
