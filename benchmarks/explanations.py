"""XRAI here against the `saliency` package: the same network, images, steps and batch, in turns.

    python -m benchmarks.explanations [--model resnet18] [--steps 50] [--images 2] [--rounds 3] [FILES…]

The network is untrained and the images are noise unless files are named: the time depends on neither, but
for the number of segments. `saliency` gets gradients as cheaply as PyTorch gives them, of the input alone.
It is measured as users call it (a step at a time, its default) and with the steps batched as here.
Prints a Markdown table: seconds an image, their ratio to ours, and the rank correlation with ours.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import saliency.core as saliency
import torch
from PIL import Image as PILImage
from scipy.stats import spearmanr

from serving.explain import methods
from serving.explain.explainer import Explainer
from serving.explain.request import ExplanationRequest
from serving.explain.subject import AT_ONCE, Subject
from trainer.data.images import decode
from trainer.models import Spec, create
from trainer.models.catalog import find
from trainer.scoring import ScoringParameters
from trainer.settings import resolve
from trainer.tasks import Task

Run = Callable[[Subject], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    family = _family(arguments.model)
    torch.manual_seed(0)
    network = family.build().eval().requires_grad_(False).to(arguments.device)
    explainer = Explainer(family, network)
    images = [decode(file) for file in arguments.files] or [_noise(seed) for seed in range(arguments.images)]
    subjects = [explainer._subject(image) for image in images]
    runs = _runs(family, network, arguments.steps)
    for run in _runs(family, network, 2).values():
        run(subjects[0])  # warms up

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    maps: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    for turn in range(arguments.rounds):
        for subject in subjects:
            # In turns, and each other time in the other order: what disturbs one disturbs all.
            for name, run in list(runs.items())[:: 1 if turn % 2 == 0 else -1]:
                start = time.perf_counter()
                found = run(subject)
                seconds[name].append(time.perf_counter() - start)
                maps[name].append(found)
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    _print(arguments, seconds, maps)


def _family(model: str) -> Any:
    task = Task.CLASSIFICATION
    family = find(model, task).family
    module = import_module(f"trainer.models.{family}")
    options = module.FAMILY.options(task, model, resolve(task, model, {}), False)
    classes = ("can", "carton", "milk_bottle", "water_bottle")
    return create(
        Spec(
            family=family,
            model=model,
            task=task,
            classes=classes,
            options=options,
            parameters=ScoringParameters(),
        )
    )


def _noise(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.array(PILImage.fromarray(coarse).resize((640, 480), PILImage.Resampling.BICUBIC))


def _runs(family: Any, network: torch.nn.Module, steps: int) -> dict[str, Run]:
    def ours(fast: bool) -> Run:
        asked = ExplanationRequest(n_steps=steps, xrai_fast=fast)
        return lambda subject: methods.find("xrai").attribute(subject, 0, asked)[0].cpu().numpy()

    def theirs(fast: bool, batch_size: int) -> Run:
        parameters = saliency.XRAIParameters(algorithm="fast" if fast else "full", steps=steps)

        def run(subject: Subject) -> np.ndarray:
            found: np.ndarray = saliency.XRAI().GetMask(
                subject.pixels.astype(np.float32),
                gradients,
                extra_parameters=parameters,
                batch_size=batch_size,
            )
            return found

        return run

    device = next(network.parameters()).device
    mean, std = (
        torch.tensor(family.spec.options[name], device=device)[:, None, None] for name in ("mean", "std")
    )

    def gradients(values: Any, **_: Any) -> Any:
        pixels = torch.from_numpy(np.asarray(values, np.float32)).to(device).permute(0, 3, 1, 2)
        pixels = pixels.requires_grad_()
        logits = network((pixels / 255 - mean) / std)[:, 0]
        (found,) = torch.autograd.grad(logits.sum(), pixels)
        return {saliency.INPUT_OUTPUT_GRADIENTS: found.permute(0, 2, 3, 1).cpu().numpy()}

    return {
        "fast: ours": ours(True),
        "fast: saliency": theirs(True, 1),
        f"fast: saliency, {AT_ONCE} steps at once": theirs(True, AT_ONCE),
        "full: ours": ours(False),
        "full: saliency": theirs(False, 1),
        f"full: saliency, {AT_ONCE} steps at once": theirs(False, AT_ONCE),
    }


def _print(arguments: Any, seconds: dict[str, list[float]], maps: dict[str, list[np.ndarray]]) -> None:
    threads = torch.get_num_threads()
    print(f"{arguments.model}, {arguments.steps} steps, {arguments.device}, {threads} threads, ", end="")
    print(f"{arguments.rounds} rounds; the median\n")
    print("| xrai | seconds an image | of saliency's time | rank correlation with ours |")
    print("|---|---|---|---|")
    for name, taken in seconds.items():
        kind = name.split(":")[0]
        median = statistics.median(taken)
        ratio = statistics.median(seconds[f"{kind}: ours"]) / median
        correlations = [
            spearmanr(one.ravel(), other.ravel()).statistic
            for one, other in zip(maps[name], maps[f"{kind}: ours"], strict=True)
        ]
        is_ours = name.endswith("ours")
        told = ("", "") if is_ours else (f"{ratio:.2f}", f"{min(correlations):.3f}")
        print(f"| {name} | {median:.2f} | {told[0]} | {told[1]} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak resident memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
