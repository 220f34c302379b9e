"""Compares ways to fine-tune published weights on a hundred images, as most users have.

    make real-weights                                                          # once
    python benchmarks/few_images.py --data-root ../shared/data                 # resumes if it was interrupted
    python benchmarks/few_images.py --data-root ../shared/data --table         # prints the results so far

Two sets are used as they are: fridge_multiclass (108 images) and cards/multilabel (238). Three are made of
the objects of the other sets, cut from their images with a margin of a tenth: cards, microcontrollers, fruits
and nuts, 13 classes. Each seed draws other training images; all are measured on the 179 objects of the sets'
validation images.

- few: five images of each class
- imbalanced: 16 images of the most frequent class, ever fewer of the others, down to two
- noisy: eight images of each class, and a fifth of them with the label of another class

All contenders start from the same weights and train for as many epochs on images of the same size. All are
measured by trainer.metrics after their last epoch, so none chooses an epoch by the images that it is measured
on. Peers crop images as usual: a random part and a flip for training, a bicubic resize and a centre crop for
measuring.

Metrics are kept as in accuracy.py.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

import torch
from PIL import Image, ImageOps

from benchmarks import data, measuring
from benchmarks.accuracy import Results, judgement, shown
from benchmarks.contenders.common import Options
from benchmarks.measuring import Absent, say
from trainer.annotations import Objects
from trainer.tasks import Task

OBJECTS = ("cards/detection", "microcontrollers", "fruits_nuts/detection")
"""The sets whose objects the made sets consist of."""


@dataclass(frozen=True)
class Contender:
    """A way to train: the script in contenders/ and its options."""

    script: str
    options: Mapping[str, Any] = field(default_factory=dict)


_BATCH = {"batch": 16}
CONTENDERS = {
    "ours, reference": Contender("ours", {"recipe": "reference", "batch": None}),
    "ours, modern": Contender("ours", {"recipe": "modern", "batch": None}),
    "timm, sgd": Contender("timm_loop", {**_BATCH, "optimizer": "sgd", "learning_rate": 0.01}),
    "timm, adamw": Contender(
        "timm_loop", {**_BATCH, "optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05}
    ),
    "probe": Contender("probe"),
}
"""By name. Batches of ours are its recipes' own."""
PEERS = tuple(name for name in CONTENDERS if not name.startswith("ours"))
REAL = {"fridge": "fridge_multiclass", "labels": "cards/multilabel"}
SETS = (*REAL, "few", "imbalanced", "noisy")


def files_of(name: str, seed: int, root: Path, scratch: Path) -> tuple[Path, Path, Task]:
    """Return the training and the validation file of a set, made for a seed if it is one of the made sets."""
    if name in REAL:
        task = Task.MULTILABEL if name == "labels" else Task.CLASSIFICATION
        return root / REAL[name] / "train.jsonl", root / REAL[name] / "validation.jsonl", task
    objects = cut_objects(root, scratch)
    train = scratch / f"{name}-{seed}.jsonl"
    if not train.is_file():
        lines = _drawn(name, _by_class(objects / "train.jsonl"), random.Random(seed))
        train.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return train, objects / "validation.jsonl", Task.CLASSIFICATION


def cut_objects(root: Path, scratch: Path) -> Path:
    """Cut every object out of its image; return the folder with `train.jsonl` and `validation.jsonl`."""
    folder = scratch / "objects"
    for part in ("train", "validation"):
        target = folder / f"{part}.jsonl"
        if target.is_file():
            continue
        (folder / part).mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        for file in (root / name / f"{part}.jsonl" for name in OBJECTS):
            for image, label in _objects(file):
                path = f"{part}/{len(lines):04d}.jpg"
                image.save(folder / path, quality=95)
                lines.append(json.dumps({"image_url": f"{folder / path}", "label": label}))
        target.write_text("".join(f"{line}\n" for line in lines))
    return folder


def _objects(file: Path) -> Iterator[tuple[Image.Image, str]]:
    records = data.records(file, Task.DETECTION)
    for index in range(len(records)):
        image = ImageOps.exif_transpose(Image.open(records.source(index))).convert("RGB")
        target = records.target(index)
        assert isinstance(target, Objects)
        for (x1, y1, x2, y2), label in zip(target.boxes, target.labels, strict=True):
            margin_x, margin_y = (x2 - x1) / 10, (y2 - y1) / 10
            box = (x1 - margin_x, y1 - margin_y, x2 + margin_x, y2 + margin_y)
            corners = [round(min(max(0.0, at), 1.0) * image.size[i % 2]) for i, at in enumerate(box)]
            yield image.crop(tuple(corners)), records.classes[label]  # type: ignore[arg-type]


