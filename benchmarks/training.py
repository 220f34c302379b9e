"""Compares the speed of training with alternative trainers and with a ceiling.

    python benchmarks/training.py                      # quick, on a CPU: small networks and images
    python benchmarks/training.py --device cuda        # full sizes, on one GPU
    python benchmarks/training.py --only resnet50 --rounds 5

Each contender trains the same network from scratch on the same JPEGs, with the same batch size, image size,
threads, loader workers and precision (float32 on a CPU, mixed on a GPU), in a process of its own, in
alternation. An epoch is timed from its first request for data to its last step, without evaluation. The
ceiling is our network, loss and SGD on one batch that is already in memory: no loader, no clipping, no
logging. For YOLO the epochs with mosaic are counted, for other models all epochs but the first.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

from benchmarks import data, measuring
from benchmarks.measuring import Measurements, number, say
from trainer.cores import available_cores
from trainer.tasks import Task


@dataclass(frozen=True)
class Workload:
    """One row of the table, with its sizes on a CPU; `cuda` has those on a GPU."""

    name: str
    task: Task
    peer: str
    model: str
    goal: float
    images: int
    batch: int
    image_size: int
    cuda: tuple[int, int, int]
    """Images, batch size and image size on a GPU."""
    cuda_goal: float = 1.2
    photo: tuple[int, int] = (640, 480)


QUICK = (
    Workload("resnet50", Task.CLASSIFICATION, "timm_loop", "resnet50", 1.0, 96, 16, 128, (4096, 128, 224)),
    Workload(
        "vits16r224", Task.CLASSIFICATION, "timm_loop", "vits16r224", 1.0, 96, 16, 112, (4096, 128, 224)
    ),
    Workload("yolo11n", Task.DETECTION, "ultralytics_trainer", "yolo11n", 1.0, 96, 16, 224, (2048, 32, 640)),
    Workload(
        "yolo11n-seg",
        Task.SEGMENTATION,
        "ultralytics_trainer",
        "yolo11n-seg",
        1.0,
        64,
        16,
        224,
        (2048, 32, 640),
    ),
    Workload(
        "fasterrcnn",
        Task.DETECTION,
        "torchvision_loop",
        "fasterrcnn_resnet50_fpn",
        1.0,
        8,
        4,
        160,
        (256, 4, 600),
        1.5,
    ),
    Workload(
        "maskrcnn",
        Task.SEGMENTATION,
        "torchvision_loop",
        "maskrcnn_resnet50_fpn",
        1.0,
        8,
        4,
        160,
        (256, 4, 600),
        1.5,
    ),
)
PEERS = {"timm_loop": "timm", "ultralytics_trainer": "ultralytics", "torchvision_loop": "torchvision"}


def measure(work: Workload, scratch: Path, arguments: Any) -> list[list[str]]:
    """Measure a workload and return its rows of the table."""
    if arguments.device == "cuda":
        images, batch, image_size = work.cuda
        work = replace(work, images=images, batch=batch, image_size=image_size, goal=work.cuda_goal)
    if arguments.tiny:
        tiny = "timm/test_resnet" if work.name == "resnet50" else work.model.replace("resnet50", "resnet18")
        work = replace(work, model=tiny, images=4, batch=2, image_size=64, photo=(96, 80))
    say(f"{work.name}: writing {work.images} images")
    train, validation = data.make(work.task, scratch / work.name, work.images, work.photo)
    runs = iter(range(1000))

    def contender(module: str) -> Measurements:
        options = {
            "task": work.task.value, "model": work.model, "train": str(train), "validation": str(validation),
            "folder": str(scratch / work.name / f"run-{next(runs)}"), "epochs": arguments.epochs,
            "batch": work.batch, "image_size": work.image_size, "workers": arguments.workers,
            "threads": arguments.threads, "device": arguments.device, "compile": arguments.compile,
        }  # fmt: skip
        if work.peer == "ultralytics_trainer":  # mosaic ends halfway through a short run, as in ours
            options |= {"epochs": 2 * arguments.epochs, "counted": arguments.epochs - 1}
        environment = {"OMP_NUM_THREADS": str(arguments.threads)}
        return measuring.run_python(f"benchmarks.contenders.{module}", options, environment=environment)

    found, absent = measuring.alternate(
        {name: lambda name=name: contender(name) for name in ("ours", "ceiling", work.peer)},
        arguments.rounds,
    )
    ours, peers = found.get("ours", []), found.get(work.peer, [])
    size = f"{work.model}, {work.image_size} px, batch {work.batch}, "
    size += f"{work.images} images of {work.photo[0]} × {work.photo[1]}"
    size += ", ours compiled" if arguments.compile else ""
    if not ours:
        return [[size, PEERS[work.peer], absent["ours"], *["–"] * 8]]
    speeds = [measurements["images_per_second"] for measurements in ours]
    ceilings = measuring.ratios(ours, found.get("ceiling", []), "images_per_second")
    of_ceiling = measuring.spread(ceilings) if ceilings else absent.get("ceiling", "–")
    if arguments.device == "cuda" and work.peer != "torchvision_loop":
        of_ceiling += f"; {measuring.verdict(ceilings, 0.9)}"
    own = [measuring.spread(speeds), number(measuring.median(ours, "epoch_seconds"))]
    memory = "gpu_peak_mb" if arguments.device == "cuda" else "peak_mb"
    if not peers:
        return [
            [size, PEERS[work.peer], own[0], absent[work.peer], "–", "–", of_ceiling, own[1], "–", "–", "–"]
        ]
    ratios = measuring.ratios(ours, peers, "images_per_second")
    return [[
        size,
        PEERS[work.peer],
        own[0],
        measuring.spread([measurements["images_per_second"] for measurements in peers]),
        measuring.spread(ratios),
        measuring.verdict(ratios, work.goal),
        of_ceiling,
        own[1],
        number(measuring.median(peers, "epoch_seconds")),
        number(measuring.median(ours, memory)),
        number(measuring.median(peers, memory)),
    ]]  # fmt: skip


HEADERS = (
    "workload", "peer", "ours, images/s", "peer, images/s", "ours / peer", "goal", "ours / ceiling",
    "seconds per epoch", "peer's seconds per epoch", "peak MB", "peer's peak MB",
)  # fmt: skip


_DIFFERENCES = """The libraries differ as follows:

