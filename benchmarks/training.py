"""How fast training is: ours against the trainers that users would pick instead, and against a ceiling.

    python benchmarks/training.py                      # the quick set on a CPU: small networks and images
    python benchmarks/training.py --device cuda        # full sizes, on one GPU
    python benchmarks/training.py --only resnet50 --rounds 5

Each contender trains the same network from scratch on the same JPEGs, with the same batch, image size,
threads, loader workers and precision (float32 on a CPU, mixed on a GPU), in a process of its own, in
alternation. An epoch's time runs from its first request for data to its last step, evaluation apart. The
ceiling is our network, loss and SGD on one batch that already lies in memory: no loader, no clipping, no
logging. Of a YOLO's training the epochs with mosaic are counted, of others all but the first.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before benchmarks/, whose files hide packages

from benchmarks import data, measuring
from benchmarks.measuring import Measurements, number, say
from trainer.tasks import Task


@dataclass(frozen=True)
class Workload:
    """One row of the table: sizes on a CPU; `cuda` says what differs on a GPU."""

    name: str
    task: Task
    peer: str
    model: str
    goal: float
    images: int
    batch: int
    image_size: int
    cuda: tuple[int, int, int]
    """images, batch and image size on a GPU"""
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
    """A workload's row."""
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
        if work.peer == "ultralytics_trainer":  # whose mosaic ends halfway in a short training, as ours does
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
    "training", "peer", "ours, images/s", "peer, images/s", "ours / peer", "goal", "ours / ceiling",
    "epoch, s", "peer's epoch, s", "peak MB", "peer's peak MB",
)  # fmt: skip


_DIFFERENCES = """What differs by the libraries:

- Ours keeps decoded images within image_cache_megabytes, here all, so that counted epochs find them decoded.
- Ours scales a detecting YOLO's images by a resize instead of a warp, and changes a classifier's colours by
  OpenCV.
- Ours clips gradients; the loops of timm's and torchvision's parts do not.
- On a CPU ultralytics loads in its own process, whatever workers it is told.
- The peaks of ours and of ultralytics include an evaluation at the end.

And by choice, to compare like with like: R-CNNs are timed without augmentation on both sides; ultralytics'
trainer gets all threads (by itself it takes one fewer than there are cores), SGD, a step for each batch as
ours, no evaluation but at its end, no deterministic kernels, and an end of its mosaic where ours ends."""


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=2, device=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--only", nargs="+", choices=[work.name for work in QUICK], help="some of the rows")
    parser.add_argument("--epochs", type=int, default=3, help="the first is not counted [default: 3]")
    parser.add_argument(
        "--threads", type=int, default=cores, help="of PyTorch [default: the cores there are]"
    )
    parser.add_argument(
        "--workers", type=int, default=min(cores, 8), help="of the loader [default: the cores, up to 8]"
    )
    parser.add_argument(
        "--compile", action="store_true",
        help="train ours by torch.compile, in whose first epoch, which is not counted, it compiles",
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
