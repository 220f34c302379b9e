"""The ceiling of ours: its network, losses and optimizer on one batch that is already in memory."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks import data
from benchmarks.contenders.common import Clock, Options, autocast, main
from benchmarks.contenders.ours import settings
from benchmarks.measuring import Measurements
from trainer.data.datasets import RecordExamples
from trainer.models import create, specify
from trainer.models.defaults import resolve
from trainer.models.training_items import Progress
from trainer.training.loading import Batches, move
from trainer.training.memory import keep_freed_memory

_SECONDS = 5.0


def measure(options: Options) -> Measurements:
    """Measure a plain loop without loader, logging, clipping, weight averaging or schedule."""
    # On a CPU, freed memory is kept, as in our training.
    with keep_freed_memory() if options.device == "cpu" else nullcontext():
        return _loop(options)


def _loop(options: Options) -> Measurements:
    torch.manual_seed(options.seed)
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True
    task, classes = options.of_task, options.classes
    chosen = resolve(task, options.model, {**settings(options), "number_of_workers": 0})
    family = create(specify(task, options.model, chosen, classes, pretrained=False))
    examples = RecordExamples(data.records(Path(options.train), task, classes), classes)
    batches = Batches(family, examples, examples, chosen, options.seed)
    device = torch.device(options.device)
    batch = move(next(iter(batches.train_dataloader())), device)
    network = family.build().to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def step() -> None:
        with autocast(options):
            losses = family.losses(network, dict(batch), Progress(0, chosen.number_of_epochs))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    clock = Clock(options.device)
    clock.start()
    began = time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        step()
        clock.step(len(batch["images"]))
    clock.stop()
    return clock.measurements()


if __name__ == "__main__":
    main(measure)
