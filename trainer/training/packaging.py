"""Packages a run's best checkpoint as an MLflow model, and scores the validation data with it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from serving.answers import to_answer
from trainer.data.datasets import RecordExamples
from trainer.data.training_data import Data
from trainer.models import Family, create
from trainer.models.weights.reading import SPEC_KEY, read_spec, scored
from trainer.runs import Run


def package(run: Run, data: Data, into: Run | None = None, *, on_gpu: bool) -> None:
    """Write `model/` and `predictions.jsonl` from the run's best checkpoint.

    Args:
        data: the validation part is scored.
        into: the run to write to: for a trial, its sweep. None writes to the run itself.
        on_gpu: use a GPU if there is one.
    """
    into = into or run
    checkpoint = torch.load(run.best_checkpoint, map_location="cpu", weights_only=True)
    family = create(read_spec(checkpoint[SPEC_KEY], run.best_checkpoint))
    network = family.build()
    network.load_state_dict(scored(checkpoint["state_dict"]))
    device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    _write_predictions(into.predictions, family, network, data)
    _write_model(into.model, family, network)


def _write_predictions(path: Path, family: Family, network: nn.Module, data: Data) -> None:
    """Write the network's answers on the validation images, in the documented schema and the data's order."""
    spec = family.spec
    examples = RecordExamples(data.validation, data.classes)
    points = spec.parameters.max_number_of_polygon_points
    with path.open("w", encoding="utf-8") as file, torch.inference_mode():
        for index in range(len(examples)):
            prediction = family.predict(network, [examples[index].image])[0]
            answer = to_answer(prediction, spec.classes, points)
            line = {"image_url": data.validation.image_url(index), **answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_model(directory: Path, family: Family, network: nn.Module) -> None:
    """Write the model. If the run was resumed, it replaces the earlier one once it is complete."""
    from serving.package import write_model  # imports pandas, which training should not wait for

    if not directory.exists():
        write_model(directory, family.spec, network)
        return
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
        written = write_model(Path(scratch) / "new", family.spec, network)
        directory.rename(Path(scratch) / "old")
        written.rename(directory)
