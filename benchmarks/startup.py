"""Compares start-up times: of commands, to the first training step, and of loading a model.

    python benchmarks/startup.py

Measures the wall time of whole processes, in alternation with the alternatives. The first run of each fills
the file cache and is not counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

from benchmarks import data, measuring
from benchmarks.measuring import Measurements, need, number
from trainer.tasks import Task

TRAINER = (sys.executable, "-m", "trainer")
_LOAD_MLFLOW = "import sys, mlflow; mlflow.pyfunc.load_model(sys.argv[1])"
_LOAD_OURS = (
    "import sys; from pathlib import Path; from serving.locate import find_artifacts; "
    "from serving.scorer import Scorer; Scorer.load(find_artifacts(Path(sys.argv[1])), sys.argv[2])"
)
_LOAD_TIMM = (
    "import sys, timm, torch; network = timm.create_model(sys.argv[2], num_classes=4); "
    "network.load_state_dict(torch.load(sys.argv[1], weights_only=True)); network.eval().to(sys.argv[3])"
)


def command(*arguments: object) -> Measurements:
    _, costs = measuring.run([str(argument) for argument in arguments])
    return {"seconds": costs["wall_seconds"], "peak_mb": costs["peak_mb"]}


def command_of(module: str, *arguments: object) -> Measurements:
    """Measure a command of a package that may be absent."""
    need(module)
    return command(sys.executable, *arguments)


def first_step(
    module: str, task: Task, model: str, scratch: Path, device: str, runs: list[int]
) -> Measurements:
    runs.append(0)
    folder = scratch / task.value
    options = {
        "task": task.value, "model": model, "train": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"), "folder": str(folder / f"{module}-{len(runs)}"),
        "epochs": 1, "batch": 8, "image_size": 64, "device": device,
    }  # fmt: skip
    found = measuring.run_python(f"benchmarks.contenders.{module}", options)
    return {"seconds": found["first_step_seconds"], "peak_mb": found["peak_mb"]}


Row = tuple[Callable[[], Measurements], dict[str, Callable[[], Measurements]]]
"""Measures ours, and the peers by name."""


def commands(scratch: Path) -> dict[str, Row]:
    ten, _ = data.make(Task.DETECTION, scratch / "ten", 10, (160, 120))
    yolo = "from ultralytics.cfg import entrypoint; entrypoint('help')"
    return {
        "trainer --help": (
            lambda: command(*TRAINER, "--help"),
            {
                "yolo help": lambda: command_of("ultralytics", "-c", yolo),
                "mlflow --help": lambda: command_of("mlflow", "-m", "mlflow", "--help"),
            },
        ),
        "trainer fit --help": (lambda: command(*TRAINER, "fit", "--help"), {}),
        "trainer validate, 10 lines": (
            lambda: command(*TRAINER, "validate", "--task", "object-detection", ten), {}
        ),
    }  # fmt: skip


def trainings(scratch: Path, model: str, device: str) -> dict[str, Row]:
    """Make rows for the first step of a classifier and a detector and for loading the packaged classifier."""
    for task in (Task.CLASSIFICATION, Task.DETECTION):
        data.make(task, scratch / task.value, 16, (160, 120))
    options = {
        "task": "image-classification", "data": scratch / "image-classification/train.jsonl", "model": model,
        "weights": "none", "tracking-uri": "none", "gpus": int(device == "cuda"), "number-of-epochs": 1,
        "output": scratch / "run",
    }  # fmt: skip
    command(*TRAINER, "fit", *(part for name, value in options.items() for part in (f"--{name}", value)))
    packaged = scratch / "run" / "model"
    weights = next(packaged.rglob("weights.pt"))
    step = partial(first_step, scratch=scratch, device=device, runs=[])
    return {
        f"first step of fit, {model}": (
            lambda: step("ours", Task.CLASSIFICATION, model),
            {"timm loop": lambda: step("timm_loop", Task.CLASSIFICATION, model)},
        ),
        "first step of fit, yolo11n": (
            lambda: step("ours", Task.DETECTION, "yolo11n"),
            {"ultralytics": lambda: step("ultralytics_trainer", Task.DETECTION, "yolo11n")},
        ),
        f"loading a packaged {model}, as trainer serve does": (
            lambda: command(sys.executable, "-c", _LOAD_OURS, packaged, device),
            {
                "mlflow.pyfunc.load_model": lambda: command(sys.executable, "-c", _LOAD_MLFLOW, packaged),
                "torch.load into timm's network": lambda: command_of(
                    "timm", "-c", _LOAD_TIMM, weights, model.removeprefix("timm/"), device
                ),
            },
        ),
    }


def main() -> None:
    arguments = measuring.arguments(__doc__, rounds=3, device=True).parse_args()
    rounds = 1 if arguments.tiny else arguments.rounds + 1
    print(measuring.heading("Start-up", "torch", "lightning", "timm", "ultralytics", "mlflow"), flush=True)
    measuring.hide_gpus(arguments.device)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = "timm/test_resnet" if arguments.tiny else "resnet18"
        rows, failed = commands(scratch), ""
        try:
            rows |= trainings(scratch, model, arguments.device)
        except RuntimeError as error:  # still measure the commands
            failed = f"\n\nTraining and loading were not measured: {str(error).splitlines()[-1]}"
        found = [line for what, row in rows.items() for line in lines(what, *row, rounds)]
    print(measuring.table(HEADERS, found) + failed)


HEADERS = ("operation", "ours, s", "peak MB", "peer", "peer, s", "peer / ours")


def lines(
    what: str, ours: Callable[[], Measurements], peers: dict[str, Callable[[], Measurements]], rounds: int
) -> list[list[str]]:
    found, absent = measuring.alternate({what: ours, **peers}, rounds)
    if what not in found:
        return [[what, absent[what], "–", "–", "–", "–"]]
    counted = {name: measurements[1:] or measurements for name, measurements in found.items()}
    own = counted.pop(what)
    start = [
        what,
        measuring.spread([each["seconds"] for each in own]),
        number(measuring.median(own, "peak_mb")),
    ]
    rows = [
        [
            name,
            measuring.spread([each["seconds"] for each in of_peer]),
            measuring.spread(measuring.ratios(own, of_peer, "seconds", less_is_better=True)),
        ]
        for name, of_peer in counted.items()
    ]
    rows += [[name, reason, "–"] for name, reason in absent.items()]
    return [
        [*(start if not index else ["", "", ""]), *row] for index, row in enumerate(rows or [["–", "–", "–"]])
    ]


if __name__ == "__main__":
    main()
