"""How good models become at equal cost: ours against the trainers that users would pick instead.

    python benchmarks/accuracy.py --data-root ../shared/data              # goes on where it was stopped
    python benchmarks/accuracy.py --data-root ../shared/data --table      # the table of what is there so far

The same network from scratch, the same data, epochs, batch and image size, three seeds; else each trainer's
own defaults, and ours with `--recipe modern`, too. One ruler for all: trainer.metrics on each trainer's
answers for the validation images, of the best epoch: timm's and torchvision's loops and ours by that ruler,
ultralytics' by its own. Every training's figure is written to the results file as it comes, with the commit
that it is of, so that the script may be stopped at any time; one training is lost. What the file has is not
trained again: after a change of the code give another `--results`. Without a data root, data sets of
`trainer sample-data` stand in.

The spread is the standard deviation over seeds; a mean of ours that is lower by more than both spreads' root
mean square misses the goal, one of the modern recipe if it is not higher.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before benchmarks/, whose files hide packages

from benchmarks import data, measuring
from benchmarks.measuring import Absent, number, say
from trainer.tasks import Task


@dataclass(frozen=True)
class Case:
    """One comparison: a set under the data root, and what is trained on it."""

    name: str
    data: str
    task: Task
    model: str
    peer: str
    image_size: int
    batch: int
    epochs: int
    learning_rate: float | None = None
    """given to ours and the peer; None: the trainers' own"""
    device: str = "cpu"


YOLO, TORCHVISION, RCNN = "ultralytics_trainer", "torchvision_loop", "rcnn_resnet50_fpn"
CASES = (
    Case("fridge", "fridge_multiclass", Task.CLASSIFICATION, "resnet18", "timm_loop", 64, 16, 40, 0.01),
    Case(
        "labels", "cards/multilabel", Task.MULTILABEL, "resnet18", "timm_loop", 224, 16, 100, 0.01, "cuda"
    ),
    Case("microcontrollers", "microcontrollers", Task.DETECTION, "yolo11n", YOLO, 160, 16, 60),
    Case("nuclei", "nuclei", Task.SEGMENTATION, "yolo11n-seg", YOLO, 160, 16, 60),
    Case("cards", "cards/detection", Task.DETECTION, f"faster{RCNN}", TORCHVISION, 500, 4, 30, device="cuda"),
    Case("fruits", "fruits_nuts", Task.SEGMENTATION, f"mask{RCNN}", TORCHVISION, 500, 2, 30, device="cuda"),
)  # fmt: skip
NAMES = {"ultralytics_trainer": "ultralytics", "timm_loop": "timm", "torchvision_loop": "torchvision"}


class Results:
    """Figures by case, contender and seed, each with its commit, in a JSON file that is always whole."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def add(self, key: str, value: float, commit: str) -> None:
        self.found[key] = {"value": value, "commit": commit}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1) + "\n")
        partial.replace(self.file)

    def value(self, key: str) -> float | None:
        """None: not measured yet. Files of earlier versions hold figures without a commit."""
        entry = self.found.get(key)
        return entry["value"] if isinstance(entry, dict) else entry

    def of(self, prefix: str) -> list[float]:
        keys = (key for key in self.found if key.startswith(f"{prefix} seed "))
        return [value for key in keys if (value := self.value(key)) is not None]

    def commits(self, prefixes: Iterable[str]) -> list[str]:
        """That the figures of these cases are of, in the order in which they came."""
        starts = tuple(prefixes)
        entries = [value for key, value in self.found.items() if key.startswith(starts)]
        named = (entry["commit"] if isinstance(entry, dict) else "" for entry in entries)
        return list(dict.fromkeys(name or "unknown" for name in named))


def key_of(case: Case, contender: str) -> str:
    size = f"{case.model} {case.image_size}px b{case.batch} e{case.epochs} {case.device}"
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
            "threads": arguments.threads, "device": case.device, "seed": seed, "score": True,
            "recipe": "modern" if contender == "ours, modern" else "reference",
            # The modern recipe has its own optimizer, to which a rate of SGD means nothing.
            "learning_rate": None if contender == "ours, modern" else case.learning_rate,
        }  # fmt: skip
        module = "ours" if contender.startswith("ours") else contender
        environment = {"OMP_NUM_THREADS": str(arguments.threads)}
        found = measuring.run_python(
            f"benchmarks.contenders.{module}", options, environment=environment, timeout=24 * 3600
        )
    return found["metric"]


def judgement(ours: list[float], peers: list[float], *, better: bool = False) -> str:
    """Whether our mean is not below the peer's by more than the spread or, if that is asked, above it."""
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


