"""What every family must do, for every task it has. A new family is covered by being in the catalog."""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import sys
from copy import copy
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from serving.package import write_model
from tests.conformance.conftest import CLASSES, Case, Shapes, evaluated
from trainer.annotations import Classification, Detections, Image, Prediction
from trainer.data.datasets import ValidationDataset
from trainer.models import catalog
from trainer.models.defaults import takes
from trainer.models.heads import start_near_prior
from trainer.models.training_items import Draw, Progress
from trainer.scoring import ScoringParameters
from trainer.tasks import Task
from trainer.training.module import TrainingModule

pytestmark = pytest.mark.timeout(600)


def png(image: Image) -> str:
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, format="PNG")
    return base64.encodebytes(buffer.getvalue()).decode()


def assert_same(one: Prediction, other: Prediction, *, may_be_empty: bool = False) -> None:
    if isinstance(one, Classification):
        assert isinstance(other, Classification)
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)
        return
    assert isinstance(one, Detections)
    assert isinstance(other, Detections)
    assert may_be_empty or len(one.labels)
    assert one.labels.tolist() == other.labels.tolist()
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    for mask, same in zip(one.masks or (), other.masks or (), strict=True):
        assert (mask.left, mask.top, mask.pixels.shape) == (same.left, same.top, same.pixels.shape)
        assert (mask.pixels != same.pixels).mean() < 0.01


def test_overfits_its_training_images(overfitted: tuple[Case, nn.Module, float]) -> None:
    assert overfitted[2] >= 0.99


def test_same_seed_same_training(case: Case) -> None:
    histories = []
    for _ in range(2):
        network = case.build(seed=3)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        torch.manual_seed(5)
        dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
        items = [dataset.item(Draw(0, index)) for index in range(2)]
        histories.append([case.step(network, optimizer, items) for _ in range(2)])
    assert histories[0] == histories[1]
    assert all(np.isfinite(list(losses.values())).all() for losses in histories[0])


def test_packaged_model_answers_as_the_network_does(
    overfitted: tuple[Case, nn.Module, float], tmp_path: Path
) -> None:
    case, network, _ = overfitted
    with torch.inference_mode():
        expected = case.family.predict(network, case.examples.images)
    loaded = mlflow.pyfunc.load_model(str(write_model(tmp_path / "model", case.family.spec, network)))
    import pandas as pd

    table = loaded.predict(pd.DataFrame({"image": [png(image) for image in case.examples.images]}))
    assert len(table) == len(expected)
    for (_, row), prediction in zip(table.iterrows(), expected, strict=True):
        if isinstance(prediction, Classification):
            assert row["labels"] == list(CLASSES)
            np.testing.assert_allclose(row["probs"], prediction.probs, atol=1e-5)
            continue
        assert [CLASSES[label] for label in prediction.labels] == [box["label"] for box in row["boxes"]]
        corners = [[box["box"][k] for k in ("topX", "topY", "bottomX", "bottomY")] for box in row["boxes"]]
        np.testing.assert_allclose(np.array(corners).reshape(-1, 4), prediction.boxes, atol=1e-5)
        np.testing.assert_allclose([box["score"] for box in row["boxes"]], prediction.scores, atol=1e-5)
        if case.task is Task.SEGMENTATION:
            assert all(len(segment) >= 6 for box in row["boxes"] for segment in box["polygon"])


