"""DETRs beyond the conformance suite: what becomes of transformers' networks, losses and weights."""

from __future__ import annotations

import dataclasses
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conformance.conftest import TINY_CONFIGS, Case, make_case
from trainer.annotations import Example, Objects
from trainer.errors import JobError, RunError, WeightsError
from trainer.models import Family, catalog, create, detr_losses, detr_networks, specify
from trainer.models.card import ModelEntry
from trainer.models.defaults import default_in_words, models_taking, resolve, without_effect
from trainer.models.detr_configs import PUBLISHED
from trainer.models.geometry import Geometry
from trainer.models.training_items import Draw
from trainer.models.weights import loading as weights
from trainer.runs import Run
from trainer.scoring import ScoringParameters
from trainer.tasks import Task
from trainer.training.resume import Checkpoint, check_same_network

ENTRIES = [entry for entry in catalog.MODELS.values() if entry.family == "detr"]
ARCHITECTURES = tuple(TINY_CONFIGS)


def tiny(model: str, **settings: Any) -> Case:
    return make_case(catalog.MODELS[model].tasks[0], model, **settings)


def with_classes(case: Case, count: int) -> Any:
    """The case's family for another number of classes."""
    names = tuple(f"class {index:02}" for index in range(count))
    return create(case.family.spec.model_copy(update={"classes": names}))


def built(family: Family, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return family.build()


class Squares:
    """One image of one white square, or of nothing."""

    def __init__(self, *, empty: bool = False, crowd: bool = False) -> None:
        image = np.zeros((60, 80, 3), dtype=np.uint8)
        image[15:45, 20:60] = 255
        boxes = np.array([[0.25, 0.25, 0.75, 0.75]], dtype=np.float32)[: 0 if empty else 1]
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        labels = np.ones(len(boxes), dtype=np.int64)
        polygons = tuple((outline,) for outline in corners)
        self.targets = [Objects(boxes, labels, np.full(len(boxes), crowd), polygons)]
        self.images = [image]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.targets[index])


def batch_of(case: Case, scene: Any, count: int = 2) -> Any:
    dataset = case.family.training_dataset(scene, case.settings, seed=0)
    return dataset.collate([dataset.item(Draw(0, index % len(scene))) for index in range(count)])


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_losses_are_the_librarys_own_averaged_over_the_layers(model: str, training: bool) -> None:
    case = tiny(model)
    network = built(case.family).train(training)
    batch = batch_of(case, case.examples, 4)
    groups = getattr(network.config, "group_detr", 1)
    with torch.no_grad():
        torch.manual_seed(1)  # of noise and of the points in masks
        losses = case.family.losses(network, batch)
        torch.manual_seed(1)
        if not training:
            network.config.group_detr = 1  # which the library leaves as in training
        library = network(batch["images"], labels=batch["targets"])
        network.config.group_detr = groups
        proposals = proposal_loss(network, library, batch["targets"])
    of_classes = [key for key in library.loss_dict if key.startswith(("loss_ce", "loss_vfl", "loss_mal"))]
    layers = len([key for key in of_classes if "_dn_" not in key])
    chooses_positions = not model.startswith(("deformable-", "conditional-", "yolos-"))
    assert layers == getattr(network.config, "decoder_layers", 1) + chooses_positions
    layers += proposals > 0
    assert sum(losses.values()).item() == pytest.approx((library.loss.item() + proposals) / layers, rel=1e-5)


def proposal_loss(network: Any, outputs: Any, targets: list[dict[str, Tensor]]) -> float:
    """The library's own loss of what a two-stage Deformable DETR's encoder proposes; 0 for other networks."""
    logits = getattr(outputs, "enc_outputs_class", None)
    if logits is None or not getattr(network.config, "two_stage", False):
        return 0.0
    assert not any("enc" in key for key in outputs.loss_dict), "the library has it now"
    config = copy(network.config)
    config.auxiliary_loss = False
    boxes = outputs.enc_outputs_coord_logits.sigmoid()
    objects = [{**target, "class_labels": target["class_labels"] * 0} for target in targets]
    loss: Tensor = network.loss_function(logits, objects, logits.device, boxes, config)[0]
    return loss.item()


