"""RF-DETR beyond the conformance suite: what it makes of rfdetr's networks, losses and files."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.annotations import Detections, Example, Objects
from trainer.errors import JobError, WeightsError
from trainer.models import Family, catalog, create, specify
from trainer.models.card import ModelEntry
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw
from trainer.models.weights import loading as weights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

extra = pytest.mark.skipif(find_spec("rfdetr") is None, reason="rfdetr, an extra, is not installed")
ENTRIES = [entry for entry in catalog.MODELS.values() if entry.family == "rfdetr"]
CLASSES = ("a", "b", "c")
QUERIES = ("refpoint_embed.weight", "query_feat.weight")
HEAD = ("class_embed.", "transformer.enc_out_class_embed.")


def tiny(model: str, classes: int = 3, **values: Any) -> tuple[Any, Any]:
    """The family of a model for small images, and its settings."""
    (task,) = catalog.MODELS[model].tasks
    settings = resolve(task, model, {"image_size": 96, **values})
    names = tuple(f"class {i:02}" for i in range(classes))
    family: Any = create(specify(task, model, settings, names, pretrained=False))
    return family, settings


def built(family: Family, seed: int = 0) -> nn.Module:
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


def step(family: Any, settings: Any, network: nn.Module, **scene: bool) -> dict[str, Tensor]:
    """Losses of two copies of an image, and their gradients in the network."""
    dataset = family.training_dataset(Squares(**scene), settings, seed=0)
    losses: dict[str, Tensor] = family.losses(
        network.train(), family.collate([dataset.item(Draw(0, 0)), dataset.item(Draw(0, 0))])
    )
    torch.stack(list(losses.values())).sum().backward()
    return losses


@extra
@pytest.mark.parametrize("model", [entry.name for entry in ENTRIES])
def test_every_model_is_built_stepped_and_scored_without_a_network(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    family, settings = tiny(model)
    network = built(family)
    losses = step(family, settings, network)
    masks = {"mask_loss", "dice_loss"} if "seg" in model else set()
    assert losses.keys() == {"class_loss", "box_loss", "giou_loss", *masks}
    assert all(0 < loss.item() < 20 for loss in losses.values())
    with torch.inference_mode():
        (found,) = family.predict(network.eval(), Squares().images, ScoringParameters(box_score_threshold=0))
    assert isinstance(found, Detections)
    assert len(found.boxes) == family.spec.options["queries"]
    assert (found.masks is not None) == bool(masks)


@extra
@pytest.mark.parametrize("model", ["rfdetr-nano", "rfdetr-seg-nano"])
def test_every_parameter_gets_a_gradient_even_without_objects(model: str) -> None:
    # Processes that train one network wait for all of them.
    family, settings = tiny(model)
    network = built(family)
    losses = step(family, settings, network, empty=True)
    assert all(torch.isfinite(loss) for loss in losses.values())
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if network.get_parameter(name).grad is None] == []


@extra
@pytest.mark.parametrize("model", ["rfdetr-medium", "rfdetr-seg-nano"])
def test_the_losses_are_rfdetrs_own_averaged_over_the_layers(model: str) -> None:
    from rfdetr.config import SegmentationTrainConfig, TrainConfig
    from rfdetr.models import build_criterion_from_config

    family, settings = tiny(model, advanced_settings={"apply_automl_train_augmentations": False})
    network = built(family).eval()
    item = family.training_dataset(Squares(), settings, seed=0).item(Draw(0, 0))
    batch = family.collate([item])
    with torch.no_grad():
        torch.manual_seed(1)  # mask losses draw points
        losses = family.losses(network, batch)
        kind = SegmentationTrainConfig if "seg" in model else TrainConfig
        criterion, _ = build_criterion_from_config(family.config, kind(dataset_dir="x", output_dir="x"))
        torch.manual_seed(1)
        found = criterion.eval()(network(batch["images"]), batch["targets"])
    whole = sum(found[name] * factor for name, factor in criterion.weight_dict.items())
    assert sum(losses.values()).item() == pytest.approx(whole.item() / (family.config.dec_layers + 1))


@extra
@pytest.mark.parametrize("model", ["rfdetr-nano", "rfdetr-seg-nano"])
def test_predictions_are_those_that_rfdetr_makes_of_the_outputs(model: str) -> None:
    from rfdetr.models import PostProcess

    family, _ = tiny(model)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=generator)
    boxes = torch.rand(30, 4, generator=generator) * 0.5 + 0.1
    height, width = 123, 77
    _, geometry = family.preprocess(np.zeros((height, width, 3), dtype=np.uint8))
    outputs = {"pred_logits": logits[None], "pred_boxes": boxes[None]}
    masks = None
    if "seg" in model:
        coarse = torch.randn(1, 30, 5, 5, generator=generator)
        masks = nn.functional.interpolate(coarse, size=(24, 24), mode="bicubic")
        outputs["pred_masks"] = masks
    (theirs,) = PostProcess(num_select=20)(outputs, torch.tensor([[height, width]]))
    output = family.infer(
        _Answering({**outputs, "pred_logits": _with_one_more(logits[None])}), [logits], None
    )
    parameters = ScoringParameters(box_score_threshold=0, box_detections_per_image=20)
    ours = family.postprocess(output[0], geometry, parameters)
    np.testing.assert_array_equal(ours.labels, theirs["labels"].numpy())
    np.testing.assert_allclose(ours.scores, theirs["scores"].numpy(), atol=1e-6)
    pixels = theirs["boxes"].numpy() / [width, height, width, height]
    np.testing.assert_allclose(ours.boxes, pixels, atol=1e-5)
    if masks is not None:
        for mask, expected in zip(ours.masks, theirs["masks"][:, 0].numpy(), strict=True):
            whole = np.zeros((height, width), dtype=bool)
            rows, columns = mask.pixels.shape
            whole[mask.top : mask.top + rows, mask.left : mask.left + columns] = mask.pixels
            assert (whole != expected).mean() < 1e-3  # logits of zero up to rounding
            assert expected.any()


class _Answering(nn.Module):
    """A network with one answer."""

    def __init__(self, answer: dict[str, Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.answer


def _with_one_more(logits: Tensor) -> Tensor:
    """rfdetr's networks have one logit more than classes; however high, it is of none."""
    return torch.cat([logits, torch.full_like(logits[..., :1], 50.0)], dim=-1)


