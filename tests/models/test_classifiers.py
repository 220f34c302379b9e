"""Classifiers: the documented freeze groups, any timm name, class weights, and what they are trained on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor, nn

from trainer.annotations import Example, Target
from trainer.errors import JobError
from trainer.models import Family, Spec, create, specify
from trainer.models.class_weights import class_weights
from trainer.models.defaults import resolve
from trainer.models.family import TrainingDataset
from trainer.models.heads import start_near_prior
from trainer.models.training_items import Draw
from trainer.tasks import Task

SMALL = {"validation_crop_size": 64, "training_crop_size": 64}


def family_of(model: str, task: Task = Task.CLASSIFICATION, **values: Any) -> Family:
    settings = resolve(task, model, {**SMALL, **values})
    return create(specify(task, model, settings, ("a", "b", "c"), pretrained=False))


class Photographs:
    """Three images of noise (trainer.annotations.Examples)."""

    def __init__(self, truths: list[Target]) -> None:
        self.targets = truths
        self.images = np.random.default_rng(3).integers(0, 255, (3, 70, 90, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.targets[index])


LABELS = Photographs([0, 1, 2])
SETS = Photographs([np.array([True, False, True]), np.array([False, True, False]), np.array([True] * 3)])


def trained(task: Task, **values: Any) -> tuple[Family, TrainingDataset]:
    """A family that knows its training's settings, and the training data."""
    settings = resolve(task, "resnet18", {**SMALL, **values})
    family = create(specify(task, "resnet18", settings, ("a", "b", "c"), pretrained=False))
    examples = LABELS if task is Task.CLASSIFICATION else SETS
    return family, family.training_dataset(examples, settings, seed=0)


