"""Callbacks that a job names by import path: their errors, and that they run and resume with the others."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback

import trainer
from tests.training.conftest import job, resume, rows
from trainer.data.samples import SampleData
from trainer.errors import JobError, TrainingError
from trainer.job.job import Job
from trainer.runs import Run
from trainer.tasks import Task
from trainer.training.checkpoints import KeepBest, SaveCheckpoints
from trainer.training.fit import fit
from trainer.training.user_callbacks import check_callbacks, make_callbacks

MODULE = '''
from lightning import Callback

class Count(Callback):
    """Counts the epochs in a file, and remembers them in checkpoints."""

    def __init__(self, path, start=0):
        self.path, self.epochs = path, start

    def on_train_epoch_end(self, trainer, module):
        self.epochs += 1
        with open(self.path, "a") as file:
            file.write(f"{self.epochs}\\n")

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]

class Strict(Callback):
    def __init__(self):
        raise ValueError("not today")

class Other:
    pass
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory."""
    name = f"callbacks_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "broken_callbacks.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    return name


def named(*callbacks: str) -> Job:
    return Job(task=Task.CLASSIFICATION, training_data="a.jsonl", callbacks=callbacks)


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        ("no_such_module:Count", r"there is no module 'no_such_module'; put it into .*PYTHONPATH"),
        ("broken_callbacks:Count", r"cannot be imported: No module named 'no_such_library'"),
        ("{}:Coumt", r"has no 'Coumt'; did you mean Count"),
        ("{}:Other", r"is not a subclass of lightning\.Callback"),
        ("os:system('true')", r"is not a subclass of lightning\.Callback"),
        ("{}:Count", r"does not fit its arguments: missing a required argument: 'path'; it is Count\(path"),
        ("{}:Count('a', end=1)", r"does not fit its arguments: got an unexpected keyword argument 'end'"),
    ],
)
def test_errors_name_what_is_missing(module: str, callback: str, text: str) -> None:
    with pytest.raises(JobError, match=f"callbacks: .*{text}"):
        check_callbacks(named(callback.format(module)))


def test_all_errors_are_reported_at_once(module: str) -> None:
    with pytest.raises(JobError) as caught:
        trainer.fit(named("no_such_module:A", f"{module}:Other"))
    assert len(caught.value.problems) == 2


def test_an_error_in_the_constructor_is_one_of_the_job(module: str) -> None:
    check_callbacks(named(f"{module}:Strict"))  # makes none
    with pytest.raises(JobError, match=r"Strict: raises ValueError: not today"):
        make_callbacks(named(f"{module}:Strict"))


def test_a_resumed_run_restores_the_callbacks_state(
    module: str, digits: dict[Task, SampleData], tmp_path: Path
) -> None:
    wanted = job(digits, Task.CLASSIFICATION, "timm/test_resnet", tmp_path / "run")
    count = f"{module}:Count('{tmp_path}/count', start=10)"
    run = fit(wanted.changed(callbacks=count), packages=False)
    resumed = resume(run.directory, {"number_of_epochs": 3})
    assert len(rows(resumed)) == 3
    assert (tmp_path / "count").read_text().split() == ["11", "12", "13"]


def test_objects_are_rejected_for_a_sweep(module: str) -> None:
    sweep = named().changed(limits={"max_trials": 2})
    with pytest.raises(JobError, match=r"callbacks: of a sweep must be import paths.*MODULE:CLASS"):
        trainer.fit(sweep, callbacks=make_callbacks(named(f"{module}:Count('a')")))
    with pytest.raises(JobError, match="there is no module 'no_such_module'"):
        trainer.fit(sweep, callbacks=["no_such_module:Count"])


class Keeper(Callback):
    """Keeps something in checkpoints."""

    def __init__(self, state: Any = None, more: Any = None) -> None:
        self.state, self.more = state, more

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = self.more


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        (
            {"state": Path("a")},
            "the state of the callback Keeper cannot be kept in a checkpoint: it may hold",
        ),
        ({"more": Path("a")}, "what a callback adds to checkpoints, one of .*mine.* cannot be kept"),
        ({"state": lambda: 1}, "the state of the callback Keeper cannot be kept"),
        ({"state": {"a": [1, 2.5, "b", None, torch.ones(2)]}, "more": (1, 2)}, ""),
    ],
)
def test_what_could_not_be_read_back_is_an_error_at_the_first_epoch(
    kept: dict[str, Any], text: str, tmp_path: Path
) -> None:
    keeper = Keeper(**kept)
    saves = SaveCheckpoints(Run(tmp_path), KeepBest("accuracy"), None, {})
    checkpoint: dict[str, Any] = {"callbacks": {"Keeper": keeper.state_dict()}, "state_dict": {}}
    keeper.on_save_checkpoint(None, None, checkpoint)
    rank_zero: Any = SimpleNamespace(is_global_zero=True, sanity_checking=False)
    with pytest.raises(TrainingError, match=text) if text else nullcontext():
        saves.on_save_checkpoint(rank_zero, None, checkpoint)


def test_tensors_in_a_callbacks_state_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    save = torch.save

    def measured(content: Any, file: Any) -> None:
        save(content, file)
        sizes.append(file.tell())

    monkeypatch.setattr(torch, "save", measured)
    saves = SaveCheckpoints(Run(tmp_path), KeepBest("accuracy"), None, {})
    network = {"weights": [torch.ones(1_000_000), torch.nn.Parameter(torch.ones(1_000_000))]}
    rank_zero: Any = SimpleNamespace(is_global_zero=True, sanity_checking=False)
    saves.on_save_checkpoint(rank_zero, None, {"callbacks": {"Average": network}, "mine": network})
    assert max(sizes) < 10_000
