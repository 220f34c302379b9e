"""Compares the speed of the input pipeline: reading lines, decoding and augmenting images, loading batches.

    python benchmarks/input_pipeline.py                      # everything; takes some minutes
    python benchmarks/input_pipeline.py --only lines --lines 1000000

Lines and images are measured on one core by CPU time, which is little affected by other load on the
machine. The peers are, for lines, plain parsers that check nothing; for images, each library's own training
dataset; for the loader, timm's.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages
os.environ.setdefault("YOLO_OFFLINE", "true")

import cv2
import numpy as np
import torch
from torch.utils.data._utils import worker

from benchmarks import data, measuring
from benchmarks.measuring import Measurements, need, number, say
from benchmarks.reading_lines import write_lines
from trainer.cores import available_cores
from trainer.data.datasets import RecordExamples
from trainer.data.quick_decoding import decode_quickly
from trainer.models import Family, create, specify
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw
from trainer.settings import Settings
from trainer.tasks import Task
from trainer.training.loading import Batches, SeededItems

SECONDS_GOAL, BYTES_GOAL = 10.0, 1_000_000_000
"""Goals for a million lines, on one core: time, and memory of the whole process."""
VALIDATION_GOAL = 0.9
"""`trainer validate` takes at most this fraction of the CPU time of `json.loads` over the same lines."""
WARM_UP = 8
"""Number of items that are not counted: an operation is slow the first time, and items use some at random."""


def lines(arguments: Any) -> None:
    count = 2000 if arguments.tiny else arguments.lines
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train.jsonl"
        write_lines(path, count)
        found, absent = measuring.alternate(
            {
                how: lambda how=how: measuring.run_python(
                    "benchmarks.reading_lines", {"how": how, "path": str(path)}
                )
                for how in ("ours", "msgspec", "orjson", "json")
            },
            arguments.rounds,
        )
        on_one_core, on_all_cores = (
            measuring.run_python(
                "benchmarks.reading_lines", {"how": "validate", "path": str(path), "cores": cores}
            )
            for cores in (1, available_cores())
        )
        megabytes = path.stat().st_size / 1e6
    rows = [
        [
            {"ours": "ours: read and validated", "json": "json of Python"}.get(how, f"{how}, parsed alone"),
            number(count / measuring.median(measurements, "cpu_seconds")),
            measuring.spread(
                measuring.ratios(found.get("ours", []), measurements, "cpu_seconds", less_is_better=True)
            ),
            number(measuring.median(measurements, "resident") / count),
            number(measurements[0]["pickled"] / count) if how == "ours" else "–",
            number(measuring.median(measurements, "peak_mb")),
        ]
        for how, measurements in found.items()
    ] + [[how, reason, "–", "–", "–", "–"] for how, reason in absent.items()]
    print(f"\n### Lines\n\n{count:,} lines with one to five boxes, {number(megabytes)} MB.\n")
    headers = (
        "reader",
        "lines/s on one core",
        "its time / ours",
        "bytes kept per record",
        "bytes pickled",
        "peak MB",
    )
    print(measuring.table(headers, rows))
    ours = found.get("ours")
    if ours is None:
        raise SystemExit("the reader failed")
    times = 1e6 / count
    met = measuring.median(ours, "cpu_seconds") * times <= SECONDS_GOAL
    # The process itself needs memory only once.
    kept, peak = measuring.median(ours, "resident"), measuring.median(ours, "peak_mb") * 1e6
    met = met and peak + kept * max(0.0, times - 1) <= BYTES_GOAL
    print(
        f"\nGoal, a million lines in {SECONDS_GOAL:.0f} s and {BYTES_GOAL / 1e9:.0f} GB: "
        f"{'met' if met else '**missed**'}."
    )
    met = on_one_core["cpu_ratio"] <= VALIDATION_GOAL
    print(
        f"`trainer validate` takes {number(on_one_core['cpu_ratio'])} of the CPU time of `json.loads` over "
        f"the same lines on one core, which keeps nothing; goal, at most {VALIDATION_GOAL}: "
        f"{'met' if met else '**missed**'}. On {available_cores()} cores it takes "
        f"{number(on_all_cores['wall_ratio'])} of its time."
    )


def rate(make: Callable[[int], object], count: int) -> Measurements:
    """Return items per second of this thread's CPU time."""
    gc.collect()  # so that no item is timed with the collection of what imports left behind
    began = time.thread_time()
    for index in range(count):
        make(index)
    return {"per_second": count / (time.thread_time() - began)}


