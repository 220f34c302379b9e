"""Checks each family on a GPU: it trains in mixed precision, survives running out of memory, and resumes.

    python benchmarks/gpu_conformance.py                # every family that is installed
    python benchmarks/gpu_conformance.py --only yolo    # one of them

Trains the smallest model of each family on generated images and prints a row as soon as it is known.
`benchmarks/gpu.sh` runs it first.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 (after the path)
from lightning import Callback, Trainer  # noqa: E402

from trainer.data.samples import make  # noqa: E402
from trainer.job.job import Job  # noqa: E402
from trainer.models.card import FamilyCard  # noqa: E402
from trainer.models.catalog import CARDS, MODELS  # noqa: E402
from trainer.runs import Run  # noqa: E402
from trainer.training.fit import fit  # noqa: E402

EPOCHS = 4


class SmallMemory(Callback):
    """Asks once for more memory than any GPU has, in the forward pass of a whole batch."""

    def __init__(self) -> None:
        self.failed = False
        self.precision = ""

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.precision = str(trainer.precision)

        def run_out(_: Any, __: Any) -> None:
            if module.network.training and not self.failed and trainer.current_epoch == 1:
                self.failed = True
                torch.empty(2**55, dtype=torch.uint8, device=module.device)

        module.network.register_forward_pre_hook(run_out)


def check(card: FamilyCard, directory: Path) -> Iterator[str]:
    """Train a family's smallest model; yield the cells of its row."""
    name = card.smallest_models[0]
    task = MODELS[name].tasks[0]
    data = make(task, directory / "data", images=20, seed=1)
    job = Job(
        task=task,
        training_data=(str(data.train),),
        validation_data=(str(data.train),),
        model=name,
        weights="none",
        gpus=1,
        output=directory / "run",
        tracking_uri="none",
        settings={
            **card.tiny_settings, "number_of_epochs": EPOCHS, "training_batch_size": 4, "random_seed": 1,
            "number_of_workers": 2, "early_stopping": False, "learning_rate": 1e-3, "optimizer": "adamw",
        },
    )  # fmt: skip
    yield name
    memory = SmallMemory()
    run = fit(job, packages=False, callbacks=[memory])
    losses = _losses(run)
    yield memory.precision
    yield f"{losses[0]:.3g} → {losses[-1]:.3g}" + ("" if losses[-1] < losses[0] else " (does not fall)")
    log = run.log.read_text("utf-8")
    yield "split" if memory.failed and "ran out of memory" in log else "not met"
    longer = Job.of_run(run.job).changed(output=run.directory, settings={"number_of_epochs": EPOCHS + 1})
    resumed = fit(longer, earlier=Run.open(run.directory))
    yield f"{len(_losses(resumed))} epochs"
    peak = resumed.read_result().peak_memory.get("GPU")
    yield f"{peak / 2**20:.0f} MB" if peak else "not on a GPU"


def _losses(run: Run) -> list[float]:
    with run.metrics.open(encoding="utf-8") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"losses are not finite: {losses}")
    return losses


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="*", help="families [default: all that are installed]")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use")
    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("| model | precision | loss | out of memory | resumed | peak | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = False
    for card in CARDS.values():
        if (arguments.only and card.name not in arguments.only) or find_spec(card.library) is None:
            continue
        if not card.smallest_models:  # models of the Hub, which have no names of their own
            continue
        start, cells = time.perf_counter(), []
        with tempfile.TemporaryDirectory() as directory:
            try:
                cells += check(card, Path(directory))
            except Exception as error:  # noqa: BLE001 (the next family is tried)
                traceback.print_exc()
                cells += [f"{type(error).__name__}: {error}".partition("\n")[0][:120]]
                failed = True
        cells += [""] * (6 - len(cells))
        print(f"| {' | '.join(cells)} | {time.perf_counter() - start:.0f} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
