"""A new family is one module, its card and an entry: all else derives from them."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from types import ModuleType

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image as PILImage

import trainer
from trainer.data.samples import make
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.models import catalog
from trainer.models.card import FamilyCard, ModelEntry
from trainer.models.defaults import models_taking, resolve, takes
from trainer.tasks import Task

MODULE = '''
"""Classifies images by their mean colour. Its library is torch itself."""

import torch
from torch import nn

from trainer.annotations import Classification
from trainer.models.family import Family, TrainingDataset
from trainer.models.geometry import Geometry
from trainer.models.weights.published import PublishedWeights


class MeanColour(Family):
    @staticmethod
    def options(task, model, settings, pretrained):
        return {"side": settings.image_size}

    def build(self):
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, len(self.spec.classes)))

    def class_layers(self, network):
        return [(network[-1], 0.5)]

    def published(self):
        return PublishedWeights(files=("toy.pth",))

    def preprocess(self, image):
        height, width = image.shape[:2]
        side = self.spec.options["side"]
        mean = torch.from_numpy(image).float().mean(dim=(0, 1)) / 255
        geometry = Geometry((height, width), (side, side), (side / width, side / height))
        return mean[:, None, None].expand(3, side, side), geometry

    def infer(self, network, tensors, parameters):
        return list(network(torch.stack(list(tensors)).mean(dim=(2, 3))))

    def postprocess(self, output, geometry, parameters):
        return Classification(output.softmax(0).cpu().numpy())

    def training_dataset(self, examples, settings, seed):
        return Items(self, examples)

    def validation_item(self, image, target, geometry):
        return image, target

    def collate(self, items):
        images, targets = zip(*items, strict=True)
        return {"images": torch.stack(images), "targets": torch.tensor(targets)}

    def losses(self, network, batch, progress=None):
        logits = network(batch["images"].mean(dim=(2, 3)))
        return {"loss_toy": nn.functional.cross_entropy(logits, batch["targets"])}

    def freeze_groups(self, network):
        return [[network[0]], [network[2]]]


class Items(TrainingDataset):
    def __init__(self, family, examples):
        self.family, self.examples = family, examples

    def item(self, draw):
        example = self.examples[draw.example]
        return self.family.preprocess(example.image)[0], example.target


FAMILY = MeanColour
'''

CARD = FamilyCard(
    name="mean_colour",
    module="toy_family_of_a_test",
    words="toys",
    library="torch",
    licence="BSD-3-Clause",
    weights_licence="not stated",
    published_classes=10,
    settings=("image_size",),
    size_setting="image_size",
    defaults={"image_size": 32, "learning_rate": 0.1, "number_of_epochs": 2},
    epochs=10,
    smallest_models=("toy",),
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """A catalogue with the toy family, whose module is in a temporary directory."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{CARD.module}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(catalog.CARDS, CARD.name, CARD)
    entry = ModelEntry("toy", CARD, (Task.CLASSIFICATION,), "toy", "nothing")
    monkeypatch.setitem(catalog.MODELS, entry.name, entry)
    module = sys.modules.pop(CARD.module, None)
    assert not isinstance(module, ModuleType), "no other test uses this name"
    return entry


def test_a_toy_family_takes_the_settings_of_its_card(toy: ModelEntry) -> None:
    settings = resolve(Task.CLASSIFICATION, toy.name, {"image_size": 64})
    assert (settings.image_size, settings.number_of_epochs) == (64, 2)
    assert takes(toy, "image_size")
    assert not takes(toy, "mixup_alpha")
    assert models_taking("image_size").endswith(" and toys")
    with pytest.raises(JobError, match="mixup_alpha"):
        resolve(Task.CLASSIFICATION, toy.name, {"mixup_alpha": 0.2})


def test_a_toy_family_is_trained_packaged_and_served(toy: ModelEntry, tmp_path: Path) -> None:
    data = make(Task.CLASSIFICATION, tmp_path / "data", images=12, seed=1)
    job = Job(
        task=Task.CLASSIFICATION,
        training_data=(str(data.train),),
        validation_data=(str(data.validation),),
        model=toy.name,
        weights="none",
        gpus=0,
        output=tmp_path / "run",
        settings={"number_of_workers": 0, "training_batch_size": 4, "seed": 3},
    )
    run = trainer.fit(job)
    loaded = mlflow.pyfunc.load_model(str(run.model))
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((20, 30, 3), 200, dtype=np.uint8)).save(buffer, format="PNG")
    text = base64.encodebytes(buffer.getvalue()).decode()
    (answer,) = loaded.predict(pd.DataFrame({"image": [text]})).to_dict("records")
    assert sum(answer["probs"]) == pytest.approx(1, abs=1e-5)
    assert len(answer["labels"]) == len(answer["probs"]) > 1
