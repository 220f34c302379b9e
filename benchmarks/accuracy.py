"""Compares the quality of models at equal training cost with alternative trainers.

    python benchmarks/accuracy.py --data-root ../shared/data              # resumes if it was interrupted
    python benchmarks/accuracy.py --data-root ../shared/data --table      # prints the results so far

All trainers train the same network on the same data, from scratch or from the same published backbone
(`--weights`), with the same epochs, batch size and image size, and three seeds; other settings are each
trainer's defaults, and ours also with `--recipe modern`. All are measured by trainer.metrics on their
predictions for the validation images at the best epoch. Ours and the loops of timm and torchvision choose
the best epoch by this metric, ultralytics by its own fitness.

Each metric is written to the results file as soon as it is known, with its commit, so interrupting the script
loses one run at most. Runs in the results file are not repeated: after changing the code, pass another
`--results`. Without a data root, data sets made by `trainer sample-data` are used.

The spread is the standard deviation over seeds. Ours misses the goal if its mean is lower than the peer's by
more than the root mean square of both spreads, the modern recipe if its mean is not higher.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

from benchmarks import data, measuring
from benchmarks.measuring import Absent, number, say
from trainer.cores import available_cores
from trainer.files import write_atomically
from trainer.tasks import Task


@dataclass(frozen=True)
class Case:
    """One comparison: a data set in the data root and the model that is trained on it."""

    name: str
    data: str
    task: Task
    model: str
    peer: str
    image_size: int
    batch: int
    epochs: int
    learning_rate: float | None = None
    """Learning rate of ours and the peer; None for each trainer's default."""
    device: str = "cpu"
    backbone: str = ""
    """timm/NAME: the R-CNN's backbone, which starts from published weights."""
    regions: int | None = None
    """Regions of an image that the R-CNN's second stage sees; None for torchvision's numbers."""

    @property
    def network(self) -> str:
        return f"{self.model} on {self.backbone}" if self.backbone else self.model


YOLO, TORCHVISION, RCNN = "ultralytics_trainer", "torchvision_loop", "rcnn_resnet50_fpn"
OURS = ("ours", "ours, modern")
LITE0 = "timm/tf_efficientnet_lite0"
CASES = (
    Case("fridge", "fridge_multiclass", Task.CLASSIFICATION, "resnet18", "timm_loop", 64, 16, 40, 0.01),
    Case(
        "labels", "cards/multilabel", Task.MULTILABEL, "resnet18", "timm_loop", 224, 16, 100, 0.01, "cuda"
    ),
    Case("microcontrollers", "microcontrollers", Task.DETECTION, "yolo11n", YOLO, 160, 16, 60),
    Case("nuclei", "nuclei", Task.SEGMENTATION, "yolo11n-seg", YOLO, 160, 16, 60),
    Case("cards", "cards/detection", Task.DETECTION, f"faster{RCNN}", TORCHVISION, 500, 4, 30, device="cuda"),
    Case("fruits", "fruits_nuts", Task.SEGMENTATION, f"mask{RCNN}", TORCHVISION, 500, 2, 30, device="cuda"),
    Case(
        "microcontrollers-pretrained", "microcontrollers", Task.DETECTION, f"faster{RCNN}", TORCHVISION, 64,
        4, 6, 0.005, backbone=LITE0, regions=32,
    ),
    Case(
        "cards-pretrained", "cards/detection", Task.DETECTION, f"faster{RCNN}", TORCHVISION, 128, 4, 6, 0.005,
        backbone=LITE0, regions=32,
    ),
    Case(
        "fruits-pretrained", "fruits_nuts", Task.SEGMENTATION, f"mask{RCNN}", TORCHVISION, 192, 2, 30, 0.005,
        backbone=LITE0, regions=32,
    ),
)  # fmt: skip
NAMES = {"ultralytics_trainer": "ultralytics", "timm_loop": "timm", "torchvision_loop": "torchvision"}