@pytest.mark.parametrize("grid", [None, "2x2"])
def test_predictions_keep_their_promises(overfitted: tuple[Case, nn.Module, float], grid: str | None) -> None:
    case, network, _ = overfitted
    if grid and case.task.is_classification:
        return  # has no tiles
    few = {"box_detections_per_image": 30} if grid else {}  # a mask takes a while
    low = case.family.spec.parameters.model_copy(
        update={"box_score_threshold": 0.001, "tile_grid_size": grid, **few}
    )
    with torch.inference_mode():
        predictions = case.family.predict(network, case.examples.images[: 2 if grid else 4], low)
    for prediction in predictions:
        if isinstance(prediction, Classification):
            assert prediction.probs.shape == (len(CLASSES),)
            assert prediction.probs.dtype == np.float32
            if case.task is Task.CLASSIFICATION:
                assert prediction.probs.sum() == pytest.approx(1, abs=1e-5)
            continue
        assert isinstance(prediction, Detections)
        assert prediction.boxes.shape == (len(prediction.labels), 4)
        assert prediction.boxes.min(initial=0) >= 0
        assert prediction.boxes.max(initial=0) <= 1
        assert (prediction.boxes[:, 2:] >= prediction.boxes[:, :2]).all()
        assert (np.diff(prediction.scores) <= 0).all()
        assert set(prediction.labels.tolist()) <= set(range(len(CLASSES)))
        assert prediction.image_size == (120, 160)
        assert (prediction.masks is not None) == (case.task is Task.SEGMENTATION)
        for mask in prediction.masks or ():
            height, width = mask.pixels.shape
            assert 0 <= mask.left <= mask.left + width <= 160
            assert 0 <= mask.top <= mask.top + height <= 120


def test_an_answer_does_not_depend_on_the_batch(overfitted: tuple[Case, nn.Module, float]) -> None:
    case, network, _ = overfitted
    with torch.inference_mode():
        together = case.family.predict(network, case.examples.images)
        alone = [case.family.predict(network, [image])[0] for image in case.examples.images]
    for one, other in zip(together, alone, strict=True):
        if isinstance(one, Classification) and isinstance(other, Classification):
            np.testing.assert_allclose(one.probs, other.probs, atol=1e-4)
        elif isinstance(one, Detections) and isinstance(other, Detections):
            assert one.labels.tolist() == other.labels.tolist()
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)


def test_scoring_with_losses_gives_what_both_give_apart(overfitted: tuple[Case, nn.Module, float]) -> None:
    case, network, _ = overfitted
    items = ValidationDataset(case.examples, case.family, with_losses=True)
    batch = items.collate([items[index] for index in range(len(items))])["batch"]
    parameters = ScoringParameters(box_score_threshold=0.05)
    with torch.inference_mode():
        torch.manual_seed(4)  # from which R-CNN's losses draw proposals
        outputs, losses = case.family.infer_with_losses(network, batch, parameters)
        torch.manual_seed(4)
        apart = case.family.losses(network, batch)
        answers = case.family.infer(network, list(batch["images"]), parameters)
    assert not any(module.training for module in network.modules())
    assert list(losses) == list(apart)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, apart[name], rtol=1e-4, atol=1e-5)
    for index in range(len(case.examples)):
        _, geometry = case.family.preprocess(case.examples.images[index])
        pair = outputs[index], answers[index]
        one, other = (case.family.postprocess(output, geometry, parameters) for output in pair)
        assert_same(one, other, may_be_empty=index not in case.trained)


RANK = """
import json, sys
from datetime import timedelta
import torch, torch.distributed as dist
from tests.conformance.conftest import evaluated, make_case
from trainer.tasks import Task

file, rank, ranks = sys.argv[1], int(sys.argv[2]), 2
meeting = f"file://{file}.store"
dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
case = make_case(Task(sys.argv[3]), sys.argv[4])
network = case.build()
network.load_state_dict(torch.load(file, weights_only=True))
print(json.dumps(evaluated(case, network.eval(), rank, ranks)))
"""


def test_two_processes_have_the_metrics_of_one(
    overfitted: tuple[Case, nn.Module, float], tmp_path: Path, warm_processes: None
) -> None:
    case, network, _ = overfitted
    if case.model != "retinanet_resnet50_fpn":
        return  # one detector is enough: how ranks share images does not depend on the family
    file = tmp_path / "weights.pt"
    torch.save(network.state_dict(), file)
    arguments = [case.task.value, case.model]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(file), str(rank), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]  # fmt: skip
    alone = evaluated(case, network, 0, 1)
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert json.loads(out.splitlines()[-1]) == pytest.approx(alone, rel=1e-6)
    assert alone["mean_average_precision"] > 0.3
    assert alone["map"] > 0.3
    assert alone["log_loss"] > 0


