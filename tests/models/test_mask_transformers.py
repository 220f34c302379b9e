"""Mask2Former and EoMT beyond the conformance suite: what becomes of transformers' networks and losses."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EomtImageProcessor, Mask2FormerImageProcessor

from tests.conformance.conftest import TINY_SEGMENTERS, Case, make_case
from tests.models.test_detr import Squares, batch_of, built, with_classes
from tests.models.weights.test_weights_of_detrs import publish
from trainer.errors import JobError, RunError, WeightsError
from trainer.models import catalog, create, specify
from trainer.models.card import ModelEntry
from trainer.models.defaults import resolve
from trainer.models.geometry import Geometry
from trainer.models.mask_networks import PUBLISHED, Predictions
from trainer.models.mask_transformers import Output
from trainer.models.weights import loading as weights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task
from trainer.training.optimizers import build_optimizer

SEGMENTATION = Task.SEGMENTATION
MODELS = tuple(TINY_SEGMENTERS)
ENTRIES = [entry for entry in catalog.MODELS.values() if entry.family == "mask_transformers"]
EVERYTHING = ScoringParameters(box_score_threshold=0)


def tiny(model: str, **settings: Any) -> Case:
    return make_case(SEGMENTATION, model, **settings)


@pytest.fixture
def _same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the same random points whatever was drawn before."""

    def drawn(*shape: int, device: Any = None, **_: Any) -> Tensor:
        return torch.empty(shape, device=device).uniform_(generator=torch.Generator().manual_seed(len(shape)))

    monkeypatch.setattr(torch, "rand", drawn)