def examples(
    task: Task, model: str, size: int, folder: Path
) -> tuple[Family, Settings, RecordExamples, RecordExamples]:
    """Return family, settings, and training examples decoded at full scale and as in training."""
    by_family = (
        {"training_crop_size": size, "validation_crop_size": size}
        if not task.has_boxes
        else {"min_size": size, "max_size": 2 * size} if "rcnn" in model else {"image_size": size}
    )  # fmt: skip
    settings = resolve(task, model, by_family)
    train, validation = folder / "train.jsonl", folder / "validation.jsonl"
    classes = data.all_classes(task, train, validation)
    family = create(specify(task, model, settings, classes, pretrained=False))
    whole = RecordExamples(data.records(train, task, classes), classes)
    return family, settings, whole, for_training(family, settings, whole)


def for_training(family: Family, settings: Settings, whole: RecordExamples) -> RecordExamples:
    """Return the same examples as they are decoded and cached in training, none of them decoded yet."""
    cache = 0 if family.cached_images(settings) else settings.image_cache_megabytes * 2**20
    records = whole.records
    return RecordExamples(records, records.classes, family.short_side(settings), cache, quickly=True)


def timm_items(folder: Path, task: Task, size: int) -> Callable[[int], object]:
    need("timm")
    from timm.data import create_transform

    from benchmarks.contenders.timm_loop import Images

    images = Images(data.records(folder / "train.jsonl", task))
    # As in its own loop: uint8 images, which are normalised on the device.
    images.transform = create_transform(
        size, is_training=True, hflip=0.5, color_jitter=0.4, color_jitter_prob=0.5, use_prefetcher=True
    )
    return lambda index: images[index]


def ultralytics_items(folder: Path, task: Task, size: int) -> Callable[[int], object]:
    need("ultralytics")
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    config = data.as_yolo(folder / "train.jsonl", folder / "validation.jsonl", task, folder / "yolo")
    kind = "segment" if task is Task.SEGMENTATION else "detect"
    options = get_cfg(overrides={"imgsz": size, "task": kind, "cache": False})
    described = check_det_dataset(str(config))
    dataset = build_yolo_dataset(options, described["train"], 16, described, mode="train")
    return lambda index: dataset[index]