def test_requests_set_thresholds(overfitted: tuple[Case, nn.Module, float]) -> None:
    case, network, _ = overfitted
    if case.task.is_classification:
        return
    image = case.examples.images[1]
    with torch.inference_mode():
        everything = case.family.predict(network, [image], ScoringParameters(box_score_threshold=0.0))[0]
        one = case.family.predict(
            network, [image], ScoringParameters(box_score_threshold=0.0, box_detections_per_image=1)
        )[0]
        nothing = case.family.predict(network, [image], ScoringParameters(box_score_threshold=1.0))[0]
    assert isinstance(everything, Detections)
    assert isinstance(one, Detections)
    assert isinstance(nothing, Detections)
    assert len(everything.labels) > len(one.labels) == 1
    assert len(nothing.labels) == 0


@pytest.mark.parametrize("size", [(120, 160), (160, 120), (50, 50), (333, 97), (1, 1), (900, 40)])
def test_geometry_maps_pixels_where_preprocess_puts_them(case: Case, size: tuple[int, int]) -> None:
    height, width = size
    image = np.zeros((height, width, 3), dtype=np.uint8)
    box = np.array([[0.25, 0.25, 0.75, 0.75]], dtype=np.float32)
    pixels = np.rint(box[0] * [width, height, width, height]).astype(int)
    image[pixels[1] : pixels[3], pixels[0] : pixels[2]] = 255
    tensor, geometry = case.family.preprocess(image)
    assert tensor.shape == (3, *geometry.tensor_size)
    assert tensor.dtype == torch.float32
    assert geometry.image_size == size
    np.testing.assert_allclose(geometry.boxes_to_image(geometry.boxes_to_tensor(box)), box, atol=1e-5)
    if min(size) < 40 or case.task.is_classification:
        return  # too small to find again; a classifier's crop may cut it
    bright = tensor.mean(dim=0) > (tensor.max() * 0.75)
    rows, columns = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
    found = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=np.float32)
    expected = pixels / np.array([width, height, width, height])
    # To one and a half pixels of the coarser of the two.
    shown = (size[0] * geometry.scale[1], size[1] * geometry.scale[0])
    slack = 1.5 / min(*shown, *size)
    np.testing.assert_allclose(geometry.boxes_to_image(found)[0], expected, atol=slack)


def with_features_of_size_one(network: nn.Module, layers: list[nn.Module]) -> None:
    """Let each layer see features as large as those of published weights, which random ones may not make."""
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, inputs: inputs[0] / inputs[0].square().mean().sqrt())


def test_new_class_layers_beside_loaded_weights_start_with_the_loss_of_the_prior(case: Case) -> None:
    network = case.build()
    class_layers = case.family.class_layers(network)
    start_near_prior(class_layers)
    heads = case.family.published().head
    names = {module: name for name, module in network.named_modules()}
    assert class_layers
    assert all(f"{names[layer]}.".startswith(heads) for layer, _ in class_layers)
    with_features_of_size_one(network, [layer for layer, _ in class_layers])
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    batch = case.family.collate([dataset.item(Draw(0, index)) for index in case.trained])

    def losses() -> dict[str, float]:
        torch.manual_seed(4)  # from which R-CNNs draw proposals, and RT-DETR noise
        with torch.no_grad():
            values = case.family.losses(network.train(), copy(batch), Progress(0, 1))
        return {name: value.item() for name, value in values.items()}

    first = losses()
    for layer, prior in class_layers:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))
    assert first == pytest.approx(losses(), rel=0.15)
    choices = 2 if case.task is Task.MULTILABEL else len(CLASSES) + case.task.has_boxes
    guesses = {
        "loss_classifier": math.log(choices),
        "loss_mask": math.log(2),
        "loss_objectness": math.log(2),
    }
    assert {name: first[name] for name in first.keys() & guesses} == pytest.approx(
        {name: guesses[name] for name in first.keys() & guesses}, rel=0.05
    )


