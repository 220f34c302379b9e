"""Compares XRAI with the `saliency` package: the same network, image and steps, in alternation.

    python benchmarks/explanations.py                # ResNet-18, 50 steps; 3 minutes on two cores
    python benchmarks/explanations.py --threads 1
    python benchmarks/explanations.py --model resnet50 --rounds 5 photo.jpg

The network is untrained; the image is a photograph included in scikit-image, or a given file. `saliency`
gets gradients at PyTorch's lowest cost: only those of the input, not of the weights. It is measured with
one step at a time, which is its default, and with eight steps at once. The goal is at most half the time
that `saliency` takes by default. The rank correlation is that of both maps. Other load on the machine slows
`saliency` down more than ours, whose two streams do not wait for each other: with several threads, measure
on a quiet machine only.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

import numpy as np
import torch
from PIL import Image as PILImage
from scipy.stats import spearmanr

from benchmarks import measuring
from benchmarks.measuring import Measurements, need, say
from serving.explain import methods
from serving.explain.explainer import Explainer
from serving.explain.request import ExplanationRequest
from serving.explain.subject import Subject
from trainer.data.images import decode
from trainer.models import Spec, create
from trainer.models.catalog import find
from trainer.models.defaults import resolve
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

GOAL = 0.5
AT_ONCE = 8
KINDS = {"fast": True, "full": False}
OURS = "{}: ours"
PEERS = {"{}: saliency": 1, f"{{}}: saliency, {AT_ONCE} steps at once": AT_ONCE}


def main() -> int:
    parser = measuring.arguments(__doc__, device=True)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, help="PyTorch threads [default: PyTorch's own]")
    parser.add_argument(
        "--channels-last", action="store_true", help="use this memory layout for saliency's network, too"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.tiny:
        options.model, options.steps, options.rounds = "timm/test_resnet", 2, 1
        del KINDS["full"]

    title = f"XRAI: {options.model}, {options.steps} steps, {torch.get_num_threads()} threads"
    print(measuring.heading(title, "torch", "saliency", "scikit-image"))
    family = _family(options.model)
    torch.manual_seed(0)
    network = family.build().eval().requires_grad_(False).to(options.device)
    subject = Explainer(family, network)._subject(decode(options.file) if options.file else _photograph())
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)
    maps: dict[str, np.ndarray] = {}
    contenders = _contenders(family, network, subject, options.steps, maps)
    for measure in _contenders(family, network, subject, 2, {}).values():
        _warmed_up(measure)
    found, absent = measuring.alternate(contenders, options.rounds)
    _print(found, absent, maps)
    return 0


def _family(model: str) -> Any:
    task = Task.CLASSIFICATION
    family = find(model, task).family
    module = import_module(f"trainer.models.{family}")
    return create(
        Spec(
            family=family,
            model=model,
            task=task,
            classes=("can", "carton", "milk_bottle", "water_bottle"),
            options=module.FAMILY.options(task, model, resolve(task, model, {}), False),
            parameters=ScoringParameters(),
        )
    )


def _photograph() -> np.ndarray:
    """Return a photograph of a cat, 640 x 480 pixels."""
    from skimage import data

    return np.array(
        PILImage.fromarray(data.chelsea()[:, 25:425]).resize((640, 480), PILImage.Resampling.BICUBIC)
    )


def _contenders(
    family: Any, network: torch.nn.Module, subject: Subject, steps: int, maps: dict[str, np.ndarray]
) -> dict[str, Callable[[], Measurements]]:
    """Make functions that explain the image once, store the map in `maps` and return the seconds."""

    def timed(name: str, explain: Callable[[], np.ndarray]) -> Callable[[], Measurements]:
        def measure() -> Measurements:
            began = time.perf_counter()
            maps[name] = explain()
            return {"seconds": time.perf_counter() - began}

        return measure

    contenders = {}
    for kind, fast in KINDS.items():
        contenders[OURS.format(kind)] = timed(OURS.format(kind), _ours(subject, steps, fast))
        for name, batch_size in PEERS.items():
            theirs = _theirs(family, network, subject, steps, fast, batch_size)
            contenders[name.format(kind)] = timed(name.format(kind), theirs)
    return contenders


def _ours(subject: Subject, steps: int, fast: bool) -> Callable[[], np.ndarray]:
    asked = ExplanationRequest(n_steps=steps, xrai_fast=fast)
    return lambda: methods.find("xrai").attribute(subject, 0, asked)[0].cpu().numpy()


def _theirs(
    family: Any, network: torch.nn.Module, subject: Subject, steps: int, fast: bool, batch_size: int
) -> Callable[[], np.ndarray]:
    device = next(network.parameters()).device
    mean, std = (
        torch.tensor(family.spec.options[name], device=device)[:, None, None] for name in ("mean", "std")
    )

    def gradients(values: Any, **_: Any) -> Any:
        import saliency.core as saliency

        pixels = torch.from_numpy(np.asarray(values, np.float32)).to(device).permute(0, 3, 1, 2)
        pixels = pixels.contiguous().requires_grad_()
        logits = network((pixels / 255 - mean) / std)[:, 0]
        (found,) = torch.autograd.grad(logits.sum(), pixels)
        return {saliency.INPUT_OUTPUT_GRADIENTS: found.permute(0, 2, 3, 1).cpu().numpy()}

    def explain() -> np.ndarray:
        need("saliency")
        import saliency.core as saliency

        parameters = saliency.XRAIParameters(algorithm="fast" if fast else "full", steps=steps)
        found: np.ndarray = saliency.XRAI().GetMask(
            subject.pixels.astype(np.float32), gradients, extra_parameters=parameters, batch_size=batch_size
        )
        return found

    return explain


def _warmed_up(measure: Callable[[], Measurements]) -> None:
    try:
        measure()
    except measuring.Absent as error:
        say(str(error))


def _print(found: dict[str, list[Measurements]], absent: dict[str, str], maps: dict[str, np.ndarray]) -> None:
    rows = []
    for kind in KINDS:
        ours = OURS.format(kind)
        rows.append([ours, measuring.spread([each["seconds"] for each in found[ours]]), "", "", ""])
        for name, batch_size in PEERS.items():
            peer = name.format(kind)
            if peer in absent:
                rows.append([peer, absent[peer], "", "", ""])
                continue
            ratios = measuring.ratios(found[ours], found[peer], "seconds")
            met = "met" if statistics.median(ratios) <= GOAL else "**missed**"
            rows.append(
                [
                    peer,
                    measuring.spread([each["seconds"] for each in found[peer]]),
                    measuring.spread(ratios),
                    f"≤ {GOAL}: {met}" if batch_size == 1 else "–",
                    f"{spearmanr(maps[ours].ravel(), maps[peer].ravel()).statistic:.3f}",
                ]
            )
    print(measuring.table(["xrai", "seconds per image", "ours / saliency", "goal", "rank correlation"], rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak resident memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
