"""Classifiers of the Hub: they prepare images and answer as transformers' own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as PILImage
from torch import nn

import trainer
from serving.explain import methods
from serving.package import carried_code, requirements
from tests import hub_models
from trainer.data.samples import make
from trainer.errors import JobError, RunError, WeightsError
from trainer.models import Family, Spec, create, specify
from trainer.models.cards.transformers_classifiers import CARD, sizes
from trainer.models.catalog import find
from trainer.models.defaults import resolve
from trainer.models.transformers_classifiers import _groups
from trainer.models.weights import loading
from trainer.models.weights.describing import describe
from trainer.models.weights.description import Description
from trainer.models.weights.loading import Loaded
from trainer.tasks import Task
from trainer.training.optimizers import build_optimizer

KINDS = ("vit", "deit", "dinov2", "clip", "swin", "convnext", "resnet", "levit")
# Cut so that no offset of the crop has to be rounded.
IMAGE = np.array(
    PILImage.effect_mandelbrot((128, 64), (-2, -1.2, 1, 1.2), 60).convert("RGB").resize((128, 64)),
    dtype=np.uint8,
)


def bind(
    description: Description, *, classes: int = 3, task: Task = Task.CLASSIFICATION, **settings: Any
) -> Family:
    name = f"hf/{description.name}"
    assert CARD.described_by_files is not None
    resolved = resolve(task, name, settings, published=CARD.described_by_files(description))
    names = [f"class {index}" for index in range(classes)]
    spec = specify(task, name, resolved, names, pretrained=True, description=description)
    return create(Spec.from_json(spec.to_json()))


def load(family: Family, choice: Path, *, seed: int = 3) -> tuple[nn.Module, Loaded]:
    torch.manual_seed(seed)
    network = family.build().eval()
    loaded = loading.load(network, family.spec.model, family.published(), str(choice))
    assert loaded is not None
    return network, loaded


@pytest.fixture(scope="module", params=KINDS)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Any]:
    """A type, a directory with its tiny model as published, and the library's network."""
    directory = tmp_path_factory.mktemp(request.param)
    return request.param, directory, hub_models.write(directory / f"acme/tiny-{request.param}", request.param)


def test_a_published_model_answers_as_its_library_does(published: tuple[str, Path, Any]) -> None:
    kind, directory, original = published
    description = describe(f"acme/tiny-{kind}", str(directory))
    family = bind(description)
    network, loaded = load(family, directory)
    assert (loaded.fresh, loaded.left) == ((), ())
    tensor, _ = family.preprocess(IMAGE)
    with torch.no_grad():
        expected = original(pixel_values=tensor[None]).logits
        (given,) = family.infer(network, [tensor], family.spec.parameters)
        assert torch.equal(given, expected[0])
        assert torch.equal(network(torch.stack([tensor] * 2))[1], network(torch.stack([tensor] * 2))[0])


@pytest.mark.parametrize("kind", hub_models.PREPROCESSORS)
def test_images_are_prepared_as_by_the_librarys_preprocessor(kind: str) -> None:
    family = bind(hub_models.describe(kind))
    own = dict(hub_models.PREPROCESSORS[kind])
    named = own.pop("image_processor_type", "DeiTImageProcessor").removesuffix("Fast")
    if kind == "deit":
        own = {"size": {"height": 72, "width": 72}, "crop_size": {"height": 64, "width": 64}}
    processor = getattr(transformers, named)(**own)
    expected = processor(images=PILImage.fromarray(IMAGE), return_tensors="pt")["pixel_values"][0]
    tensor, _ = family.preprocess(IMAGE)
    assert tensor.shape == expected.shape == (3, 64, 64)
    assert (tensor - expected).abs().max() < 0.03
    assert (
        family.preparation().resizing["rule"].startswith("both sides" if kind in ("vit", "deit") else "short")
    )


