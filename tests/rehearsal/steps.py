"""Rehearses a training step, a validation batch and `predict` of models: `python -m tests.rehearsal.steps`.

Each argument is MODEL:TASK, or `tool` to try the simulated device itself. Prints one line of JSON for each:
its name, and what the rehearsal counted or the error that ended it.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.rehearsal import cuda

cuda.install()

from tests.conformance.conftest import make_case  # noqa: E402 (after the device is there)
from trainer.models.training_items import Progress  # noqa: E402
from trainer.models.transfers import on_cpu, without_waits  # noqa: E402
from trainer.tasks import Task  # noqa: E402
from trainer.training.averaging import WeightAverage  # noqa: E402
from trainer.training.evaluation import Evaluation  # noqa: E402
from trainer.training.loading import Batches, move  # noqa: E402
from trainer.training.optimizers import build_optimizer  # noqa: E402

DEVICE = torch.device("cuda", 0)
IMAGES = 4


def rehearse(model: str, task: Task) -> dict[str, Any]:
    """What each part counted: waits by line, the number of operations, and the types of products."""
    case = make_case(
        task,
        model,
        number_of_workers=0,
        training_batch_size=IMAGES,
        validation_batch_size=IMAGES,
        average_weights=True,
        # Random networks find something, too, but little, since masks take a while.
        **({"box_score_threshold": 0.005, "box_detections_per_image": 3} if task.has_boxes else {}),
    )
    network = case.build().to(memory_format=torch.channels_last)
    batches = Batches(case.family, case.examples, case.examples, case.settings, 0)
    average = WeightAverage(network, tau=case.family.average_tau).to(DEVICE)
    network = network.to(DEVICE).train()
    optimizer = build_optimizer(network, case.settings, case.family.freeze_groups(network))
    counted: dict[str, Any] = {}

    def part(name: str, call: Callable[[], Any]) -> Any:
        with cuda.counting():
            result = call()
        counted[name] = {
            "waits": dict(cuda.WAITS),
            "operations": sum(cuda.OPERATIONS.values()),
            "products": {" ".join(key): times for key, times in cuda.PRODUCTS.items()},
        }
        return result

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            losses = case.family.losses(network, batch, Progress(0, 2))
        return torch.stack(list(losses.values())).sum()

    def step() -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(network)

    for _ in range(2):  # keep the second: the first fills caches
        batch = part("transfer", lambda: move(cuda.pinned(next(iter(batches.train_dataloader()))), DEVICE))
        loss = part("losses", forward)
        part("backward", loss.backward)
        wrong = [
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and not isinstance(parameter.grad, cuda.OnDevice)
        ]
        part("step", step)
    counted["without gradient"] = wrong

    network.eval()
    evaluation = Evaluation(case.family, case.examples.targets, case.settings)
    (loader,) = batches.val_dataloader()

    def validate() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            evaluation.add(network, validation_batch)

    for _ in range(2):
        evaluation.start()
        validation_batch = move(cuda.pinned(next(iter(loader))), DEVICE)
        part("validation", validate)
    counted["metrics"] = evaluation.compute(1)
    with torch.inference_mode():
        for _ in range(2):
            part("predict", lambda: case.family.predict(network, [*case.examples.images] * 2))
    return counted


def try_tool() -> dict[str, Any]:
    """What happens where tensors of two devices meet, and the count of three waits among other operations."""
    ours = torch.ones(3, device=DEVICE)
    with cuda.counting():
        (ours * 2)[0].item()
        ours[ours > 0].add_(1)
        torch.ones(3).pin_memory().to(DEVICE, non_blocking=True)
        torch.ones(3).to(DEVICE, non_blocking=True)
        ours.masked_fill_(ours > 0, 1.0)
    waits = dict(cuda.WAITS)
    numbers = torch.arange(3).to(DEVICE)
    nested = {"a": [numbers, (numbers > 1)[:, None]], "b": (numbers[:0] / 3, None, numbers.half())}
    with cuda.counting():
        copied = on_cpu(nested)
    copies = {"waits": sum(cuda.WAITS.values()), "value": repr(copied)}
    with cuda.counting(), without_waits(DEVICE):
        values = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)[[2, 0]] + torch.arange(2).type_as(ours)
        values[torch.tensor([True, False])] = 7.0
        values = values.new_full((2,), values[1])
    copies |= {"made": values.tolist(), "waits of making": dict(cuda.WAITS)}
    try:
        _ = ours + torch.ones(3)
    except cuda.MixedDevicesError as error:
        return {"mixing": f"{type(error).__name__}: {error}", "waits": waits, "copies": copies}
    return {"mixing": "not seen", "waits": waits}


def main() -> None:
    for argument in sys.argv[1:]:
        model, _, task = argument.partition(":")
        try:
            result = rehearse(model, Task(task)) if task else try_tool()
        except Exception:  # noqa: BLE001 (the test shows it)
            result = {"error": traceback.format_exc(limit=-8)}
        print(json.dumps({"case": argument, **result}), flush=True)


if __name__ == "__main__":
    main()