class Results:
    """Metrics by case, contender and seed, each with its commit, in a JSON file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def add(self, key: str, value: float, commit: str) -> None:
        self.found[key] = {"value": value, "commit": commit}
        write_atomically(self.file, json.dumps(self.found, indent=1) + "\n")

    def value(self, key: str) -> float | None:
        """Return a metric, or None if it is not measured yet. Older files have metrics without a commit."""
        entry = self.found.get(key)
        return entry["value"] if isinstance(entry, dict) else entry

    def of(self, prefix: str, seeds: Sequence[int] | None = None) -> list[float]:
        """Return the metrics of these seeds, in the order of measurement; of all seeds by default."""
        start = f"{prefix} seed "
        numbers = [int(key.removeprefix(start)) for key in self.found if key.startswith(start)]
        chosen = [number for number in numbers if seeds is None or number in seeds]
        return [value for number in chosen if (value := self.value(f"{start}{number}")) is not None]

    def commits(self, prefixes: Iterable[str]) -> list[str]:
        """Return the commits of the metrics of these cases, in the order of measurement."""
        starts = tuple(prefixes)
        entries = [value for key, value in self.found.items() if key.startswith(starts)]
        named = (entry["commit"] if isinstance(entry, dict) else "" for entry in entries)
        return list(dict.fromkeys(name or "unknown" for name in named))


def key_of(case: Case, contender: str) -> str:
    size = f"{case.network} {case.image_size}px b{case.batch} e{case.epochs} {case.device}"
    size += f" r{case.regions}" if case.regions else ""
    return f"{case.name} {size} {contender}"


def train(case: Case, contender: str, seed: int, scratch: Path, arguments: Any) -> float:
    train_file, validation_file = data.real_or_made(
        arguments.data_root, case.data, case.task, scratch / case.task.value, arguments.images
    )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        options = {
            "task": case.task.value, "model": case.model, "train": str(train_file),
            "validation": str(validation_file), "folder": f"{folder}/run", "epochs": case.epochs,
            "batch": case.batch, "image_size": case.image_size, "workers": arguments.workers,
            "backbone": case.backbone, "weights": str(arguments.weights) if case.backbone else "none",
            "regions": case.regions,
            "threads": arguments.threads, "device": case.device, "seed": seed, "score": True,
            "recipe": "modern" if contender == "ours, modern" else "reference",
            # SGD's learning rate does not suit the optimizer of the modern recipe.
            "learning_rate": None if contender == "ours, modern" else case.learning_rate,
        }  # fmt: skip
        module = "ours" if contender.startswith("ours") else contender
        environment = {"OMP_NUM_THREADS": str(arguments.threads)}
        found = measuring.run_python(
            f"benchmarks.contenders.{module}", options, environment=environment, timeout=24 * 3600
        )
    return found["metric"]


def judgement(ours: list[float], peers: list[float], *, better: bool = False) -> str:
    """Format whether our mean is at least the peer's minus the spread or, with `better`, above the peer's."""
    if len(ours) < 2 or len(peers) < 2:
        return "–"
    spread = ((statistics.stdev(ours) ** 2 + statistics.stdev(peers) ** 2) / 2) ** 0.5
    difference = statistics.mean(ours) - statistics.mean(peers)
    met = difference > 0 if better else difference >= -spread
    return f"{difference:+.3f} ({'met' if met else '**missed**'}; spread {number(spread)})"


def shown(values: list[float], wanted: int) -> str:
    if not values:
        return measuring.NOT_MEASURED
    text = f"{statistics.mean(values):.3f}"
    text += f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return text + ("" if len(values) >= wanted else f" ({len(values)} of {wanted} seeds)")


def row(case: Case, results: Results, arguments: Any, made: str) -> list[str]:
    names = ("ours", "ours, modern", case.peer)
    ours, modern, peers = (results.of(key_of(case, made + name), arguments.seeds) for name in names)
    wanted = len(arguments.seeds or range(arguments.rounds))
    return [
        f"{case.name}: {case.network}, {case.image_size} px, {case.epochs} epochs, batch {case.batch}, "
        f"{case.device}",
        case.task.primary_metric,
        NAMES[case.peer],
        shown(peers, wanted),
        shown(ours, wanted),
        judgement(ours, peers),
        shown(modern, wanted),
        judgement(modern, peers, better=True) if modern else "–",
    ]


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=3, device=True, seeds=True)
    cores = available_cores()
    default = Path(__file__).with_name("accuracy.json")
    parser.add_argument(
        "--data-root", type=Path, help="directory of data sets, such as fridge_multiclass/train.jsonl"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=default,
        help="results file [default: accuracy.json next to the script]",
    )
    parser.add_argument(
        "--weights", type=Path, help="folder of published weights, for the cases that start from them"
    )
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument(
        "--contenders", nargs="+", choices=["peer", *OURS], default=["peer", *OURS], help="[default: all]"
    )
    parser.add_argument("--table", action="store_true", help="print the results so far without training")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--workers", type=int, default=min(cores, 8))
    parser.add_argument(
        "--images", type=int, default=200, help="size of data sets made by `trainer sample-data`"
    )
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
    if arguments.device == "cpu":
        cases = [case for case in cases if case.device == "cpu"]
        if not cases:
            parser.error(f"{', '.join(arguments.only)}: a CPU would take days; use --device cuda")
    else:
        cases = [replace(case, device="cuda") for case in cases]
    if arguments.weights is None:
        cases = [case for case in cases if not case.backbone]
        if not cases:
            parser.error(f"{', '.join(arguments.only)}: give --weights, made by benchmarks/real_weights.py")
    if arguments.tiny and arguments.results == default:
        arguments.results = default.with_stem("accuracy-tiny")
    results = Results(arguments.results)
    made = "" if arguments.data_root else "made "
    for case in cases if arguments.data_root else ():
        if not (arguments.data_root / case.data / "train.jsonl").is_file():
            raise SystemExit(
                f"{arguments.data_root / case.data / 'train.jsonl'}: is missing; without --data-root, "
                "data sets made by `trainer sample-data` are used"
            )
    if arguments.tiny:
        arguments.rounds, arguments.workers, arguments.images = 1, 0, 10
        small = {"resnet18": "timm/test_resnet"}
        cases = [
            replace(case, epochs=1, batch=4, image_size=64, model=small.get(case.model, case.model))
            for case in cases
        ]
    absent: dict[str, str] = {}
    measuring.hide_gpus(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        seeds = arguments.seeds or range(arguments.rounds)
        for seed in () if arguments.table else seeds:  # one round of all cases after the other
            for case in cases:
                for contender in ("ours", case.peer, "ours, modern"):
                    if (contender if contender in OURS else "peer") not in arguments.contenders:
                        continue
                    key = f"{key_of(case, made + contender)} seed {seed}"
                    if key in results.found or contender in absent:
                        continue
                    say(key)
                    commit = measuring.commit()  # before training, which takes hours
                    try:
                        results.add(key, train(case, contender, seed, Path(scratch), arguments), commit)
                    except Absent as error:
                        absent[contender] = str(error)
                    except RuntimeError as error:  # retried when the script runs again
                        say(str(error))
                    value = results.value(key)
                    say("  absent" if value is None else f"  {value:.3f}")
    print(
        measuring.heading(
            "Accuracy at equal cost", "torch", "torchvision", "lightning", "timm", "ultralytics"
        )
    )
    headers = (
        "workload",
        "metric",
        "peer",
        "peer's mean",
        "ours",
        "ours − peer",
        "ours, modern",
        "modern − peer",
    )
    print(measuring.table(headers, [row(case, results, arguments, made) for case in cases]))
    names = [(case, name) for case in cases for name in ("ours", "ours, modern", case.peer)]
    commits = results.commits(f"{key_of(case, made + name)} seed " for case, name in names)
    print(f"\nTrained at commits: {', '.join(commits) or 'none yet'}.")
    for name, reason in absent.items():
        print(f"\n{NAMES.get(name, name)}: {reason}")


if __name__ == "__main__":
    main()