@pytest.mark.parametrize("model", ["yolos-tiny", "deimv2-n", "conditional-detr-r50"])
def test_a_class_weight_multiplies_the_loss_of_its_objects(model: str) -> None:
    # The conformance suite holds the others to it.
    case = tiny(model)
    network = built(case.family).train()
    batch = batch_of(case, case.examples, 4)

    def losses(*weights: float) -> dict[str, float]:
        torch.manual_seed(0)  # of denoising
        shared = {"class_weights": torch.tensor(weights) if weights else None}
        with torch.no_grad():
            values = case.family.losses(network, {**batch, "shared": shared})
        return {name: value.item() for name, value in values.items()}

    plain, tripled = losses(), losses(3.0, 3.0, 3.0)
    assert losses(1.0, 1.0, 1.0) == pytest.approx(plain, rel=1e-5)
    assert {name for name in plain if tripled[name] != pytest.approx(plain[name])} == {"class_loss"}
    first, others = (losses(*weights)["class_loss"] for weights in ((3.0, 1.0, 1.0), (1.0, 3.0, 3.0)))
    added = tripled["class_loss"] - plain["class_loss"]
    assert first + others - 2 * plain["class_loss"] == pytest.approx(added, rel=1e-3)
    assert first > plain["class_loss"]


@pytest.mark.parametrize("model", ["rtdetrv2-r18", "dfine-n", "lwdetr-tiny", "rfdetr-nano"])
def test_a_class_weight_multiplies_all_of_the_loss_of_a_query_with_its_object(model: str) -> None:
    """With one class, there is nothing else in the loss."""
    config = with_classes(tiny(model), 1).config
    kind = {"rt_detr_v2": "RTDetrLoss", "d_fine": "DFineLoss"}.get(config.model_type, "LwDetrImageLoss")
    arguments = (None, 1, config.focal_alpha, ["labels"], 1) if kind.startswith("Lw") else (config,)
    criterion = detr_losses._CRITERIA[kind](*arguments)
    compute = criterion.loss_labels if kind.startswith("Lw") else criterion.loss_labels_vfl
    outputs = {
        "logits": torch.tensor([[[0.3]]]),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]),
    }
    targets = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.6]])}]
    losses = []
    for criterion.weights in (None, torch.tensor([3.0])):
        losses += compute(outputs, targets, [(torch.tensor([0]), torch.tensor([0]))], 1).values()
    assert losses[1].item() == pytest.approx(3 * losses[0].item(), rel=1e-5)


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "no-objects"])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_every_parameter_gets_a_gradient_even_without_objects(model: str, empty: bool) -> None:
    # Processes that train one network wait for all of them.
    case = tiny(model)
    network = built(case.family).train()
    losses = case.family.losses(network, batch_of(case, Squares(empty=empty)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if network.get_parameter(name).grad is None] == []


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_boxes_are_exact_under_mixed_precision(model: str) -> None:
    case = tiny(model)
    network = built(case.family).eval()
    images = torch.stack([case.family.preprocess(image)[0] for image in case.examples.images])
    seen: list[torch.dtype] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = network(images)
    assert seen == [torch.bfloat16]
    assert found.pred_boxes.dtype == torch.float32
    assert not torch.equal(found.pred_boxes, found.pred_boxes.bfloat16().float())


@pytest.mark.parametrize("model", ["dfine-n", "rfdetr-seg-nano"])
def test_losses_are_computed_in_float32_under_mixed_precision(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, set[torch.dtype]]] = []
    for kind in detr_losses._CRITERIA.values():

        def watched(self: Any, outputs: Any, *more: Any, forward: Any = kind.forward) -> Any:
            dtypes = {value.dtype for value in outputs.values() if isinstance(value, Tensor)}
            seen.append((torch.is_autocast_enabled("cpu"), dtypes))
            return forward(self, outputs, *more)

        monkeypatch.setattr(kind, "forward", watched)
    case = tiny(model)
    with torch.autocast("cpu", torch.bfloat16):
        case.family.losses(built(case.family).train(), batch_of(case, Squares()))
    assert seen == [(False, {torch.float32})]