@pytest.fixture(scope="module")
def nano() -> dict[str, Tensor]:
    """RF-DETR nano as its publisher has it: 90 classes, 300 queries in each of 13 groups."""
    family, _ = tiny("rfdetr-nano", 90, image_size=384)
    return dict(built(family, seed=1).state_dict())


def saved(directory: Path, state: dict[str, Tensor], name: str) -> Path:
    """A file as rfdetr publishes it: with the settings of its training."""
    state = {key: value for key, value in state.items() if key != "_kp_active_mask"}  # older than it
    path = directory / name
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4, class_names=["x"]), "epoch": 3}, path)
    return path


@extra
def test_a_published_file_starts_all_but_the_head(tmp_path: Path, nano: dict[str, Tensor]) -> None:
    family, _ = tiny("rfdetr-nano", image_size=384)
    network = built(family)
    file = saved(tmp_path, nano, "rf-detr-nano.pth")
    loaded = weights.load(network, "rfdetr-nano", family.published(), str(file), family.spec)
    assert loaded is not None
    own = network.state_dict()
    assert loaded.fresh == tuple(key for key in own if key.startswith(HEAD))
    assert set(loaded.left) == set(loaded.fresh)
    assert all(torch.equal(value, nano[key]) for key, value in own.items() if key not in loaded.fresh)
    assert "so randomly initialized: transformer.enc_out_class_embed (26)" in str(loaded)
    # The user named the file; that it is not what was published is said nevertheless.
    assert "its MD5 must be fb6504cce7fbdc783f7a46991f07639f" in str(loaded)