- Ours caches decoded images up to image_cache_megabytes, here all, so counted epochs find them decoded.
- Ours scales the images of a detecting YOLO with a resize instead of a warp, and changes a classifier's
  colours with OpenCV.
- Ours clips gradients; the loops built from timm and torchvision do not.
- On a CPU, ultralytics loads data in its own process, whatever the number of workers.
- The peak memory of ours and of ultralytics includes an evaluation at the end.

For a like-for-like comparison: R-CNNs are timed without augmentation on both sides; ultralytics' trainer
gets all threads (by default it uses one fewer than there are cores), SGD, one optimizer step per batch like
ours, no evaluation except at its end, no deterministic kernels, and the same end of mosaic as ours."""


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=2, device=True)
    cores = available_cores()
    parser.add_argument(
        "--only", nargs="+", choices=[work.name for work in QUICK], help="rows to measure [default: all]"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=3,
        help="epochs to train, the first of which is not counted [default: 3]",
    )
    parser.add_argument(
        "--threads", type=int, default=cores, help="PyTorch threads [default: number of cores]"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(cores, 8),
        help="loader workers [default: number of cores, up to 8]",
    )
    parser.add_argument(
        "--compile", action="store_true",
        help="train ours with torch.compile, which compiles in the first epoch",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.rounds, arguments.epochs, arguments.workers = 1, 2, 0
    print(
        measuring.heading("Training", "torch", "torchvision", "lightning", "timm", "ultralytics"), flush=True
    )
    measuring.hide_gpus(arguments.device)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for work in QUICK:
            if not arguments.only or work.name in arguments.only:
                rows += measure(work, Path(scratch), arguments)
    print(
        f"{arguments.rounds} rounds of {arguments.epochs} epochs, {arguments.threads} threads, "
        f"{arguments.workers} loader workers; median (smallest–largest).\n{_DIFFERENCES}\n"
    )
    print(measuring.table(HEADERS, rows))


if __name__ == "__main__":
    main()