@pytest.mark.parametrize("model", ["rtdetrv2-r18", "rfdetr-seg-nano"])
def test_predictions_are_those_of_the_librarys_image_processor(model: str) -> None:
    from transformers import RfDetrImageProcessor, RTDetrImageProcessor

    processor = RTDetrImageProcessor() if model.startswith("rtdetr") else RfDetrImageProcessor()
    case = tiny(model)
    network = built(case.family).eval()
    image = case.examples.images[0]
    height, width = image.shape[:2]
    tensor, geometry = case.family.preprocess(image)
    parameters = ScoringParameters(box_score_threshold=0)
    with torch.inference_mode():
        outputs = network(tensor[None])
        (output,) = case.family.infer(network, [tensor], parameters)
    (theirs,) = processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=[(height, width)]
    )
    ours: Any = case.family.postprocess(output, geometry, parameters)
    np.testing.assert_allclose(ours.scores, theirs["scores"].numpy()[: len(ours.scores)], atol=1e-6)
    pixels = theirs["boxes"].numpy()[: len(ours.boxes)] / [width, height, width, height]
    np.testing.assert_allclose(ours.boxes, pixels.clip(0, 1), atol=1e-5)
    assert ours.labels.tolist() == theirs["labels"].tolist()[: len(ours.labels)]


@pytest.mark.parametrize("model", ["dfine-n", "rfdetr-seg-nano"])
@torch.no_grad()
def test_graph_for_export_answers_as_the_model_does(model: str) -> None:
    """What is exported, without the minutes of tracing it."""
    case = tiny(model)
    family, network = case.family, built(case.family).eval()
    tensor, geometry = family.preprocess(case.examples.images[0])
    parameters = ScoringParameters(box_score_threshold=0, box_detections_per_image=10)
    (output,) = family.infer(network, [tensor], parameters)
    expected: Any = family.postprocess(output, geometry, parameters)
    found = family.graph(network, tensor[None], parameters)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-6)
    assert found["labels"].tolist() == expected.labels.tolist()
    boxes = (found["boxes"] / tensor.shape[-1]).clip(0, 1)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-5)
    if "seg" in model:
        size = geometry.tensor_size
        plain: Any = family.postprocess(output, Geometry(size, size, (1.0, 1.0)), parameters)
        masks = np.zeros((10, *size), dtype=bool)
        for whole, mask in zip(masks, plain.masks, strict=True):
            rows, columns = mask.pixels.shape
            whole[mask.top : mask.top + rows, mask.left : mask.left + columns] = mask.pixels
        assert masks.any(axis=(1, 2)).all()
        assert np.mean(found["masks"].numpy() != masks) < 2e-3


@pytest.mark.parametrize("model", ["rtdetrv2-r18", "dfine-n"])
def test_each_decoder_layer_has_heads_of_its_own_that_the_decoder_shares(model: str) -> None:
    case = tiny(model)
    config = {**case.family.spec.options["config"], "decoder_layers": 2}
    family: Any = create(
        case.family.spec.model_copy(update={"options": {"image_size": 64, "config": config}})
    )
    network = built(family)
    assert network.class_embed[0].weight is network.model.decoder.class_embed[0].weight
    assert network.class_embed[0].weight is not network.class_embed[1].weight
    assert network.bbox_embed is network.model.decoder.bbox_embed


@pytest.mark.parametrize(
    ("model", "side", "rule"),
    [
        ("rfdetr-nano", 400, "must be a multiple of 32 for rfdetr-nano, got 400; take 384 or 416"),
        ("rfdetr-seg-small", 33, "must be a multiple of 24 for rfdetr-seg-small, got 33; take 24 or 48"),
        ("dfine-n", 630, "must be a multiple of 32 for dfine-n, got 630; take 608 or 640"),
        ("lwdetr-tiny", 630, "must be a multiple of 64 for lwdetr-tiny, got 630; take 576 or 640"),
    ],
)
def test_an_image_size_that_a_network_cannot_cut_is_refused(model: str, side: int, rule: str) -> None:
    with pytest.raises(JobError, match=rule):
        tiny(model, image_size=side)


def test_a_network_scores_images_of_other_sizes_with_room_for_its_queries() -> None:
    family = tiny("rfdetr-nano").family
    assert family.options_at({"image_size": 96})["image_size"] == 96
    with pytest.raises(RunError, match=r"multiple of 16 pixels, with at least as many .* \(16\), not 48"):
        family.options_at({"image_size": 48})