@extra
def test_a_file_in_a_directory_is_checked_against_the_published_md5(
    tmp_path: Path, nano: dict[str, Tensor]
) -> None:
    family, _ = tiny("rfdetr-nano", image_size=384)
    file = saved(tmp_path, nano, "rf-detr-nano.pth")
    with pytest.raises(WeightsError, match="its MD5 must be fb6504cce7fbdc783f7a46991f07639f, but is"):
        weights.load(family.build(), "rfdetr-nano", family.published(), str(tmp_path))
    digits = hashlib.md5(file.read_bytes()).hexdigest()
    published = dataclasses.replace(family.published(), md5=digits)
    loaded = weights.load(family.build(), "rfdetr-nano", published, str(tmp_path))
    assert loaded is not None
    assert loaded.remarks == ()


@extra
def test_a_file_of_another_size_is_refused_naming_both(tmp_path: Path, nano: dict[str, Tensor]) -> None:
    file = str(saved(tmp_path, nano, "rf-detr-nano.pth"))
    for model in ("rfdetr-small", "rfdetr-seg-nano"):
        family, _ = tiny(model)
        with pytest.raises(WeightsError, match=f"rf-detr-nano.pth does not fit {model}"):
            weights.load(family.build(), model, family.published(), file)
    # Medium and large differ by their position embeddings alone.
    medium, _ = tiny("rfdetr-medium", 90)
    large, _ = tiny("rfdetr-large")
    file = str(saved(tmp_path, dict(medium.build().state_dict()), "rf-detr-medium.pth"))
    with pytest.raises(WeightsError, match=r"rf-detr-medium.pth does not fit rfdetr-large"):
        weights.load(large.build(), "rfdetr-large", large.published(), file)


@extra
def test_small_images_take_fewer_queries_of_each_group(tmp_path: Path, nano: dict[str, Tensor]) -> None:
    family, settings = tiny("rfdetr-nano")
    assert family.spec.options["queries"] == 36  # of 6 × 6 patches
    network = built(family)
    file = saved(tmp_path, nano, "rf-detr-nano.pth")
    loaded = weights.load(network, "rfdetr-nano", family.published(), str(file), family.spec)
    assert loaded is not None
    assert loaded.resampled == QUERIES
    taken = network.get_parameter("query_feat.weight").view(13, 36, -1)
    assert torch.equal(taken, nano["query_feat.weight"].view(13, 300, -1)[:, :36])
    step(family, settings, network)


@extra
def test_a_published_file_with_more_queries_than_the_configuration_is_cut(tmp_path: Path) -> None:
    # Such is the file of seg-large.
    family, _ = tiny("rfdetr-seg-large", 90, image_size=504)
    state = dict(built(family, seed=1).state_dict())
    longer = {key: torch.randn(13 * 300, value.shape[1]) for key, value in state.items() if key in QUERIES}
    file = saved(tmp_path, {**state, **longer}, "rf-detr-seg-large.pt")
    network = built(family)
    loaded = weights.load(network, "rfdetr-seg-large", family.published(), str(file), family.spec)
    assert f"resized: {', '.join(QUERIES)}" in str(loaded)
    for name in QUERIES:
        expected = longer[name].view(13, 300, -1)[:, :200]
        assert torch.equal(network.get_parameter(name).view(13, 200, -1), expected)


@extra
def test_an_image_size_that_the_backbone_cannot_cut_is_refused() -> None:
    with pytest.raises(JobError, match="must be a multiple of 32 for rfdetr-nano, got 400; take 384 or 416"):
        tiny("rfdetr-nano", image_size=400)
    with pytest.raises(
        JobError, match="must be a multiple of 24 for rfdetr-seg-small, got 33; take 24 or 48"
    ):
        tiny("rfdetr-seg-small", image_size=33)