def row(case: Case, results: Results, seeds: int, made: str) -> list[str]:
    names = ("ours", "ours, modern", case.peer)
    ours, modern, peers = (results.of(key_of(case, made + name)) for name in names)
    return [
        f"{case.name}: {case.model}, {case.image_size} px, {case.epochs} epochs, batch {case.batch}, "
        f"{case.device}",
        case.task.primary_metric,
        NAMES[case.peer],
        shown(peers, seeds),
        shown(ours, seeds),
        judgement(ours, peers),
        shown(modern, seeds),
        judgement(modern, peers, better=True) if modern else "–",
    ]


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=3, device=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = Path(__file__).with_name("accuracy.json")
    parser.add_argument(
        "--data-root", type=Path, help="folder with fridge_multiclass/train.jsonl and the like"
    )
    parser.add_argument(
        "--results", type=Path, default=default, help="[default: accuracy.json beside the script]"
    )
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument(
        "--table", action="store_true", help="train nothing, print what the results file holds"
    )
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--workers", type=int, default=min(cores, 8))
    parser.add_argument(
        "--images", type=int, default=200, help="of stand-ins for data sets that are not there"
    )
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
    if arguments.device == "cpu":
        cases = [case for case in cases if case.device == "cpu"]
        if not cases:
            parser.error(f"{', '.join(arguments.only)}: a CPU would take days; give --device cuda")
    else:
        cases = [replace(case, device="cuda") for case in cases]
    if arguments.tiny and arguments.results == default:
        arguments.results = default.with_stem("accuracy-tiny")
    results = Results(arguments.results)
    made = "" if arguments.data_root else "made "
    for case in cases if arguments.data_root else ():
        if not (arguments.data_root / case.data / "train.jsonl").is_file():
            raise SystemExit(
                f"{arguments.data_root / case.data / 'train.jsonl'}: is missing; leave --data-root "
                "out for data sets of `trainer sample-data`"
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
        for seed in (
            () if arguments.table else range(arguments.rounds)
        ):  # whole rounds of all, one after another
            for case in cases:
                for contender in ("ours", case.peer, "ours, modern"):
                    key = f"{key_of(case, made + contender)} seed {seed}"
                    if key in results.found or contender in absent:
                        continue
                    say(key)
                    commit = measuring.commit()  # before a training of hours
                    try:
                        results.add(key, train(case, contender, seed, Path(scratch), arguments), commit)
                    except Absent as error:
                        absent[contender] = str(error)
                    except RuntimeError as error:  # is tried again when the script is run again
                        say(str(error))
                    value = results.value(key)
                    say("  absent" if value is None else f"  {value:.3f}")
    print(
        measuring.heading(
            "Accuracy at equal cost", "torch", "torchvision", "lightning", "timm", "ultralytics"
        )
    )
    headers = (
        "training",
        "metric",
        "peer",
        "peer's mean",
        "ours",
        "ours − peer",
        "ours, modern",
        "modern − peer",
    )
    print(measuring.table(headers, [row(case, results, arguments.rounds, made) for case in cases]))
    names = [(case, name) for case in cases for name in ("ours", "ours, modern", case.peer)]
    commits = results.commits(f"{key_of(case, made + name)} seed " for case, name in names)
    print(f"\nTrained at commits: {', '.join(commits) or 'none yet'}.")
    for name, reason in absent.items():
        print(f"\n{NAMES.get(name, name)}: {reason}")


if __name__ == "__main__":
    main()
