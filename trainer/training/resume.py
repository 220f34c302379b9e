"""What a resumed run continues from, and what may change when it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.errors import JobError, Problem, RunError
from trainer.job.job import Job
from trainer.models import Spec
from trainer.models.weights.reading import SPEC_KEY, read_spec
from trainer.runs import Run
from trainer.settings import Settings
from trainer.training.module import SEED_KEY

_SHAPING = ("optimizer", "ams_gradient", "layer_decay", "layers_to_freeze", "average_weights")
"""Settings that decide which tensors a checkpoint holds."""


@dataclass(frozen=True)
class Checkpoint:
    """What is needed from a run's last checkpoint before the network is built.

    Attributes:
        run: whose checkpoint it is.
        spec: of its network, as JSON.
        epoch: the last finished one, counted from 0.
    """

    run: Run
    seed: int
    spec: str
    epoch: int


def read_checkpoint(run: Run) -> Checkpoint | None:
    """Read the run's last checkpoint; None if the run was stopped before its first.

    Raises:
        RunError: it cannot be read, or another version wrote it.
    """
    try:
        content = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise RunError(f"{run.last_checkpoint}: cannot be read: {error}") from error
    try:
        return Checkpoint(run, content[SEED_KEY], content[SPEC_KEY], content["epoch"])
    except (KeyError, TypeError, IndexError) as error:
        raise RunError(f"{run.last_checkpoint}: this version cannot resume from it") from error


def check_resumable(run: Run, settings: Settings) -> None:
    """Check that there are epochs left to train, and that the settings fit the checkpoint.

    Raises:
        RunError: the run has trained all epochs that are asked for.
        JobError: settings that the checkpoint's weights or optimizer state do not fit.
    """
    earlier = Job.read(run.job).resolve_settings()
    if run.result.exists():
        result = run.read_result()
        # A run that was stopped by its time limit still has some of its own epochs left.
        trained = result.epochs if result.timed_out else earlier.number_of_epochs
        if settings.number_of_epochs <= trained:
            raise RunError(
                f"{run.directory}: has finished, after {result.epochs} of {earlier.number_of_epochs} epochs; "
                f"--number-of-epochs over {earlier.number_of_epochs} trains more"
            )
    if not run.last_checkpoint.exists():
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
    earlier = read_spec(checkpoint.spec, run.last_checkpoint)
    # An export setting does not change the network.
    earlier = earlier.model_copy(update={"enable_onnx_normalization": spec.enable_onnx_normalization})
    if earlier.model_dump_json() != spec.model_dump_json():
        raise RunError(
            f"{run.directory}: its checkpoint is of another network, or its data had other classes; to train "
            f"this network from that run's weights, start a new run with --weights {run.directory}"
        )