@pytest.mark.parametrize(
    ("config", "preprocessor", "expected"),
    [
        ({"image_size": 384}, {}, (384, 384)),
        ({"image_size": [256, 256]}, {}, (256, 256)),
        ({}, {}, (224, 224)),
        ({"vision_config": {"image_size": 336}}, {}, (336, 336)),
        ({}, {"size": 192}, (192, 192)),
        ({}, {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (256, 224)),
        ({}, {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384)),
        ({}, {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}}, (256, 224)),
        ({}, {"size": 224, "crop_size": 192, "do_center_crop": False}, (224, 224)),
        ({"model_type": "levit"}, {"size": {"shortest_edge": 224}, "crop_size": 224}, (256, 224)),
    ],
)
def test_sizes_are_those_of_the_preprocessor(
    config: dict[str, Any], preprocessor: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert sizes(Description("a/b", config, preprocessor)) == expected


@pytest.mark.parametrize(
    ("own", "mean", "std"),
    [
        ({"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 2.0}, 0.5, 1.0),
        ({"do_rescale": False, "image_mean": 127.5, "image_std": 51.0}, 0.5, 0.2),
        # EfficientNet's two.
        (
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "image_mean": 0.0, "image_std": 1.0},
            0.5,
            0.5,
        ),
        ({"include_top": True, "image_mean": 0.5, "image_std": 0.5}, 0.5, 0.25),
    ],
)
def test_normalisation_is_that_of_the_preprocessor(own: dict[str, Any], mean: float, std: float) -> None:
    described = hub_models.describe("vit")
    family = bind(Description("a/b", described.config, {**described.preprocessor, **own}))
    assert family.spec.options["mean"] == pytest.approx([mean] * 3)
    assert family.spec.options["std"] == pytest.approx([std] * 3)


@pytest.mark.parametrize("size", [{"shortest_edge": 384}, 384])
def test_convnexts_preprocessor_stretches_large_images(size: Any) -> None:
    described = hub_models.describe("convnext")
    own = {**described.preprocessor, "crop_pct": 0.875}
    assert bind(Description("a/b", described.config, {**own, "size": size})).spec.options["stretches"]
    smaller = bind(Description("a/b", described.config, {**own, "size": 352}))
    assert "stretches" not in smaller.spec.options


def test_channels_are_reversed_for_networks_of_reversed_channels() -> None:
    described = hub_models.describe("resnet")
    own = {**described.preprocessor, "do_flip_channel_order": True, "image_mean": [0.1, 0.2, 0.3]}
    family = bind(Description("a/b", described.config, own))
    assert family.spec.options["mean"] == pytest.approx([0.3, 0.2, 0.1])
    network: Any = family.build().eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), network.model(pixel_values=images.flip(1)).logits)


def test_other_classes_get_a_new_head_and_everything_else_is_taken(published: tuple[str, Path, Any]) -> None:
    kind, directory, _ = published
    family = bind(describe(f"acme/tiny-{kind}", str(directory)), classes=5)
    network, loaded = load(family, directory)
    (layer, _), *_ = family.class_layers(network)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 5
    assert len(loaded.fresh) == 2
    assert set(loaded.left) == set(loaded.fresh)
    assert all(name.startswith(family.published().head) for name in loaded.fresh)


def test_weights_without_a_head_start_a_classifier(tmp_path: Path) -> None:
    directory = tmp_path / "acme/tiny-dinov2"
    original = hub_models.network("dinov2")
    original.dinov2.save_pretrained(directory)
    family = bind(describe("acme/tiny-dinov2", str(tmp_path)))
    network, loaded = load(family, tmp_path)
    assert loaded.fresh == ("model.classifier.weight", "model.classifier.bias")
    body = network.get_submodule("model.dinov2").state_dict()
    assert all(torch.equal(value, body[name]) for name, value in original.dinov2.state_dict().items())


@pytest.mark.parametrize("change", [{"num_hidden_layers": 2}, {"num_hidden_layers": 4}, {"hidden_size": 64}])
def test_weights_of_another_network_are_rejected(tmp_path: Path, change: dict[str, int]) -> None:
    directory = tmp_path / "acme/tiny-vit"
    hub_models.write(directory, "vit")
    config = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    family = bind(describe("acme/tiny-vit", str(tmp_path)))
    with pytest.raises(WeightsError, match="does not fit hf/acme/tiny-vit"):
        load(family, tmp_path)


