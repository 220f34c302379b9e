"""What a resumed run continues from, and what may change when it does."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trainer.data.quality.finding import names_text
from trainer.errors import JobError, Problem, RunError
from trainer.job.job import Job
from trainer.models import Spec
from trainer.models.catalog import CARDS
from trainer.models.weights.description import Description
from trainer.models.weights.reading import SPEC_KEY, read_spec
from trainer.runs import Run
from trainer.settings import Settings
from trainer.training.checkpoints import DATA_KEY, KeepBest, link_or_copy
from trainer.training.module import SEED_KEY

_SHAPING = (
    *("optimizer", "ams_gradient", "layer_decay", "layers_to_freeze", "average_weights"),
    *("backbone", "probe_first"),
)
"""Settings that decide which tensors a checkpoint holds, or whether it starts from a probe."""


@dataclass(frozen=True)
class Checkpoint:
    """What is needed from the checkpoint that a run resumes from before the network is built.

    Attributes:
        run: whose checkpoint it is.
        file: last.ckpt, or if that is damaged the newest of the others.
        spec: of its network, as JSON.
        epoch: the last finished one, counted from 0; −1 if it is the probe's.
        best_epoch: the best one until then, counted from 1, or 0 for the probe; None if there is none.
        data: summary of the data; empty in checkpoints of earlier versions.
        damage: why last.ckpt is not used; "" if it is.
    """

    run: Run
    file: Path
    seed: int
    spec: str
    epoch: int
    best_epoch: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""

    @property
    def description(self) -> Description | None:
        """What the files of a Hub model said when the run started, of whatever commit; None for others."""
        kept = read_spec(self.spec, self.file).options.get("hub")
        return None if kept is None else Description.from_dict(kept)


def read_checkpoint(run: Run) -> Checkpoint | None:
    """Read the checkpoint that a run resumes from; None if the run was stopped before its first.

    If last.ckpt is damaged or missing, as after a power failure, it is the newest of the others.

    Raises:
        RunError: none can be read, or another version wrote them.
    """
    last = run.last_checkpoint
    others = [file for file in run.checkpoints.glob("*.ckpt") if file != last]
    try:
        return _read(run, last)
    except RunError as error:
        if not last.exists() and not others:
            return None
        damage = error
    readable = [checkpoint for file in others if (checkpoint := _read_or_none(run, file)) is not None]
    if not readable:
        raise RunError(
            f"{damage}. No other checkpoint can be resumed from; start a new run, or remove the files in "
            f"{run.checkpoints} to train this one from the beginning"
        ) from damage
    newest = max(readable, key=lambda checkpoint: checkpoint.epoch)
    return replace(newest, damage=str(damage))


def _read_or_none(run: Run, file: Path) -> Checkpoint | None:
    try:
        return _read(run, file)
    except RunError:
        return None


def _read(run: Run, file: Path) -> Checkpoint:
    """Read one checkpoint file.

    Raises:
        RunError: it is missing or damaged, or another version wrote it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # PyTorch does not compare checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has a wrong checksum")
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise RunError(f"{file}: is missing") from error
    except Exception as error:
        reason = "is empty" if file.exists() and not file.stat().st_size else str(error).partition("\n")[0]
        raise RunError(f"{file}: cannot be read: {reason}") from error
    try:
        best = content.get("callbacks", {}).get(KeepBest.__qualname__, {})
        best_epoch = best["epoch"] if best.get("metrics") else None
        return Checkpoint(
            run, file, content[SEED_KEY], content[SPEC_KEY], content["epoch"], best_epoch,
            content.get(DATA_KEY, {}),
        )  # fmt: skip
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError(f"{file}: this version cannot resume from it") from error


def settle(checkpoint: Checkpoint) -> bool:
    """Make last.ckpt the checkpoint that is resumed from, and best.ckpt that of the best epoch until then.

    Rank 0 calls it before training, which replaces these files.

    Returns:
        Whether the best epoch's checkpoint exists. If it was damaged too, the best epoch must be found again.
    """
    run = checkpoint.run
    if checkpoint.damage:
        link_or_copy(checkpoint.file, run.last_checkpoint)
    if checkpoint.best_epoch is None:
        return True
    epochs = run.checkpoints / f"epoch-{checkpoint.best_epoch}.ckpt"
    for file in (run.best_checkpoint, run.last_checkpoint, run.previous_checkpoint, epochs):
        candidate = _read_or_none(run, file)
        if candidate is not None and candidate.epoch + 1 == checkpoint.best_epoch:
            if file != run.best_checkpoint:
                link_or_copy(file, run.best_checkpoint)
            return True
    return False


def check_resumable(run: Run, settings: Settings) -> None:
    """Check that there are epochs left to train, and that the settings fit the checkpoint.

    Raises:
        RunError: the run has trained all epochs that are asked for.
        JobError: settings that the checkpoint's weights or optimizer state do not fit.
    """
    earlier = Job.of_run(run.job).resolve_settings()
    if run.result.exists():
        result = run.read_result()
        # A run that was stopped by its time limit still has some of its own epochs left.
        trained = result.epochs if result.timed_out else earlier.number_of_epochs
        if settings.number_of_epochs <= trained:
            raise RunError(
                f"{run.directory}: has finished, after {result.epochs} of {earlier.number_of_epochs} epochs; "
                f"--number-of-epochs over {earlier.number_of_epochs} trains more"
            )
    if not any(run.checkpoints.glob("*.ckpt")):
        return  # it starts again from the beginning
    hint = f"leave it out, or start a new run from this one's weights by --weights {run.directory}"
    problems = [
        Problem(name, "", f"must stay what the run was started with, {before}", str(value), hint)
        for name in _SHAPING
        if (value := getattr(settings, name)) != (before := getattr(earlier, name))
    ]
    if problems:
        raise JobError(f"{run.directory} cannot be resumed with these settings:", problems)


def check_same_network(checkpoint: Checkpoint, spec: Spec) -> None:
    """Check that a checkpoint is of the network that `spec` describes.

    Raises:
        RunError: it is of another network, or has other classes.
    """
    run = checkpoint.run
    earlier = read_spec(checkpoint.spec, checkpoint.file)
    if earlier.family not in CARDS:
        raise RunError(
            f"{run.directory}: its checkpoint was written by a version with the family {earlier.family!r}, "
            "which this one lacks; resume the run with that version, or start a new run"
        )
    # An export setting does not change the network.
    earlier = earlier.model_copy(update={"enable_onnx_normalization": spec.enable_onnx_normalization})
    if earlier.model_dump_json() == spec.model_dump_json():
        return
    parts = {
        "new in the data": sorted(set(spec.classes) - set(earlier.classes)),
        "no longer there": sorted(set(earlier.classes) - set(spec.classes)),
    }
    changes = "; ".join(f"{part}: {names_text(names)}" for part, names in parts.items() if names)
    what = f"of other classes ({changes})" if changes else "of another network"
    raise RunError(
        f"{run.directory}: its checkpoint is {what}; to train this network from that run's weights, start a "
        f"new run with --weights {run.directory}"
    )