@pytest.mark.parametrize("model", ["rtdetrv2-r50", "deformable-detr", "conditional-detr-r50"])
def test_only_networks_with_weights_freeze_the_backbones_norms(model: str) -> None:
    settings = resolve(Task.DETECTION, model, {})
    for pretrained in (True, False):
        family: Any = create(specify(Task.DETECTION, model, settings, ("a",), pretrained=pretrained))
        assert getattr(family.config, "freeze_backbone_batch_norms", True) is pretrained
        with torch.device("meta"):
            backbone = detr_networks.before_decoder(family.build())[0]
        norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        assert bool(norms) is not pretrained


def test_a_network_for_small_images_has_as_many_queries_as_positions() -> None:
    settings = resolve(Task.DETECTION, "rfdetr-nano", {"image_size": 96})
    spec = specify(Task.DETECTION, "rfdetr-nano", settings, ("a",), pretrained=True)
    assert spec.options["config"]["num_queries"] == (96 // 16) ** 2


def test_multi_scale_trains_at_sizes_with_room_for_the_queries() -> None:
    settings = resolve(Task.DETECTION, "rfdetr-nano", {"image_size": 384, "multi_scale": True})
    family: Any = create(specify(Task.DETECTION, "rfdetr-nano", settings, ("a",), pretrained=False))
    # 300 queries take 18 × 18 patches, and so 288 pixels.
    assert list(family.sizes()) == list(range(288, 577, 32))


def test_a_batch_is_trained_at_the_size_that_multi_scale_drew_for_its_first_image() -> None:
    case = tiny("dfine-n", multi_scale=True)
    dataset = case.family.training_dataset(Squares(), case.settings, seed=0)
    assert dataset.largest_size == 96
    items = [{**dataset.item(Draw(0, 0)), "size": size} for size in (96, 64)]
    network = built(case.family).train()
    sides: list[int] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    case.family.losses(network, dataset.collate(items))
    assert sides == [96]


@pytest.mark.parametrize("augments", [True, False])
def test_training_images_are_cropped_and_expanded_unless_that_is_turned_off(augments: bool) -> None:
    case = tiny("dfine-n", advanced_settings={"apply_automl_train_augmentations": augments})
    dataset = case.family.training_dataset(Squares(), case.settings, seed=0)
    areas = set()
    for seed in range(6):
        torch.manual_seed(seed)
        areas.add(dataset.item(Draw(0, 0))["target"]["boxes"][0, 2:].prod().item())
    assert (len(areas) > 1) is augments


def test_neither_crowds_nor_boxes_without_an_inside_are_trained_on() -> None:
    case = tiny("rfdetr-seg-nano")
    target = batch_of(case, Squares())["targets"][0]
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert target["class_labels"].tolist() == [1]
    assert target["masks"][0, 18:54, 18:54].all()
    assert target["masks"].sum() <= 37 * 37
    assert [len(value) for value in batch_of(case, Squares(crowd=True))["targets"][0].values()] == [0, 0, 0]
    flat = dataclasses.replace(Squares().targets[0], boxes=np.array([[0.2, 0.2, 0.2, 0.6]], np.float32))
    tensor, geometry = case.family.preprocess(Squares().images[0])
    assert len(case.family.validation_item(tensor, flat, geometry)["target"]["class_labels"]) == 0


RATES = {
    **dict.fromkeys(("dfine-l", "dfine-x"), 1.25e-4),
    **dict.fromkeys(("yolos-tiny", "yolos-small", "yolos-base"), 5e-5),
    "deimv2-n": 4e-4,
    "deimv2-s": 2.5e-4,
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_has_the_recipe_and_the_size_of_its_authors(entry: ModelEntry) -> None:
    (task,) = entry.tasks
    settings = resolve(task, entry.name, {})
    assert settings.optimizer == "adamw"
    assert settings.learning_rate == RATES.get(entry.name, 1e-4)
    assert settings.training_batch_size * settings.gradient_accumulation_step == 16
    assert settings.average_weights
    family: Any = create(specify(task, entry.name, settings, ("a",), pretrained=True))
    of_dinov3 = "DINOv3" in entry.library_name
    assert family.published().licence == ("Apache-2.0, DINOv3 License" if of_dinov3 else "apache-2.0")
    assert entry.library_name == PUBLISHED[entry.name].hub
    if entry.name.startswith("rfdetr"):
        assert family.config.backbone_config.image_size == settings.image_size


def test_a_model_of_the_earlier_family_says_what_can_use_it(tmp_path: Path) -> None:
    spec = tiny("rfdetr-nano").family.spec
    earlier = spec.model_copy(update={"family": "rfdetr", "options": {"image_size": 384}})
    with pytest.raises(
        JobError, match=r"the family 'rfdetr', which this one lacks; score it with that version"
    ):
        create(earlier)
    (tmp_path / "spec.json").write_text(earlier.to_json(), encoding="utf-8")
    torch.save({"class_embed.bias": torch.zeros(4)}, tmp_path / "weights.pt")
    family = create(spec)
    with pytest.raises(WeightsError, match=r"with the family 'rfdetr' built it, which this one lacks"):
        weights.load(family.build(), "rfdetr-nano", family.published(), str(tmp_path), spec)
    checkpoint = Checkpoint(Run(tmp_path), tmp_path / "last.ckpt", 0, earlier.to_json(), 0)
    with pytest.raises(RunError, match="resume the run with that version, or start a new run"):
        check_same_network(checkpoint, spec)


def test_lists_of_models_name_the_architectures_that_share_a_default() -> None:
    words = "1; 4 for rfdetr-*, lwdetr-*, yolos-*, deformable-*, conditional-detr-r50, "
    words += "mask2former-*, eomt-small, eomt-base and eomt-large; 16 for eomt-large-1280"
    assert default_in_words("gradient_accumulation_step") == words
    of_ten = "0.46 for dfine-m, rtdetrv2-r50, rtdetrv2-r101, deformable-*, conditional-detr-r50"
    assert of_ten in default_in_words("layer_decay")
    assert default_in_words("optimizer") == "sgd; adamw for RT-DETRs, DETRs and mask transformers"
    taking = ", RT-DETRs, dfine-*, lwdetr-*, rtdetrv2-*, deimv2-*, deformable-* and conditional-detr-r50"
    assert models_taking("freeze_batch_norm").endswith(taking)


def test_only_networks_with_weights_slow_down_the_layers_near_the_input() -> None:
    def decay(from_scratch: bool, **values: Any) -> float:
        return resolve(Task.DETECTION, "dfine-m", values, from_scratch=from_scratch).layer_decay

    assert (decay(False), decay(True), decay(True, layer_decay=0.5)) == (0.46, 1.0, 0.5)


NO_NMS, FEW = (
    "nms_iou_threshold: 0.3 has no effect",
    "box_detections_per_image: 301 acts as {}, the",
)


@pytest.mark.parametrize(
    ("task", "model", "notes"),
    [
        (Task.DETECTION, "dfine-n", [NO_NMS, FEW.format(300)]),
        (Task.SEGMENTATION, "rfdetr-seg-nano", [NO_NMS, FEW.format(100)]),
        (Task.DETECTION, "rtdetr-l", [NO_NMS, FEW.format(300)]),
        (Task.DETECTION, "yolo26n", [NO_NMS]),
        (Task.DETECTION, "yolo11n", []),
        (Task.DETECTION, "fasterrcnn_resnet50_fpn", []),
    ],
)
def test_settings_of_boxes_without_effect_are_named(task: Task, model: str, notes: list[str]) -> None:
    def told(**values: Any) -> list[str]:
        settings = resolve(task, model, values)
        return without_effect(settings, create(specify(task, model, settings, ("a",), pretrained=True)))

    said = told(nms_iou_threshold=0.3, box_detections_per_image=301)
    assert [text[: len(expected)] for text, expected in zip(said, notes, strict=True)] == notes
    assert told() == told(box_detections_per_image=2) == []


@pytest.mark.parametrize("model", ["rtdetrv2-r18", "dfine-n", "deformable-detr", "conditional-detr-r50"])
def test_networks_from_scratch_start_from_the_authors_prior(model: str) -> None:
    case = tiny(model)
    for layer, prior in case.family.class_layers(case.build()):
        bias: Any = layer.bias
        torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, prior))