def torchvision_items(folder: Path, task: Task, size: int) -> Callable[[int], object]:
    from benchmarks.contenders.common import Options
    from benchmarks.contenders.torchvision_loop import Images, build

    images = Images(data.records(folder / "train.jsonl", task), flips=True)
    files = {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")}
    network = build(Options(task.value, "fasterrcnn_resnet18_fpn", folder="", image_size=size, **files))

    def item(index: int) -> object:
        picture, target = images[index]
        return network.transform([picture], [target])  # torchvision does this in the network

    return item


PEERS = {
    "timm": (timm_items, Task.CLASSIFICATION, "resnet50", 224),
    "timm, multilabel": (timm_items, Task.MULTILABEL, "resnet50", 224),
    "ultralytics": (ultralytics_items, Task.DETECTION, "yolo11n", 640),
    "ultralytics, masks": (ultralytics_items, Task.SEGMENTATION, "yolo11n-seg", 640),
    "torchvision": (torchvision_items, Task.DETECTION, "fasterrcnn_resnet50_fpn", 600),
    "torchvision, masks": (torchvision_items, Task.SEGMENTATION, "maskrcnn_resnet50_fpn", 600),
}


@contextmanager
def one_core() -> Iterator[None]:
    """Use one thread and look like a loader worker, where items are made."""
    threads, of_opencv, info = torch.get_num_threads(), cv2.getNumThreads(), worker._worker_info
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    worker._worker_info = SimpleNamespace(id=0, num_workers=1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(of_opencv)
        worker._worker_info = info


@one_core()
def images(arguments: Any, scratch: Path, photo: tuple[int, int] = (640, 480)) -> None:
    """Measure decoding and augmentation, image by image on one core."""
    if arguments.tiny:
        photo = (96, 80)
    rows = []
    # Mosaic combines four images; a few large ones are enough.
    count = 2 if arguments.tiny else 40 if photo[0] < 1000 else 8
    for name, (items_of, task, model, full_size) in PEERS.items():
        size = 64 if arguments.tiny else full_size
        folder = scratch / f"{task.value}-{photo[0]}"
        if not folder.exists():
            data.make(task, folder, count, photo)
        family, settings, whole, _ = examples(task, model, size, folder)

        def items() -> Any:
            dataset = family.training_dataset(for_training(family, settings, whole), settings, 0)  # noqa: B023
            return finished(family, SeededItems(dataset, 0))  # noqa: B023

        def ours() -> Measurements:
            """Measure two epochs: the second finds the images that the first has cached."""
            warmed = items()  # a separate dataset, since it caches images
            for index in range(min(count, WARM_UP)):
                warmed(Draw(0, index))
            made = items()
            first, second = (rate(lambda index: made(Draw(epoch, index)), count) for epoch in (0, 1))  # noqa: B023
            return {**first, "second": second["per_second"]}

        def peer() -> Measurements:
            warmed = items_of(folder, task, size)  # noqa: B023
            for index in range(min(count, WARM_UP)):
                warmed(index)
            return rate(items_of(folder, task, size), count)  # noqa: B023

        found, absent = measuring.alternate({"ours": ours, name: peer}, arguments.rounds)
        own, of_peer = found["ours"], found.get(name, [])
        first = measuring.ratios(own, of_peer, "per_second")
        later = [a["second"] / b["per_second"] for a, b in zip(own, of_peer, strict=False)]
        rows.append([
            f"{task}: {model}, {size} px, from {photo[0]} × {photo[1]}",
            name,
            measuring.spread([each["per_second"] for each in of_peer]) if of_peer else absent[name],
            measuring.spread([each["per_second"] for each in own]),
            measuring.spread(first),
            measuring.verdict(first, 1.0),
            measuring.spread([each["second"] for each in own]),
            measuring.spread(later),
        ])  # fmt: skip
    print(
        f"\n### Decoding and augmentation, photos of {photo[0]} × {photo[1]}\n\nImages per second on one "
        "core, by CPU time. From its second epoch ours finds as many images decoded as\n"
        "image_cache_megabytes has room for, here all of them.\n"
    )
    headers = (
        "workload", "peer", "peer", "ours, first epoch", "ours / peer", "goal", "ours, later epochs",
        "ours, later / peer",
    )  # fmt: skip
    print(measuring.table(headers, rows))


def finished(family: Family, items: Any) -> Callable[[Draw], object]:
    """Make items, for R-CNNs with the network's transform, which the peer's dataset applies, too."""
    if family.spec.family != "rcnn":
        return lambda draw: items[draw]
    transform = family.build().transform
    return lambda draw: transform([items[draw][0].float() / 255])


def reduced_scale(arguments: Any, scratch: Path) -> None:
    """Measure the time that decoding at a reduced scale saves and how much it changes the network's input."""
    photos = ((640, 480),) if arguments.tiny else ((2000, 1500), (4000, 3000))
    rows = []
    for photo in photos:
        for task, model, full_size in (
            (Task.CLASSIFICATION, "resnet50", 224),
            (Task.DETECTION, "yolo11n", 640),
            (Task.DETECTION, "fasterrcnn_resnet50_fpn", 600),
        ):  # fmt: skip
            size = 64 if arguments.tiny else full_size
            folder = scratch / f"{task.value}-{photo[0]}"
            if not folder.exists():
                data.make(task, folder, 4, photo)
            family, _, whole, reduced = examples(task, model, size, folder)
            source, short_side = Path(whole.records.source(0)), reduced.short_side
            found, _ = measuring.alternate(
                {
                    "whole": lambda: rate(lambda _: decode_quickly(source), 4),  # noqa: B023
                    "reduced": lambda: rate(lambda _: decode_quickly(source, short_side=short_side), 4),  # noqa: B023
                },
                arguments.rounds,
            )
            scale = max(1, round(whole[0].image.shape[0] / reduced[0].image.shape[0]))
            std = 1.0 if task.has_boxes else float(np.mean(family.spec.options["std"]))
            differences = [
                255 * std * difference(family, whole[i].image, reduced[i].image)
                for i in range(min(4, len(whole)))
            ]  # fmt: skip
            rows.append([
                f"{model}, {size} px, from {photo[0]} × {photo[1]}", f"1/{scale}",
                number(1000 / measuring.median(found["whole"], "per_second")),
                number(1000 / measuring.median(found["reduced"], "per_second")),
                measuring.spread(measuring.ratios(found["reduced"], found["whole"], "per_second")),
                measuring.spread(differences),
            ])  # fmt: skip
    print(
        "\n### JPEGs at a reduced scale\n\nUsed only in training; validation and serving decode at full "
        "scale. The difference is that of the network's input, without augmentation, between the image "
        "decoded at full\nand at reduced scale: a mean over pixels, of 255.\n"
    )
    print(
        measuring.table(
            ("workload", "scale", "full scale, ms", "reduced scale, ms", "speed-up", "difference"), rows
        )
    )


def difference(family: Any, image: Any, other: Any) -> float:
    """Return the mean absolute difference of the network's input for two images."""
    return float((family.preprocess(image)[0] - family.preprocess(other)[0]).abs().mean())


def timm_loader(folder: Path, task: Task, size: int, workers: int) -> Callable[[], Iterable[Any]]:
    """Make timm's loader of uint8 images, without its wrapper that normalises them on the device."""
    need("timm")
    from timm.data import create_loader

    from benchmarks.contenders.timm_loop import Images

    images = Images(data.records(folder / "train.jsonl", task))

    def made() -> Iterable[Any]:
        loader: Iterable[Any] = create_loader(
            images, (3, size, size), 16, is_training=True, hflip=0.5, color_jitter=0.4, color_jitter_prob=0.5,
            num_workers=workers, persistent_workers=workers > 0, use_prefetcher=True,
            device=torch.device("cpu"),
        ).loader  # fmt: skip
        return loader

    return made


def loader(arguments: Any, scratch: Path) -> None:
    """Measure the time to the first batch, and images per second by the number of workers."""
    cores = available_cores()
    photo, count, size = ((96, 80), 16, 64) if arguments.tiny else ((640, 480), 160, 224)
    task = Task.CLASSIFICATION
    folder = scratch / "loader"
    data.make(task, folder, count, photo)
    counts = [0, *sorted({1, 2, cores // 2, cores} - {0})] if not arguments.tiny else [0]
    rows = []
    alone: dict[str, float] = {}
    for workers in counts:
        family, settings, whole, _ = examples(task, "resnet50", size, folder)
        changed = {"number_of_workers": workers, "training_batch_size": 16, "image_cache_megabytes": 0}
        settings = settings.model_copy(update=changed)
        reduced = for_training(family, settings, whole)

        def ours() -> Measurements:
            return streamed(Batches(family, reduced, whole, settings, 0).train_dataloader, count)  # noqa: B023

        def peer() -> Measurements:
            return streamed(timm_loader(folder, task, size, workers), count)  # noqa: B023

        found, absent = measuring.alternate({"ours": ours, "timm": peer}, arguments.rounds)
        own, of_peer = found["ours"], found.get("timm", [])
        row: list[Any] = [workers]
        for name, measurements in (("ours", own), ("timm", of_peer)):
            if not measurements:
                row += [absent[name], "–", "–"]
                continue
            speeds = [each["per_second"] for each in measurements]
            median = float(np.median(speeds))
            row += [
                measuring.spread([each["first"] for each in measurements]), measuring.spread(speeds),
                number(median / alone.setdefault(name, median)),
            ]  # fmt: skip
        ratios = measuring.ratios(own, of_peer, "per_second")
        rows.append([*row, measuring.spread(ratios), measuring.verdict(ratios, 1.0)])
    print(
        f"\n### The loader\n\nresnet50 at {size} px from {photo[0]} × {photo[1]}, batches of 16, "
        f"{cores} cores, no image cached; timm's loader from create_loader, up to bytes, which is what ours "
        "yields.\n"
    )
    headers = (
        "workers", "first batch, s", "images/s", "speed-up over 0 workers", "timm's first batch, s",
        "timm's images/s", "timm's speed-up", "ours / timm", "goal",
    )  # fmt: skip
    print(measuring.table(headers, rows))


def streamed(make: Callable[[], Iterable[Any]], count: int) -> Measurements:
    """Return the seconds to a new loader's first batch, and images per second in its second epoch."""
    began = time.perf_counter()
    stream = make()
    batches = iter(stream)
    next(batches)
    first = time.perf_counter() - began
    for _ in batches:
        pass
    began = time.perf_counter()
    for _ in stream:
        pass
    return {"first": first, "per_second": count / (time.perf_counter() - began)}


PARTS: dict[str, Callable[[Any, Path], None]] = {
    "lines": lambda arguments, _: lines(arguments),
    "images": images,
    "large": lambda arguments, scratch: images(arguments, scratch, (4000, 3000)),
    "reduced": reduced_scale,
    "loader": loader,
}


def main(given: Sequence[str]) -> None:
    parser = measuring.arguments(__doc__, rounds=3)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--lines", type=int, default=200_000)
    arguments = parser.parse_args(given)
    if arguments.tiny:
        arguments.rounds = 1
    packages = ("torch", "torchvision", "pillow", "opencv-python", "timm", "ultralytics", "msgspec", "orjson")
    print(measuring.heading("Input pipeline", *packages), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, part in PARTS.items():
            if not arguments.only or name in arguments.only:
                say(name)
                part(arguments, Path(scratch))


if __name__ == "__main__":
    main(sys.argv[1:])