@pytest.mark.usefixtures("_same_points")
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("model", MODELS)
def test_losses_are_the_librarys_own_averaged_over_the_layers(model: str, training: bool) -> None:
    case = tiny(model)
    network = built(case.family).train(training)
    batch = batch_of(case, case.examples, 4)
    masks = [target["masks"].float() for target in batch["targets"]]
    labels = [target["class_labels"] for target in batch["targets"]]
    with torch.no_grad():
        library = network(batch["images"], mask_labels=masks, class_labels=labels)
        losses = case.family.losses(network, batch)
    layers = network.config.decoder_layers if model.startswith("mask2former") else 1 + 2 * training
    assert list(losses) == ["class_loss", "mask_loss", "dice_loss"]
    assert sum(losses.values()).item() == pytest.approx(library.loss.item() / layers, rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_gets_a_gradient_even_without_objects(model: str) -> None:
    # Processes that train one network wait for all of them.
    case = tiny(model)
    network = built(case.family).train()
    losses = case.family.losses(network, batch_of(case, Squares(empty=True)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
    assert len(trained) >= len(list(network.parameters())) - 2
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []


def test_a_mask2former_passes_on_coordinates_in_float32_under_mixed_precision() -> None:
    case = tiny("mask2former-swin-t")
    network = built(case.family).train()
    seen: dict[str, torch.dtype] = {}
    decoder = network.model.pixel_level_module.decoder
    for name, module in {
        "backbone": network.model.pixel_level_module.encoder.swin.encoder.layers[0].blocks[0].mlp.fc1,
        "pixel decoder": decoder.encoder.layers[0].fc1,
        "decoder": network.model.transformer_module.decoder.layers[0].fc1,
    }.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        losses = case.family.losses(network, batch_of(case, case.examples, 1))
    exact, half = torch.float32, torch.bfloat16
    assert seen == {"backbone": half, "pixel decoder": exact, "decoder": half}
    assert {loss.dtype for loss in losses.values()} == {exact}


def outputs(classes: int, side: int) -> Any:
    """Predictions of 12 queries for a square image, in the library's form: blobs, and one without a pixel."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.randn(1, 12, 6, 6, generator=generator) * 4
    masks[0, 5] = -5
    masks = torch.nn.functional.interpolate(masks, size=(side, side), mode="bicubic")
    logits = torch.randn(1, 12, classes + 1, generator=generator) * 2
    return SimpleNamespace(masks_queries_logits=masks, class_queries_logits=logits, patch_offsets=None)


@pytest.mark.parametrize(("model", "classes"), [("mask2former-swin-t", 3), ("eomt-small", 1)])
def test_answers_are_those_of_the_librarys_image_processor(model: str, classes: int) -> None:
    case = tiny(model)
    family = with_classes(case, classes)
    found = outputs(classes, 96)
    processor: Any
    if model.startswith("eomt"):  # where there are more classes it takes one for each query
        processor, size = EomtImageProcessor(size={"shortest_edge": 384, "longest_edge": 384}), (384, 384)
        (theirs,) = processor.post_process_instance_segmentation(found, [size], threshold=0.0)
    else:
        processor, size = Mask2FormerImageProcessor(), (384, 384)
        (theirs,) = processor.post_process_instance_segmentation(
            found, threshold=0.0, target_sizes=[size], return_binary_maps=True
        )
    predictions = Predictions(found.class_queries_logits, found.masks_queries_logits)
    (output,) = family._outputs(predictions, torch.zeros(1, 3, *size), EVERYTHING)
    ours = family.postprocess(output, Geometry(size, size, (1.0, 1.0)), EVERYTHING)
    order = sorted(range(len(theirs["segments_info"])), key=lambda i: -theirs["segments_info"][i]["score"])
    expected = [theirs["segments_info"][index] for index in order]
    np.testing.assert_allclose(ours.scores, [each["score"] for each in expected], atol=1e-5)
    assert ours.labels.tolist() == [each["label_id"] for each in expected]
    if model.startswith("eomt"):
        return  # its processor returns one map, in which later masks cover others
    for box, mask, index in zip(ours.boxes, ours.masks, order, strict=True):
        whole = np.zeros(size, dtype=bool)
        height, width = mask.pixels.shape
        whole[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
        pixels = theirs["segmentation"][index].numpy() > 0
        assert (whole != pixels).mean() < 1e-4
        left, top, columns, rows = cv2.boundingRect(whole.astype(np.uint8))
        np.testing.assert_allclose(box * 384, [left, top, left + columns, top + rows], atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_images_are_prepared_as_the_librarys_image_processor_does(model: str) -> None:
    pads = model.startswith("eomt")
    image = np.random.default_rng(0).integers(0, 256, (48 if pads else 64, 64, 3), dtype=np.uint8)
    processor: Any = (
        EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
        if pads
        else Mask2FormerImageProcessor(size={"height": 64, "width": 64})
    )
    expected = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    tensor, geometry = tiny(model).family.preprocess(image)
    torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=0)
    assert geometry.scale == (1.0, 1.0)


def test_a_mask_in_the_padded_square_is_found_again_in_the_image() -> None:
    case = tiny("eomt-small")
    tensor, geometry = case.family.preprocess(Squares().images[0])
    target: Any = case.family.validation_item(tensor, Squares().targets[0], geometry)["target"]
    assert target["masks"].shape == (1, 64, 64)
    assert target["masks"][0, 12:36, 16:48].all()
    assert target["masks"].sum() <= 25 * 33
    grid = target["masks"][:, ::2, ::2].float() * 20 - 10
    grid[:, 24:] = 10.0  # what a network says of the black part belongs to no image
    output = Output(torch.ones(1), torch.ones(1, dtype=torch.int64), grid)
    found: Any = case.family.postprocess(output, geometry, EVERYTHING)
    assert found.image_size == (60, 80)
    (mask,) = found.masks
    assert mask.top + mask.pixels.shape[0] <= 60
    assert mask.pixels[15 - mask.top : 45 - mask.top, 20 - mask.left : 60 - mask.left].mean() > 0.95


def test_neither_crowds_nor_objects_without_a_pixel_are_trained_on() -> None:
    case = tiny("mask2former-swin-t")
    target = batch_of(case, Squares())["targets"][0]
    assert target["class_labels"].tolist() == [1]
    assert target["masks"][0, 16:48, 16:48].all()
    assert target["masks"].sum() <= 33 * 33
    assert [len(value) for value in batch_of(case, Squares(crowd=True))["targets"][0].values()] == [0, 0]
    point = np.full((4, 2), 0.501, dtype=np.float32)
    objects = dataclasses.replace(Squares().targets[0], polygons=((point,),))
    tensor, geometry = case.family.preprocess(Squares().images[0])
    assert len(case.family.validation_item(tensor, objects, geometry)["target"]["class_labels"]) == 0


@pytest.mark.parametrize("model", MODELS)
def test_published_weights_start_all_but_the_head_without_a_network(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tiny(model)
    theirs = built(with_classes(case, 80), seed=1)
    directory = tmp_path / case.family.published().hub.partition("/")[2]
    directory.mkdir()
    path = publish(theirs, directory)
    state = load_file(path)
    for name in [name for name in state if "swin.layernorm" in name or name == "attn_mask_probs"]:
        del state[name]  # as a file may
    if model.startswith("mask2former"):
        table = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position"
        assert f"{table}_bias_table" in state, "published files have the library's older names"
        state[f"{table}_index"] = torch.zeros(16, 16, dtype=torch.int64)  # which follows from the window
    save_file(state, path)

    def forbidden(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    network = built(case.family)
    loaded = weights.load(network, model, case.family.published(), str(tmp_path), case.family.spec)
    assert loaded is not None
    assert set(loaded.fresh) == {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}
    own, published = network.state_dict(), theirs.state_dict()
    assert [key for key in own.keys() - loaded.fresh if not torch.equal(own[key], published[key])] == []
    excluded = ("their licence, CC-BY-NC-4.0, excludes commercial use",)
    assert loaded.notes == (excluded if model.startswith("mask2former") else ())


def test_positions_of_an_eomt_are_resampled_for_other_images(tmp_path: Path) -> None:
    path = publish(built(tiny("eomt-small").family, seed=1), tmp_path)
    case = tiny("eomt-small", image_size=96)
    network = built(case.family)
    loaded = weights.load(network, "eomt-small", case.family.published(), str(path), case.family.spec)
    assert loaded is not None
    assert loaded.resampled == ("embeddings.position_embeddings.weight",)
    with pytest.raises(RunError, match="takes only images of 96 pixels, as it was trained, not 64"):
        case.family.options_at({"image_size": 64})
    assert tiny("mask2former-swin-t").family.options_at({"image_size": 96})["image_size"] == 96


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    other = publish(built(tiny("eomt-small").family), tmp_path)
    case = tiny("mask2former-swin-t")
    with pytest.raises(WeightsError, match="does not fit mask2former-swin-t"):
        weights.load(built(case.family), "mask2former-swin-t", case.family.published(), str(other))


@pytest.mark.parametrize(
    ("model", "side", "rule"),
    [
        (
            "mask2former-swin-s",
            400,
            "must be a multiple of 32 for mask2former-swin-s, got 400; take",
        ),
        ("eomt-base", 650, "must be a multiple of 16 for eomt-base, got 650; take 640 or 656"),
    ],
)
def test_an_image_size_that_a_network_cannot_cut_is_refused(model: str, side: int, rule: str) -> None:
    settings = resolve(SEGMENTATION, model, {"image_size": side})
    with pytest.raises(JobError, match=rule):
        specify(SEGMENTATION, model, settings, ("a",), pretrained=True)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_has_the_recipe_of_its_authors_and_the_licence_of_its_weights(entry: ModelEntry) -> None:
    settings = resolve(SEGMENTATION, entry.name, {})
    assert (settings.optimizer, settings.learning_rate, settings.weight_decay) == ("adamw", 1e-4, 0.05)
    assert (settings.gradient_clip_norm, settings.large_scale_jitter) == (0.01, True)
    assert settings.training_batch_size * settings.gradient_accumulation_step == 16
    family: Any = create(specify(SEGMENTATION, entry.name, settings, ("a",), pretrained=True))
    is_eomt = entry.name.startswith("eomt")
    assert family.published().licence == ("mit" if is_eomt else "cc-by-nc-4.0")
    assert family.published().hub == entry.library_name == PUBLISHED[entry.name].hub
    if is_eomt:
        assert settings.image_size == PUBLISHED[entry.name].values["image_size"]
        with pytest.raises(JobError, match=r"multi_scale: applies only to .*mask2former-swin-s, not to eomt"):
            resolve(SEGMENTATION, entry.name, {"multi_scale": True})


@pytest.mark.parametrize("model", MODELS)
def test_only_the_backbone_learns_at_lower_rates(model: str) -> None:
    case = tiny(model, layer_decay=0.5)
    network = built(case.family)
    optimizer = build_optimizer(network, case.settings, case.family.freeze_groups(network))
    names = {each: name for name, each in network.named_parameters() if each.requires_grad}
    lower = {
        names[parameter]
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["lr"] < case.settings.learning_rate
    }
    prefixes = ("model.pixel_level_module.encoder.", "embeddings.", "layers.")
    assert lower == {name for name in names.values() if name.startswith(prefixes)}


@pytest.mark.parametrize("model", MODELS)
def test_the_losses_and_the_answers_call_what_is_compiled(model: str) -> None:
    case = tiny(model)
    network = built(case.family)
    parts = case.family.parts_to_compile(network)
    calls: list[Any] = []
    for part in parts:
        part.register_forward_pre_hook(lambda module, _: calls.append(module))
    case.family.losses(network.train(), batch_of(case, case.examples, 1))
    assert calls == parts
    with torch.inference_mode():
        case.family.predict(network.eval(), case.examples.images[:1])
    assert calls == parts * 2


def test_multi_scale_draws_sides_that_a_mask2former_takes() -> None:
    family: Any = tiny("mask2former-swin-t", image_size=128, multi_scale=True).family
    assert list(family.sizes()) == [64, 96, 128, 160, 192]


@pytest.mark.parametrize("model", MODELS)
def test_graph_answers_as_its_model_does(model: str) -> None:
    """What is exported, without the minutes of tracing it."""
    case = tiny(model)
    network = built(case.family).eval()
    tensor, _ = case.family.preprocess(case.examples.images[1])
    side = tuple(tensor.shape[1:])
    with torch.no_grad():
        (output,) = case.family.infer(network, [tensor], EVERYTHING)
        found = case.family.graph(network, tensor[None], EVERYTHING)
    expected: Any = case.family.postprocess(output, Geometry(side, side, (1.0, 1.0)), EVERYTHING)
    assert len(expected.scores) > 1
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found["labels"], expected.labels)
    np.testing.assert_allclose(found["boxes"] / side[0], expected.boxes, atol=1e-5)
    assert found["masks"].shape == (len(expected.scores), *side)