class Seeing(nn.Module):
    """Answers each image with the mean of its channels, and remembers what it saw."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("model", "groups"),
    # resnet conv1+bn1, layer1–4; mobilenetv2 features.0–18; seresnext layer0–4; ViT patch_embed, blocks.0–11
    [
        ("resnet18", 5),
        ("resnet50", 5),
        ("resnest50", 5),
        ("seresnext", 5),
        ("mobilenetv2", 19),
        ("vits16r224", 13),
    ],
)
def test_freeze_groups_are_those_of_the_reference(model: str, groups: int) -> None:
    family = family_of(model)
    network = family.build()
    found = family.freeze_groups(network)
    assert len(found) == groups
    frozen = {id(p) for group in found for layer in group for p in layer.parameters()}
    trained = {name for name, p in network.named_parameters() if id(p) not in frozen}
    # All frozen, the classifier is still trained.
    classifier = {f"{name}.{kind}" for name in family.published().head for kind in ("weight", "bias")}
    assert classifier <= trained
    assert all("layer" not in name and "blocks" not in name for name in trained)


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224"],
)
def test_any_timm_name_trains_and_answers(name: str) -> None:
    family = family_of(f"timm/{name}")
    network = family.build()
    start_near_prior(family.class_layers(network))
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    tensor, geometry = family.preprocess(image)
    items = [family.validation_item(tensor, label, geometry) for label in (0, 2)]
    losses = family.losses(network.train(), family.collate(items))
    # Whatever the library starts its head with: EfficientNet's would start far off.
    assert losses["loss_classifier"].item() == pytest.approx(math.log(3), rel=0.03)
    with torch.inference_mode():
        (prediction,) = family.predict(network.eval(), [image])
    assert prediction.probs.sum() == pytest.approx(1, abs=1e-5)  # type: ignore[union-attr]
    groups = family.freeze_groups(network)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    assert any(first is module for layer in groups[0] for module in layer.modules())
    heads = {id(p) for n, p in network.named_parameters() if n.startswith(family.published().head)}
    assert heads.isdisjoint(id(p) for group in groups for layer in group for p in layer.parameters())


@pytest.mark.parametrize(
    ("choice", "pretrained", "interpolation"),
    [
        ("bilinear", True, "bilinear"),
        ("bicubic", False, "bicubic"),
        ("published", True, "bicubic"),  # timm's configuration of resnet18
        ("published", False, "bilinear"),
    ],
)
def test_images_are_resized_by_the_interpolation_of_the_settings(
    choice: str, pretrained: bool, interpolation: str
) -> None:
    settings = resolve(Task.CLASSIFICATION, "resnet18", {**SMALL, "interpolation": choice})
    spec = specify(Task.CLASSIFICATION, "resnet18", settings, ("a", "b", "c"), pretrained=pretrained)
    family = create(Spec.from_json(spec.to_json()))
    image = LABELS[0].image
    resampling = PILImage.Resampling[interpolation.upper()]
    resized = np.array(PILImage.fromarray(image).resize((round(90 * 73 / 70), 73), resampling))
    mean, std = (np.array(family.spec.options[name]) for name in ("mean", "std"))
    expected = torch.from_numpy((resized[4:68, 15:79] / 255 - mean) / std).permute(2, 0, 1).float()
    torch.testing.assert_close(family.preprocess(image)[0], expected, atol=0.02, rtol=0)
    assert family.preparation().resizing["interpolation"] == f"{interpolation}, antialiased"

    def item(dataset: TrainingDataset) -> Tensor:
        torch.manual_seed(5)
        drawn: Tensor = dataset.item(Draw(0, 0))[0]
        return drawn

    seen = item(family.training_dataset(LABELS, settings, seed=0))
    family, dataset = trained(Task.CLASSIFICATION, interpolation=interpolation)
    assert torch.equal(seen, item(dataset))
    _, dataset = trained(Task.CLASSIFICATION, interpolation="bilinear")
    assert torch.equal(seen, item(dataset)) == (interpolation == "bilinear")


class LeftHalf(nn.Module):
    """Answers each image with the mean of its left half, by channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images[..., : images.shape[-1] // 2].mean(dim=(2, 3))


def test_training_crops_are_bicubic_where_torchvision_lacks_the_interpolation() -> None:
    settings = resolve(Task.CLASSIFICATION, "resnet18", SMALL)
    spec = specify(Task.CLASSIFICATION, "resnet18", settings, ("a", "b", "c"), pretrained=False)
    drawn = []
    for interpolation in ("lanczos", "bicubic"):  # some models of the Hub have the first
        options = {**spec.options, "interpolation": interpolation}
        dataset = create(spec.model_copy(update={"options": options})).training_dataset(LABELS, settings, 0)
        torch.manual_seed(0)
        drawn.append(dataset.item(Draw(0, 0))[0])
    assert torch.equal(*drawn)


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
@pytest.mark.parametrize("flips", [False, True])
def test_test_time_flip_averages_the_logits_of_both_sides(task: Task, flips: bool) -> None:
    spec = family_of("resnet18", task, test_time_flip=flips).spec
    family = create(Spec.from_json(spec.to_json()))  # as a packaged model has it
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = (images if flips else images[..., :32]).mean(dim=(2, 3))
    outputs = family.infer(LeftHalf(), list(images), spec.parameters)
    torch.testing.assert_close(torch.stack(list(outputs)), expected)
    probs = family.graph(LeftHalf(), images, spec.parameters)["probs"]
    normalised = expected.softmax(1) if task is Task.CLASSIFICATION else expected.sigmoid()
    torch.testing.assert_close(probs, normalised)


def test_an_unknown_timm_name_gets_near_ones() -> None:
    with pytest.raises(JobError, match=r"has no model 'resnt18'.*did you mean timm/resnet18 "):
        family_of("timm/resnt18")
    with pytest.raises(JobError, match=r"has no model 'some_future_model'; upgrade timm"):
        family_of("timm/some_future_model")


def test_class_weights_are_the_documented_ones() -> None:
    labels = [0] * 9 + [1] * 3  # imbalance 9 // 3 = 3, over 2; class 2 has no image: 9 // max(1, 0) = 9
    plain = class_weights(labels, 3, multilabel=False, kind=2)
    root = class_weights(labels, 3, multilabel=False, kind=1)
    assert plain is not None
    assert root is not None
    assert plain.tolist() == pytest.approx([1 / 9, 1 / 3, 0])
    assert root.tolist() == pytest.approx([1 / 3, 3**-0.5, 0])
    assert class_weights(labels, 3, multilabel=False, kind=0) is None
    # 2 // 1 is not over 2.
    assert class_weights([0, 0, 1], 2, multilabel=False, kind=2) is None
    sets = [np.array([True, i == 0]) for i in range(8)]
    positive = class_weights(sets, 2, multilabel=True, kind=2)
    assert positive is not None
    assert positive.tolist() == pytest.approx([0, 7])


def test_weighted_loss_weighs_the_loss() -> None:
    family = family_of("resnet18", weighted_loss=2)
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]])
    batch = {"images": torch.zeros(2, 3, 8, 8), "targets": torch.tensor([0, 1])}
    network = nn.Module()
    network.forward = lambda images: logits  # type: ignore[method-assign]
    plain = family.losses(network, batch)["loss_classifier"]
    weights = torch.tensor([0.1, 0.9, 0.0])
    weighted = family.losses(network, {**batch, "shared": {"class_weights": weights}})["loss_classifier"]
    expected = nn.functional.cross_entropy(logits, batch["targets"], weight=torch.tensor([0.1, 0.9, 0.0]))
    assert weighted.item() == pytest.approx(expected.item())
    assert weighted.item() != pytest.approx(plain.item())


MIXING: list[dict[str, float]] = [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}]


def batch_of(task: Task, **values: Any) -> dict[str, Any]:
    """A batch as a run with these settings makes it, of three images."""
    _, dataset = trained(task, **values)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    truths = LABELS.targets if task is Task.CLASSIFICATION else SETS.targets
    dtype = torch.int64 if task is Task.CLASSIFICATION else torch.float32
    shared = dataset.collate([(images[0], truths[0])])["shared"]
    return {"images": images, "targets": torch.tensor(np.array(truths), dtype=dtype), "shared": shared}