def test_freeze_batch_norm_keeps_statistics_alone(case: Case) -> None:
    if not takes(catalog.find(case.model, case.task), "freeze_batch_norm"):
        pytest.skip("has no batch norms")
    settings = case.settings.model_copy(update={"freeze_batch_norm": True, "layers_to_freeze": None})
    network = case.build()
    TrainingModule(case.family, network, [], settings, seed=0).on_train_epoch_start()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert bool(norms) == (case.model not in ("vits16r224", "hf/acme/tiny-vit"))
    assert not any(norm.training for norm in norms)
    assert all(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert all(layer.training for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))


class Imbalanced(Shapes):
    """Five images (trainer.annotations.Examples): four with an object of class 0, one of class 2."""

    SCENES = (*(Shapes.SCENES[:1] * 4), Shapes.SCENES[2])


def test_weighted_loss_weights_classes_by_their_rarity(case: Case) -> None:
    expected = {
        Task.CLASSIFICATION: [1 / 4, 0, 1],
        Task.MULTILABEL: [1 / 4, 0, 4],
    }.get(case.task, [2.5 / 4, 0, 2.5])  # of mean 1 over the five objects
    weights = []
    for kind in (0, 1, 2):
        settings = case.settings.model_copy(update={"weighted_loss": kind})
        dataset = case.family.training_dataset(Imbalanced(case.task), settings, seed=0)
        batch = dataset.collate([dataset.item(Draw(0, index)) for index in (0, 4)])
        weights.append(batch["shared"]["class_weights"])
        assert case.family.part(batch, 0, 1)["shared"]["class_weights"] is weights[-1]
    off, root, full = weights
    assert off is None
    assert full.tolist() == pytest.approx(expected)
    assert (root[2] / root[0]).item() == pytest.approx((expected[2] / expected[0]) ** 0.5)


def test_a_class_weight_multiplies_the_loss_of_its_objects(case: Case) -> None:
    if case.task.is_classification:
        return  # their losses are means, which tests/models/test_mixing.py compares with torch's
    network = case.build().train()
    dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
    batch = dataset.collate([dataset.item(Draw(0, index)) for index in case.trained])
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}

    def losses(*weights: float) -> dict[str, float]:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        shared = {"class_weights": torch.tensor(weights) if weights else None}
        torch.manual_seed(0)
        with torch.no_grad():
            values = case.family.losses(network, {**batch, "shared": shared}, Progress(0, 2))
        return {name: value.item() for name, value in values.items()}

    plain, tripled = losses(), losses(3.0, 3.0, 3.0)
    changed = [name for name in plain if tripled[name] != pytest.approx(plain[name], rel=1e-4)]
    assert len(changed) == 1, "only the classification loss is weighted"
    (name,) = changed
    added = [losses(*weights)[name] - plain[name] for weights in ((3.0, 1.0, 1.0), (1.0, 3.0, 3.0))]
    assert min(added) > 0
    assert sum(added) == pytest.approx(tripled[name] - plain[name], rel=1e-2)


def test_frozen_groups_cover_the_backbone_from_its_input(case: Case) -> None:
    network = case.build()
    groups = case.family.freeze_groups(network)
    assert len(groups) >= 5
    modules = set(network.modules())
    assert all(layer in modules for group in groups for layer in group)
    ran: list[nn.Module] = []
    for module in modules:
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, _: ran.append(module))
    with torch.inference_mode():
        case.family.predict(network.eval(), case.examples.images[:1])
    assert any(ran[0] is module for layer in groups[0] for module in layer.modules())