def test_a_user_may_choose_other_sizes_where_the_network_takes_them() -> None:
    family = bind(hub_models.describe("vit"), validation_crop_size=96, training_crop_size=80)
    assert (family.spec.options["resize_size"], family.spec.options["crop_size"]) == (96, 96)
    network = family.build().eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 96, 96)).shape == network(torch.zeros(1, 3, 80, 80)).shape == (1, 3)
    family = bind(hub_models.describe("convnext"), validation_crop_size=96)
    assert family.spec.options["resize_size"] == round(96 * 73 / 64)
    for kind in ("levit", "clip"):
        with pytest.raises(JobError, match=f"training_crop_size: must be 64 for hf/acme/tiny-{kind}"):
            bind(hub_models.describe(kind), training_crop_size=96)
        with pytest.raises(RunError, match="takes no images of 96 pixels"):
            bind(hub_models.describe(kind)).options_at({"crop_size": 96, "resize_size": 96})


@pytest.mark.parametrize("kind", ["imagegpt", "bert", "own", ""])
def test_a_network_that_is_no_image_classifier_of_the_library_is_rejected(kind: str) -> None:
    description = Description("acme/odd", {"model_type": kind, "auto_map": {"AutoModel": "code.Net"}}, {})
    with pytest.raises(JobError) as caught:
        bind(description)
    said = str(caught.value)
    assert "acme/odd: its config.json must be of an image classifier" in said
    assert "code from the Hub is never run" in said
    assert "convnext, " in said