@pytest.mark.parametrize("values", MIXING)
@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_images_are_mixed_in_training_alone(task: Task, values: dict[str, float]) -> None:
    family, _ = trained(task)
    network, batch = Seeing(), batch_of(task, **values)
    torch.manual_seed(4)
    first = family.losses(network.train(), batch)["loss_classifier"]
    seen = network.seen
    assert not torch.equal(seen, batch["images"])
    torch.manual_seed(4)
    assert family.losses(network, batch)["loss_classifier"] == first
    assert torch.equal(network.seen, seen)
    torch.manual_seed(5)
    assert family.losses(network, batch)["loss_classifier"] != first
    loss = family.losses(network.eval(), batch)["loss_classifier"]
    assert torch.equal(network.seen, batch["images"])
    torch_loss = F.cross_entropy if task is Task.CLASSIFICATION else F.binary_cross_entropy_with_logits
    expected = torch_loss(batch["images"].mean(dim=(2, 3)), batch["targets"])
    assert loss.item() == pytest.approx(expected.item())


def test_what_is_not_mixed_draws_nothing() -> None:
    family, _ = trained(Task.CLASSIFICATION)
    state = torch.get_rng_state()
    family.losses(Seeing().train(), batch_of(Task.CLASSIFICATION))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("values", MIXING)
@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
def test_mixing_goes_with_class_weights_smoothing_and_single_images(
    task: Task, values: dict[str, float]
) -> None:
    family, _ = trained(task)
    whole = batch_of(task, label_smoothing=0.1, **values)
    whole["shared"] = {**whole["shared"], "class_weights": torch.tensor([0.1, 0.9, 0.5])}
    for images in (3, 1):
        batch = family.part(whole, 0, images)
        assert torch.isfinite(family.losses(Seeing().train(), batch)["loss_classifier"])


def test_targets_are_smoothed_in_training_alone() -> None:
    family, _ = trained(Task.CLASSIFICATION)
    batch = batch_of(Task.CLASSIFICATION, label_smoothing=0.2)
    logits = batch["images"].mean(dim=(2, 3))
    for network, smoothing in ((Seeing().train(), 0.2), (Seeing().eval(), 0.0)):
        expected = F.cross_entropy(logits, batch["targets"], label_smoothing=smoothing)
        loss = family.losses(network, batch)["loss_classifier"]
        assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTILABEL])
@pytest.mark.parametrize("setting", [{"label_smoothing": 0.2}, {"focal_gamma": 2.0}])
def test_smoothing_and_focal_loss_act_in_training_alone(task: Task, setting: dict[str, float]) -> None:
    family, _ = trained(task)
    plain, changed = batch_of(task), batch_of(task, **setting)
    losses = [
        family.losses(network, batch)["loss_classifier"].item()
        for batch in (plain, changed)
        for network in (Seeing().train(), Seeing().eval())
    ]
    plain_training, plain_validation, training, validation = losses
    assert validation == plain_validation
    assert abs(training - plain_training) > 0.001


AS_VALIDATED = {"apply_automl_train_augmentations": False}


@pytest.mark.parametrize("advanced", [{}, AS_VALIDATED])
def test_rand_augment_changes_images_as_the_seed_says(advanced: dict[str, bool]) -> None:
    _, dataset = trained(Task.CLASSIFICATION, random_augment=True, advanced_settings=advanced)
    _, plain = trained(Task.CLASSIFICATION, advanced_settings=advanced)
    differ = 0
    for seed in range(8):
        items = []
        for items_of in (dataset, dataset, plain):
            torch.manual_seed(seed)
            items.append(items_of.item(Draw(0, 0))[0])
        assert torch.equal(items[0], items[1])
        assert items[0].shape == items[2].shape == (3, 64, 64)
        assert items[0].dtype == torch.uint8
        differ += not torch.equal(items[0], items[2])
    assert differ >= 5  # some draws leave an image alone


def test_what_rand_augment_uncovers_is_grey_to_the_network() -> None:
    family, dataset = trained(Task.CLASSIFICATION, random_augment=True, advanced_settings=AS_VALIDATED)
    moved = 0
    for seed in range(30):
        torch.manual_seed(seed)
        corner = family.normalised(dataset.item(Draw(0, 0))[0])[:, 0, 0]
        moved += bool((corner.abs() < 0.02).all())
    assert moved >= 3


def test_without_augmentation_training_sees_what_validation_does() -> None:
    family, dataset = trained(Task.CLASSIFICATION, advanced_settings=AS_VALIDATED)
    assert torch.equal(family.normalised(dataset.item(Draw(0, 1))[0]), family.preprocess(LABELS.images[1])[0])