def _by_class(file: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        found.setdefault(line["label"], []).append(line)
    return dict(sorted(found.items()))


def _drawn(name: str, images: dict[str, list[dict[str, str]]], chance: random.Random) -> list[dict[str, str]]:
    """Draw the training images of a made set from those of each class."""
    classes = list(images)
    chance.shuffle(classes)  # which classes are rare
    counts = {
        "few": [5] * len(classes),
        "imbalanced": [round(16 * 8 ** (-i / (len(classes) - 1))) for i in range(len(classes))],
        "noisy": [8] * len(classes),
    }[name]
    lines = [
        line
        for label, count in zip(classes, counts, strict=True)
        for line in chance.sample(images[label], min(count, len(images[label])))
    ]
    if name == "noisy":
        for index in chance.sample(range(len(lines)), len(lines) // 5):
            others = [label for label in classes if label != lines[index]["label"]]
            lines[index] = {**lines[index], "label": chance.choice(others)}
    chance.shuffle(lines)
    return lines


def key_of(name: str, contender: str, arguments: Any) -> str:
    return f"{name} {arguments.model} {arguments.image_size}px e{arguments.epochs} {contender}"


def train(name: str, contender: Contender, seed: int, scratch: Path, arguments: Any) -> float:
    train_file, validation_file, task = files_of(name, seed, arguments.data_root.resolve(), scratch)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        options = {
            "task": task.value, "model": arguments.model, "weights": str(arguments.weights.resolve()),
            "train": str(train_file), "validation": str(validation_file), "folder": f"{folder}/run",
            "epochs": arguments.epochs, "image_size": arguments.image_size, "workers": arguments.workers,
            "threads": arguments.threads, "device": arguments.device, "seed": seed, "score": True,
            "last": True, **contender.options,
        }  # fmt: skip
        try:
            # In this process: imports would take as long as a training run does.
            script = import_module(f"benchmarks.contenders.{contender.script}")
        except ModuleNotFoundError as error:
            raise Absent(str(error)) from error
        torch.set_num_threads(arguments.threads)
        return float(script.train(Options(**options))["metric"])


def row(name: str, results: Results, arguments: Any) -> list[str]:
    values = {each: results.of(key_of(name, each, arguments), arguments.seeds) for each in CONTENDERS}
    modern = values["ours, modern"]
    wanted = len(arguments.seeds or range(arguments.rounds))
    return [
        name,
        *(shown(values[each], wanted) for each in CONTENDERS),
        *(judgement(modern, values[peer]) for peer in PEERS),
    ]


def add_arguments(
    parser: ArgumentParser,
    script: str,
    *,
    image_size: int,
    sets: Collection[str],
    contenders: Collection[str],
) -> None:
    """Add the flags of a comparison on these sets."""
    parser.add_argument("--data-root", type=Path, required=True, help="directory of the data sets")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="[default: weights]")
    parser.add_argument("--model", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=image_size, help=f"[default: {image_size}]")
    results = Path(script).with_suffix(".json")
    parser.add_argument(
        "--results", type=Path, default=results, help=f"[default: {results.name} next to the script]"
    )
    parser.add_argument("--only", nargs="+", choices=sets, default=tuple(sets))
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=tuple(contenders))
    parser.add_argument("--table", action="store_true", help="print the results so far without training")


def pending(
    results: Results, arguments: Any, key_of: Callable[[str, str, Any], str]
) -> Iterator[tuple[str, str, str, int]]:
    """Yield key, set, contender and seed of each metric that is not measured yet, seed by seed."""
    for seed in () if arguments.table else arguments.seeds or range(arguments.rounds):
        for name in arguments.only:
            for contender in arguments.contenders:
                key = f"{key_of(name, contender, arguments)} seed {seed}"
                if key not in results.found:
                    yield key, name, contender, seed


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=3, device=True, seeds=True)
    add_arguments(parser, __file__, image_size=224, sets=SETS, contenders=CONTENDERS)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.rounds, arguments.epochs, arguments.image_size = 1, 1, 64
    results = Results(arguments.results)
    measuring.hide_gpus(arguments.device)
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for key, name, contender, seed in pending(results, arguments, key_of):
            if contender in absent:
                continue
            say(key)
            commit, start = measuring.commit(), time.process_time()
            try:
                value = train(name, CONTENDERS[contender], seed, Path(scratch), arguments)
            except Absent as error:
                absent[contender] = str(error)
            except RuntimeError as error:  # retried when the script runs again
                say(str(error))
            else:
                results.add(key, value, commit)
                say(f"  {value:.3f}, {time.process_time() - start:.0f} s of CPU time")
    print(measuring.heading("Few images", "torch", "lightning", "timm", "scikit-learn"))
    headers = ("set", *CONTENDERS, *(f"modern − {peer}" for peer in PEERS))
    print(measuring.table(headers, [row(name, results, arguments) for name in arguments.only]))
    print(f"\nTrained at commits: {', '.join(results.commits(arguments.only)) or 'none yet'}.")
    for name, reason in absent.items():
        print(f"\n{name}: {reason}")


if __name__ == "__main__":
    main()
