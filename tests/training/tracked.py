"""Training runs that MLflow tracks, and what it holds of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from trainer.job.job import Job
from trainer.runs import Run
from trainer.training.fit import fit

MODEL = "timm/test_resnet"


class At(Callback):
    """Calls a function at an epoch's end (from 1), after its evaluation and before its checkpoint."""

    def __init__(self, epoch: int, do: Callable[[], None]) -> None:
        self.epoch, self.do = epoch, do

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            self.do()


def stop(error: BaseException) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def train(job: Job, *callbacks: Callback, packages: bool = False, **more: Any) -> Run:
    return fit(job, callbacks=callbacks, packages=packages, **more)


def mlflow_run(run: Path, uri: str | None = None) -> tuple[MlflowClient, MlflowRun]:
    """The run in MLflow that a directory's note names."""
    note = json.loads((run / "mlflow.json").read_text("utf-8"))
    client = MlflowClient(uri or note["tracking_uri"] or f"sqlite:///{run.parent / 'mlflow.db'}")
    return client, client.get_run(note["run_id"])


def steps(client: MlflowClient, run: MlflowRun, metric: str) -> dict[int, float]:
    history = client.get_metric_history(run.info.run_id, metric)
    assert len({each.step for each in history}) == len(history), "a step was logged twice"
    return {each.step: each.value for each in history}
