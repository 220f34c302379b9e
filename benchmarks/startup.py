"""How long the first answer takes: of the commands, of a training's first step, of a model that is loaded.

    python benchmarks/startup.py

Wall time of whole processes, in alternation with what users would start instead. The first run of each fills
the file cache and is not counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before benchmarks/, whose files hide packages

from benchmarks import data, measuring
from benchmarks.measuring import Figures, need, number
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


def command(*arguments: object) -> Figures:
    _, costs = measuring.run([str(argument) for argument in arguments])
    return {"seconds": costs["wall_seconds"], "peak_mb": costs["peak_mb"]}


def command_of(module: str, *arguments: object) -> Figures:
    """A command of a package that may be absent."""
    need(module)
    return command(sys.executable, *arguments)


def first_step(module: str, task: Task, model: str, scratch: Path, device: str, runs: list[int]) -> Figures:
    runs.append(0)
    folder = scratch / task.value
    options = {
        "task": task.value, "model": model, "train": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"), "folder": str(folder / f"{module}-{len(runs)}"),
        "epochs": 1, "batch": 8, "image_size": 64, "device": device,
    }  # fmt: skip
    found = measuring.run_python(f"benchmarks.contenders.{module}", options)
    return {"seconds": found["first_step_seconds"], "peak_mb": found["peak_mb"]}


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=3, device=True)
    arguments = parser.parse_args()
    rounds = 1 if arguments.tiny else arguments.rounds + 1
    model = "timm/test_resnet" if arguments.tiny else "resnet18"
    print(measuring.heading("Start-up", "torch", "lightning", "timm", "ultralytics", "mlflow"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        ten, _ = data.make(Task.DETECTION, scratch / "ten", 10, (160, 120))
        for task in (Task.CLASSIFICATION, Task.DETECTION):
            data.make(task, scratch / task.value, 16, (160, 120))
        if not arguments.tiny:
            fit = (
                *TRAINER,
                "fit",
                "--task",
                "image-classification",
                "--weights",
                "none",
                "--tracking-uri",
                "none",
            )
            files = ("--data", scratch / "image-classification/train.jsonl", "--model", model)
            command(*fit, *files, "--number-of-epochs", 1, "--output", scratch / "run")
        packaged = scratch / "run" / "model"
        runs: list[int] = []
        step = partial(first_step, scratch=scratch, device=arguments.device, runs=runs)
        yolo = "from ultralytics.cfg import entrypoint; entrypoint('help')"
        rows: dict[str, tuple[Callable[[], Figures], dict[str, Callable[[], Figures]]]] = {
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
        if not arguments.tiny:
            weights = next(packaged.rglob("weights.pt"))
            rows |= {
                "first step of fit, resnet18": (
                    lambda: step("ours", Task.CLASSIFICATION, model),
                    {"timm loop": lambda: step("timm_loop", Task.CLASSIFICATION, model)},
                ),
                "first step of fit, yolo11n": (
                    lambda: step("ours", Task.DETECTION, "yolo11n"),
                    {"ultralytics": lambda: step("ultralytics_trainer", Task.DETECTION, "yolo11n")},
                ),
                "loading a packaged resnet18, as trainer serve does": (
                    lambda: command(sys.executable, "-c", _LOAD_OURS, packaged, arguments.device),
                    {
                        "mlflow.pyfunc.load_model": lambda: command(
                            sys.executable, "-c", _LOAD_MLFLOW, packaged
                        ),
                        "torch.load into timm's network": lambda: command_of(
                            "timm", "-c", _LOAD_TIMM, weights, "resnet18", arguments.device
                        ),
                    },
                ),
            }
        print(
            measuring.table(
                HEADERS, [line for what, row in rows.items() for line in lines(what, *row, rounds)]
            )
        )


HEADERS = ("what", "ours, s", "peak MB", "peer", "peer, s", "peer / ours")


def lines(
    what: str, ours: Callable[[], Figures], peers: dict[str, Callable[[], Figures]], rounds: int
) -> list[list[str]]:
    found, absent = measuring.alternate({what: ours, **peers}, rounds)
    if what not in found:
        return [[what, absent[what], "–", "–", "–", "–"]]
    counted = {name: figures[1:] or figures for name, figures in found.items()}
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
