"""The cases of the conformance suite: a small model for every family and task in the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from tests import hub_models
from tests.conftest import needs_library
from trainer import metrics
from trainer.annotations import Example, Objects, Target
from trainer.data.datasets import ValidationDataset
from trainer.models import Family, Spec, catalog, create, specify
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw, Progress
from trainer.settings import Settings
from trainer.tasks import Task
from trainer.training.evaluation import Evaluation
from trainer.training.loading import validation_share

CLASSES = ("가위", "바위", "보")
TINY_MODELS: dict[str, dict[str, Any]] = {
    # On images as small as the others' this one would need many more steps.
    "retinanet_resnet50_fpn": {"min_size": 96, "max_size": 160},
    # Multiples of two patches.
    **{
        f"rfdetr-seg-{size}": {"image_size": 72}
        for size in ("nano", "small", "medium", "large", "xlarge", "2xlarge")
    },
}
_DECODER = {"d_model": 64, "decoder_layers": 1, "decoder_ffn_dim": 128, "num_queries": 16}
_HYBRID = {
    **_DECODER,
    "encoder_hidden_dim": 64,
    "encoder_ffn_dim": 128,
    "num_denoising": 8,
    "encoder_in_channels": [32, 64, 128],
    "decoder_in_channels": [64, 64, 64],
}
_VIT = {"hidden_size": 96, "num_attention_heads": 3}
_FOUR_BLOCKS = {"num_hidden_layers": 4, "intermediate_size": 192}
_GROUPS = {**_DECODER, "group_detr": 3}
_HGNET = {
    **_HYBRID,
    "num_queries": 20,
    "encoder_in_channels": [64, 128],
    "decoder_in_channels": [64, 64],
    "backbone_config": {
        "hidden_sizes": [16, 32, 64, 128],
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16, 32, 64],
        "stage_mid_channels": [8, 8, 16, 16],
        "stage_out_channels": [16, 32, 64, 128],
    },
}
_ENCODER = {"encoder_layers": 1, "encoder_ffn_dim": 128, "dropout": 0.0}
_RESNET = {"backbone": "test_resnet"}
_DEFORMABLE = {**_DECODER, **_ENCODER, "backbone_config": _RESNET, "encoder_n_points": 2}
TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "rtdetrv2-r18": {
        **_HYBRID,
        "num_queries": 84,
        "backbone_config": {"depths": [1] * 4, "hidden_sizes": [16, 32, 64, 128], "embedding_size": 16},
    },
    "dfine-n": _HGNET,
    "deimv2-n": _HGNET,
    "deimv2-s": {
        **_HYBRID,
        "encoder_in_channels": [64, 64, 64],
        "backbone_config": {**_VIT, **_FOUR_BLOCKS, "out_indices": [2, 3, 4]},
    },
    "rfdetr-nano": {**_GROUPS, "backbone_config": {**_VIT, "num_windows": 1}},
    # Every position is a query, so that the first scores choose none.
    "rfdetr-seg-nano": {**_GROUPS, "num_queries": 36, "backbone_config": _VIT},
    "lwdetr-tiny": {**_GROUPS, "backbone_config": _VIT},
    "deformable-detr": _DEFORMABLE,
    "deformable-detr-two-stage": _DEFORMABLE,
    "yolos-tiny": {**_VIT, **_FOUR_BLOCKS, "num_detection_tokens": 16},
    # Only from the second layer on, queries are scaled.
    "conditional-detr-r50": {**_DECODER, **_ENCODER, "decoder_layers": 2, "backbone_config": _RESNET},
}
"""Changes that make a DETR's configuration small enough for tests."""
_DEPTHS = [1, 1, 1, 1]
TINY_SEGMENTERS: dict[str, dict[str, Any]] = {
    "mask2former-swin-t": {
        "hidden_dim": 64,
        "feature_size": 64,
        "mask_feature_size": 64,
        "encoder_layers": 1,
        "encoder_feedforward_dim": 64,
        "decoder_layers": 4,
        "dim_feedforward": 128,
        "num_attention_heads": 4,
        "num_queries": 10,
        "train_num_points": 256,
        "backbone_config": {
            "depths": _DEPTHS,
            "embed_dim": 16,
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
            "drop_path_rate": 0.0,
        },
    },
    "eomt-small": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_blocks": 2,
        "num_queries": 10,
        "patch_size": 8,
        "num_upscale_blocks": 1,
        "train_num_points": 256,
    },
}
"""The same for mask transformers."""
STEPS = 300
EPOCHS = 30  # of which the tests train the first


def smallest_models() -> list[tuple[Task, str]]:
    """One model of each architecture of each family, for each of its tasks."""
    names = [name for card in catalog.CARDS.values() for name in card.smallest_models]
    return [(task, name) for name in names for task in catalog.MODELS[name].tasks]


