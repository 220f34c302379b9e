"""How long COCO's figures take here and with pycocotools, on the same random detections.

    python benchmarks/evaluation.py                      # 5,000 images with 100 detections each
    python benchmarks/evaluation.py --images 500         # a quick look

Both start from the same arrays, an image at a time, and end with the twelve figures, which must agree to
1e-6; ours computes the VOC-style figures along. The rounds alternate; a figure is the median of its rounds.
CPU time counts all threads and bears other work on the machine better than wall time. Needs
`pip install pycocotools`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from trainer import metrics
from trainer.annotations import Detections, Objects
from trainer.metrics.coco import NAMES
from trainer.tasks import Task

Pair = tuple[Detections, Objects]
HEIGHT, WIDTH = 480, 640


def random_pairs(images: int, detections: int, classes: int, seed: int = 0) -> list[Pair]:
    """Images with about seven objects, of which most are found, and for the rest false detections."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        true = int(rng.integers(0, 15))
        boxes, labels = _boxes(rng, true), rng.integers(0, classes, true)
        found = np.concatenate([boxes + rng.normal(0, 0.005, boxes.shape), _boxes(rng, detections)])[
            :detections
        ]
        found = found.clip(0, 1).astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        found_labels = np.concatenate([labels, rng.integers(0, classes, detections)])[:detections]
        scores = rng.random(detections).astype(np.float32)
        scores[:true] = (scores[:true] + 2) / 3
        order = np.argsort(-scores)
        crowd = rng.random(true) < 0.02
        prediction = Detections(found[order], found_labels[order], scores[order], (HEIGHT, WIDTH))
        pairs.append((prediction, Objects(boxes, labels, crowd)))
    return pairs


def _boxes(rng: np.random.Generator, count: int) -> Any:
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (count, 2)))
    corner = rng.uniform(0, 1 - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def ours(pairs: list[Pair], classes: int) -> dict[str, float]:
    names = [str(label) for label in range(classes)]
    evaluator = metrics.create(Task.DETECTION, names, metric_type="coco_voc")
    for prediction, truth in pairs:
        evaluator.update(prediction, truth)
    figures = evaluator.compute()
    return {name: figures[name] for name in NAMES}


def theirs(pairs: list[Pair], classes: int) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    factor = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=np.float64)
    truths: list[dict[str, Any]] = []
    found = []
    for number, (prediction, truth) in enumerate(pairs, start=1):
        for box, label, crowd in zip(
            _pixels(truth.boxes, factor).tolist(), truth.labels.tolist(), truth.crowd.tolist(), strict=True
        ):
            truths.append(
                {
                    "id": len(truths) + 1, "image_id": number, "category_id": label + 1, "bbox": box,
                    "area": box[2] * box[3], "iscrowd": int(crowd),
                }
            )  # fmt: skip
        rows = _pixels(prediction.boxes, factor)
        images = np.full((len(rows), 1), number)
        found.append(
            np.concatenate([images, rows, prediction.scores[:, None], prediction.labels[:, None] + 1], axis=1)
        )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, len(pairs) + 1)],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
        "annotations": truths,
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(np.concatenate(found)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def _pixels(boxes: Any, factor: Any) -> Any:
    pixels = boxes.astype(np.float64) * factor
    pixels[:, 2:] -= pixels[:, :2]
    return pixels


def timed(work: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float, float]:
    """What it returns, seconds of wall time, seconds of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = work()
    return figures, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pairs = random_pairs(options.images, options.detections, options.classes)
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "pycocotools": []}
    for number in range(options.rounds):
        found = {}
        for name, work in (("ours", ours), ("pycocotools", theirs)):
            found[name], wall, cpu = timed(lambda work=work: work(pairs, options.classes))  # type: ignore[misc]
            times[name].append((wall, cpu))
            print(f"round {number + 1}: {name} {wall:.1f} s, CPU {cpu:.1f} s", file=sys.stderr)
        off = max(abs(found["ours"][name] - found["pycocotools"][name]) for name in NAMES)
        if off > 1e-6:
            sys.exit(f"the figures differ by {off:.2g}: {found}")
    walls = {name: statistics.median(wall for wall, _ in rounds) for name, rounds in times.items()}
    cpus = {name: statistics.median(cpu for _, cpu in rounds) for name, rounds in times.items()}
    print(
        f"{options.images:,} images × {options.detections} detections, {options.classes} classes, "
        f"median of {options.rounds} alternating rounds, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, pycocotools {version('pycocotools')}, faster-coco-eval "
        f"{version('faster-coco-eval')}; figures equal to {max(off, 1e-16):.0e}, "
        f"map {found['ours']['map']:.3f}\n"
    )
    print("| | wall s | CPU s | pycocotools ÷ this, wall | CPU |\n|---|---:|---:|---:|---:|")
    for name in times:
        ratio, cpu_ratio = walls["pycocotools"] / walls[name], cpus["pycocotools"] / cpus[name]
        print(f"| {name} | {walls[name]:.1f} | {cpus[name]:.1f} | {ratio:.1f} × | {cpu_ratio:.1f} × |")


if __name__ == "__main__":
    main()
