"""Compares the time to compute COCO's metrics with pycocotools, on the same random detections.

    python benchmarks/evaluation.py                      # 5,000 images with 100 detections each
    python benchmarks/evaluation.py --images 500         # a quick look

Both start from the same arrays, one image at a time, and end with the twelve metrics, which must agree to
1e-6; ours also computes the VOC-style metrics. CPU time includes all threads and is less sensitive than
wall time to other load on the machine.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

from benchmarks import measuring
from benchmarks.measuring import Measurements, need
from trainer import metrics
from trainer.annotations import Detections, Objects
from trainer.metrics.coco import NAMES
from trainer.tasks import Task

Pair = tuple[Detections, Objects]
HEIGHT, WIDTH = 480, 640
GOAL = 5.0


def random_pairs(images: int, detections: int, classes: int, seed: int = 0) -> list[Pair]:
    """Make images with about seven objects, most of which are detected, and otherwise false detections."""
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
    for prediction, target in pairs:
        evaluator.update(prediction, target)
    measurements = evaluator.compute()
    return {name: measurements[name] for name in NAMES}


def theirs(pairs: list[Pair], classes: int) -> dict[str, float]:
    need("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    factor = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=np.float64)
    targets: list[dict[str, Any]] = []
    found = []
    for number, (prediction, target) in enumerate(pairs, start=1):
        for box, label, crowd in zip(
            _pixels(target.boxes, factor).tolist(), target.labels.tolist(), target.crowd.tolist(), strict=True
        ):
            targets.append(
                {
                    "id": len(targets) + 1, "image_id": number, "category_id": label + 1, "bbox": box,
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
        "annotations": targets,
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


def timed(work: Callable[[], dict[str, float]]) -> Measurements:
    """Run and time `work`; return its metrics and the seconds of wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measurements = work()
    return {**measurements, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--images", type=int, default=5000, help="[default: 5000]")
    parser.add_argument("--detections", type=int, default=100, help="detections per image [default: 100]")
    parser.add_argument("--classes", type=int, default=80, help="[default: 80]")
    options = parser.parse_args()
    if options.tiny:
        options.images, options.rounds = 20, 1
    print(measuring.heading("Evaluation", "pycocotools", "faster-coco-eval"), flush=True)
    pairs = random_pairs(options.images, options.detections, options.classes)
    found, absent = measuring.alternate(
        {
            "ours": lambda: timed(lambda: ours(pairs, options.classes)),
            "pycocotools": lambda: timed(lambda: theirs(pairs, options.classes)),
        },
        options.rounds,
    )
    if "ours" not in found:
        sys.exit(absent["ours"])
    own, peers = found["ours"], found.get("pycocotools", [])
    off = max(
        (abs(a[name] - b[name]) for a, b in zip(own, peers, strict=False) for name in NAMES), default=0.0
    )
    if off > 1e-6:
        sys.exit(f"the metrics differ by {off:.2g}: {own[0]} and {peers[0]}")
    agreement = f"metrics equal to {max(off, 1e-16):.0e}" if peers else "metrics not compared"
    print(
        f"{options.images:,} images with {options.detections} detections each, {options.classes} classes; "
        f"{agreement}, map {own[0]['map']:.3f}.\n"
    )
    rows = []
    for kind in ("wall", "cpu"):
        ratios = measuring.ratios(own, peers, kind, less_is_better=True)
        rows.append([
            f"{kind} time, s", measuring.spread([each[kind] for each in own]),
            measuring.spread([each[kind] for each in peers]) if peers else absent["pycocotools"],
            measuring.spread(ratios),
            measuring.verdict(ratios, GOAL if kind == "wall" else None),
        ])  # fmt: skip
    print(measuring.table(("", "ours", "pycocotools", "pycocotools / ours", "goal"), rows))


if __name__ == "__main__":
    main()