class Shapes:
    """Four images (trainer.annotations.Examples) of rectangles whose colour is their class."""

    COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 230))
    # Of each image: (class, x1, y1, x2, y2) in pixels of 160 × 120.
    SCENES = (
        ((0, 20, 20, 80, 70),),
        ((1, 60, 40, 130, 110), (0, 10, 5, 50, 45)),
        ((2, 30, 30, 90, 100),),
        ((1, 90, 15, 150, 60), (2, 15, 60, 70, 112)),
    )

    def __init__(self, task: Task) -> None:
        self.task = task
        generator = np.random.default_rng(7)
        self.images = []
        for scene in self.SCENES:
            image = generator.integers(90, 140, (120, 160, 3), dtype=np.uint8)
            for label, x1, y1, x2, y2 in scene:
                cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), self.COLOURS[label], thickness=-1)
            self.images.append(image)

    def __len__(self) -> int:
        return len(self.SCENES)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.targets[index])

    @property
    def targets(self) -> list[Target]:
        return [self._truth(scene) for scene in self.SCENES]

    def _truth(self, scene: tuple[tuple[int, ...], ...]) -> Target:
        labels = np.array([label for label, *_ in scene])
        if self.task is Task.CLASSIFICATION:
            return int(labels[0])
        if self.task is Task.MULTILABEL:
            return np.isin(np.arange(len(CLASSES)), labels)
        boxes = np.array([box for _, *box in scene], np.float32) / np.array([160, 120] * 2, np.float32)
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        polygons = tuple((outline,) for outline in corners) if self.task is Task.SEGMENTATION else None
        return Objects(boxes, labels, np.zeros(len(labels), dtype=bool), polygons)


@dataclass
class Case:
    """A family bound to a small model, with its settings and data."""

    task: Task
    model: str
    settings: Settings
    family: Family
    examples: Shapes

    def build(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.family.build()

    def step(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, items: list[Any]
    ) -> dict[str, float]:
        network.train()
        losses = self.family.losses(network, self.family.collate(items), Progress(0, EPOCHS))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        return {name: loss.item() for name, loss in losses.items()}

    @property
    def trained(self) -> list[int]:
        """The images to overfit: for detectors two, which hold all classes; a step costs half as much."""
        return [1, 3] if self.task.has_boxes else [0, 1, 2, 3]

    def score(self, network: nn.Module) -> float:
        """The primary metric on the images that were trained on."""
        evaluator = metrics.create(self.task, CLASSES)
        with torch.inference_mode():
            predictions = self.family.predict(
                network.eval(), [self.examples.images[index] for index in self.trained]
            )
        for prediction, index in zip(predictions, self.trained, strict=True):
            evaluator.update(prediction, self.examples.targets[index])
        return evaluator.compute()[self.task.primary_metric]


def evaluated(case: Case, network: nn.Module, rank: int, ranks: int) -> dict[str, float]:
    """The metrics of a detector's images, of which each rank scores its share, as in training."""
    settings = case.settings.model_copy(update={"validation_metric_type": "coco_voc"})
    evaluation = Evaluation(case.family, case.examples.targets, settings)
    items = ValidationDataset(case.examples, case.family, with_losses=True)
    with torch.inference_mode():
        for item in items.items_of(validation_share(items.images, rank, ranks)):
            torch.manual_seed(item)  # from which R-CNNs' losses draw
            evaluation.add(network, items.collate([items[item]]))
    return evaluation.compute(ranks)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with changes, in which those to an inner configuration change it too."""
    inner = {
        name: merged(config.get(name, {}), value)
        for name, value in changes.items()
        if isinstance(value, dict)
    }
    return {**config, **changes, **inner}


def make_case(task: Task, model: str, **more: Any) -> Case:
    card = catalog.find(model, task).card
    values = {
        **card.tiny_settings,
        **TINY_MODELS.get(model, {}),
        "advanced_settings": {"apply_automl_train_augmentations": False},
        **({"model_size": "small"} if model == "yolov5" else {}),
        **more,
    }
    description, published = None, None
    if card.described_by_files is not None:
        description = hub_models.describe(model.rpartition("-")[2])
        published = card.described_by_files(description)
        values = {name: value for name, value in values.items() if name not in card.described_settings}
    settings = resolve(task, model, values, published=published)
    spec = specify(task, model, settings, CLASSES, pretrained=False, description=description)
    smaller = {name: value for name, value in card.tiny_options.items() if name in spec.options}
    if changes := {**TINY_CONFIGS, **TINY_SEGMENTERS}.get(model):
        smaller["config"] = merged(spec.options["config"], changes)
    spec = spec.model_copy(update={"options": spec.options | smaller})
    # Through JSON, as a packaged model reads it.
    bound = create(Spec.model_validate_json(spec.model_dump_json()))
    return Case(task, model, settings, bound, Shapes(task))


CASES: list[tuple[Task, str, str]] = [
    *((task, model, "") for task, model in smallest_models()),
    # A network of timm instead of the ResNet.
    (Task.DETECTION, "fasterrcnn_resnet18_fpn", "timm/test_efficientnet"),
    # Models of the Hub have no entries in the catalog.
    (Task.CLASSIFICATION, "hf/acme/tiny-vit", ""),
    (Task.MULTILABEL, "hf/acme/tiny-resnet", ""),
]


@pytest.fixture(
    params=CASES,
    ids=[
        f"{model.rpartition('/')[2]}-{task}{f'-{backbone}' if backbone else ''}"
        for task, model, backbone in CASES
    ],
    scope="session",
)
def case(request: pytest.FixtureRequest) -> Case:
    task, model, backbone = request.param
    needs_library(catalog.find(model, task).card.library)
    return make_case(task, model, **({"backbone": backbone} if backbone else {}))


@pytest.fixture(scope="session")
def overfitted(case: Case) -> Iterator[tuple[Case, nn.Module, float]]:
    """The case with a network trained on its images until it knows them."""
    network = case.build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # with the libraries' momentum, the statistics need hundreds of steps
    rate = catalog.CARDS[case.family.spec.family].tiny_learning_rate
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0, fused=True)
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    items = [dataset.item(Draw(0, index)) for index in case.trained]
    value = -1.0
    for step in range(1, STEPS + 1):
        case.step(network, optimizer, items)
        if step % 5 == 0 and (value := case.score(network)) >= 0.99:
            break
    return case, network.eval(), value