def test_code_of_a_repository_is_not_run(tmp_path: Path) -> None:
    directory = tmp_path / "acme/tiny-vit"
    hub_models.write(directory, "vit")
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Net"}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')", encoding="utf-8")
    _, loaded = load(bind(describe("acme/tiny-vit", str(tmp_path))), tmp_path)
    assert loaded.fresh == ()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("vit", ["model.vit.embeddings", *(f"model.vit.layers.{index}" for index in range(3))]),
        (
            "resnet",
            ["model.resnet.embedder", *(f"model.resnet.encoder.stages.{index}" for index in range(4))],
        ),
        ("swin", ["model.swin.embeddings", *(f"model.swin.encoder.layers.{index}" for index in range(2))]),
    ],
)
def test_layers_are_frozen_and_decayed_from_the_input_on(kind: str, groups: list[str]) -> None:
    family = bind(hub_models.describe(kind), layer_decay=0.5)
    network = family.build()
    names = {module: name for name, module in network.named_modules()}
    listed = [[names[layer] for layer in group] for group in family.freeze_groups(network)]
    assert [group for [group] in listed][: len(groups)] == groups
    settings = resolve(Task.CLASSIFICATION, "resnet18", {"layer_decay": 0.5, "learning_rate": 1.0})
    optimizer = build_optimizer(network, settings, family.freeze_groups(network))
    rates = {
        id(p): group["initial_lr"] if "initial_lr" in group else group["lr"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    (head, _), *_ = family.class_layers(network)
    assert rates[id(next(head.parameters()))] == 1.0
    assert rates[id(next(network.get_submodule(groups[0]).parameters()))] == 0.5 ** len(listed)


def test_tokens_and_positions_are_not_decayed_and_unused_parameters_get_no_gradient() -> None:
    network: Any = bind(hub_models.describe("dinov2")).build()
    exempt = network.no_weight_decay()
    assert "model.dinov2.embeddings.cls_token" in exempt
    assert "model.dinov2.embeddings.position_embeddings" in exempt
    for kind in ("dinov2", "clip"):
        network = bind(hub_models.describe(kind)).build()
        network(torch.zeros(2, 3, 64, 64)).sum().backward()
        without = [name for name, each in network.named_parameters() if each.grad is None]
        assert without
        assert not any(network.get_parameter(name).requires_grad for name in without)


def test_parallel_lists_of_a_network_are_frozen_part_by_part() -> None:
    network = nn.Module()
    network.embeddings, network.blocks = (nn.ModuleList(nn.Linear(1, 1) for _ in range(2)) for _ in range(2))
    expected = [[network.embeddings[index], network.blocks[index]] for index in range(2)]
    assert _groups(network, set()) == expected


@pytest.mark.parametrize(("kind", "explains"), [("resnet", True), ("convnext", False), ("vit", False)])
def test_guided_gradcam_needs_a_feature_map_and_relus(kind: str, explains: bool) -> None:
    network: Any = bind(hub_models.describe(kind)).build().eval()
    obstacle = methods.find("guided_gradcam").obstacle(network, 64)
    assert (obstacle is None) is explains
    if explains:
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(network.forward_head(network.forward_features(images)), network(images))


def test_a_packaged_model_carries_transformers_and_not_timm() -> None:
    spec = bind(hub_models.describe("vit")).spec
    assert any(line.startswith("transformers==") for line in requirements(spec))
    assert not any(
        line.startswith(("timm==", "lightning==", "optuna==", "huggingface")) for line in requirements(spec)
    )
    assert Path("trainer/models/weights/hub.py") not in carried_code(spec).files


@pytest.mark.parametrize(
    ("name", "family", "library_name"),
    [
        ("hf/acme/tiny-vit", "transformers_classifiers", "acme/tiny-vit"),
        ("hf/acme/tiny-vit@abc", "transformers_classifiers", "acme/tiny-vit@abc"),
        ("facebook/dinov2-base", "transformers_classifiers", "facebook/dinov2-base"),
        ("hf/google/vit-base-patch16-224", "transformers_classifiers", "google/vit-base-patch16-224"),
        ("hf/timm/resnet18.a1_in1k", "classifiers", "resnet18.a1_in1k"),
        ("google/vit-base-patch16-224", "classifiers", "vit_base_patch16_224.orig_in21k_ft_in1k"),
        ("facebook/deit-base-patch16-224", "classifiers", "deit_base_patch16_224.fb_in1k"),
        (
            "microsoft/beit-base-patch16-224-pt22k-ft22k",
            "classifiers",
            "beit_base_patch16_224.in22k_ft_in22k",
        ),
        ("microsoft/swinv2-base-patch4-window12-192-22k", "classifiers", "swinv2_base_window12_192.ms_in22k"),
    ],
)
def test_names_of_the_hub_are_models(name: str, family: str, library_name: str) -> None:
    entry = find(name, Task.MULTILABEL)
    assert (entry.name, entry.family, entry.library_name) == (name, family, library_name)


def test_a_classifier_of_azures_catalog_has_the_size_it_was_published_for() -> None:
    settings = resolve(Task.CLASSIFICATION, "microsoft/swinv2-base-patch4-window12-192-22k", {})
    assert (settings.training_crop_size, settings.validation_crop_size) == (192, 192)


def test_a_run_starts_from_a_directory_and_resumes_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    hub_models.write(tmp_path / "files", "resnet")
    data = make(Task.CLASSIFICATION, tmp_path / "data", images=12, seed=1)
    job = trainer.Job(
        task="image-classification", model="hf/acme/tiny-resnet", weights=str(tmp_path / "files"), gpus=0,
        training_data=data.train, validation_data=data.validation, output=str(tmp_path / "run"),
        tracking_uri="none",
        settings={"number_of_epochs": 1, "number_of_workers": 0, "probe_first": True, "learning_rate": 1e-8},
    )  # fmt: skip
    run = trainer.fit(job)
    log = (tmp_path / "run/trainer.log").read_text("utf-8")
    assert "tensors from" in log
    assert "made for other classes, so randomly initialized: model.classifier.1." in log
    assert "probe: logistic regression on 32 features" in log
    spec = Spec.from_json((run.directory / "model/artifacts/spec.json").read_text("utf-8"))
    assert (spec.options["crop_size"], spec.options["resize_size"]) == (64, 73)
    shutil.rmtree(tmp_path / "files")
    trainer.resume(run.directory, settings={"number_of_epochs": 2})
    assert Spec.from_json((run.directory / "model/artifacts/spec.json").read_text("utf-8")) == spec
    # A further run takes the description from the earlier one.
    further = job.changed(weights=str(run.directory), output=str(tmp_path / "further"))
    assert further.describe() == Description.from_dict(spec.options["hub"])
    assert further.resolve_settings().validation_crop_size == 64