@extra
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_default_image_size_is_rfdetrs_own(entry: ModelEntry) -> None:
    (task,) = entry.tasks
    settings = resolve(task, entry.name, {})
    family: Any = create(specify(task, entry.name, settings, CLASSES, pretrained=True))
    fields = type(family.config).model_fields
    assert settings.image_size == fields["resolution"].default
    assert family.spec.options["queries"] == fields["num_queries"].default
    assert family.published().licence == "apache-2.0"


@extra
def test_multi_scale_trains_at_many_sizes() -> None:
    family, settings = tiny("rfdetr-nano", image_size=384, multi_scale=True)
    dataset = family.training_dataset(Squares(), settings, seed=0)
    sizes = {dataset.item(Draw(0, 0))["size"] for _ in range(200)}
    # 300 queries take 18 × 18 patches, and so 288 pixels.
    assert sizes == set(range(288, 577, 32))
    seen: list[tuple[int, ...]] = []
    network = built(family)
    network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    batch = {**dataset.collate([dataset.item(Draw(0, 0))]), "shared": {"size": 288}}
    with torch.no_grad():
        family.losses(network.eval(), batch)
    assert seen == [(1, 3, 288, 288)]
    assert family.part({**batch, "images": torch.zeros(3, 3, 4, 4)}, 1, 3)["images"].shape[0] == 2


@extra
def test_neither_crowds_nor_boxes_without_an_inside_are_trained_on() -> None:
    family, settings = tiny("rfdetr-seg-nano", advanced_settings={"apply_automl_train_augmentations": False})
    target = family.training_dataset(Squares(), settings, seed=0).item(Draw(0, 0))["target"]
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert target["labels"].tolist() == [1]
    assert target["masks"][0, 24:72, 24:72].all()
    assert target["masks"].sum() <= 49 * 49
    crowd = family.training_dataset(Squares(crowd=True), settings, seed=0).item(Draw(0, 0))["target"]
    assert [len(value) for value in crowd.values()] == [0, 0, 0]
    truth = dataclasses.replace(Squares().targets[0], boxes=np.array([[0.2, 0.2, 0.2, 0.6]], np.float32))
    tensor, geometry = family.preprocess(Squares().images[0])
    assert len(family.validation_item(tensor, truth, geometry)["target"]["labels"]) == 0


WITHOUT = """
import sys
sys.modules['rfdetr'] = None
from trainer.cli import main
sys.argv = ['trainer', *sys.argv[1:]]
main()
"""


def test_without_rfdetr_its_models_are_listed_and_the_error_names_the_extra() -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", WITHOUT, *arguments]
        return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)

    listed = command("models", "--task", "instance-segmentation")
    assert listed.returncode == 0, listed.stderr
    assert "rfdetr-seg-nano" in listed.stdout
    refused = command("weights", "--model", "rfdetr-nano")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "needs rfdetr, which is not installed; pip install 'image-trainer[rfdetr]'" in refused.stderr


def test_the_models_are_those_under_apache() -> None:
    names = {entry.name.removeprefix("rfdetr-"): entry.tasks[0] for entry in ENTRIES}
    sizes = ("nano", "small", "medium", "large")
    segmenters = {f"seg-{size}": Task.SEGMENTATION for size in (*sizes, "xlarge", "2xlarge")}
    assert names == {**dict.fromkeys(sizes, Task.DETECTION), **segmenters}
    for entry in ENTRIES:
        settings = resolve(entry.tasks[0], entry.name, {})
        assert (settings.optimizer, settings.learning_rate, settings.gradient_clip_norm) == (
            "adamw",
            1e-4,
            0.1,
        )
        assert settings.training_batch_size * settings.gradient_accumulation_step == 16
        assert settings.average_weights


def test_the_settings_of_its_models_need_no_rfdetr() -> None:
    code = "import sys; from trainer.models.defaults import resolve; from trainer.tasks import Task; "
    code += "resolve(Task.DETECTION, 'rfdetr-nano', {}); sys.exit('rfdetr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
