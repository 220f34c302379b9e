"""Detectors on networks of timm: their pyramids, weights, frozen layers and norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn

from trainer.errors import JobError, RunError, WeightsError
from trainer.job.job import Job
from trainer.models import Family, Spec, create, specify
from trainer.models.defaults import resolve
from trainer.models.weights import loading as weights
from trainer.runs import Run
from trainer.sweep.search import prepare_search
from trainer.tasks import Task
from trainer.training.optimizers import build_optimizer
from trainer.training.resume import Checkpoint, check_resumable, check_same_network

FASTER, EFFICIENTNET = "fasterrcnn_resnet18_fpn", "timm/test_efficientnet"
TAIL = ("conv_head.", "bn2.", "classifier.")  # what follows an EfficientNet's last feature map


def spec_of(backbone: str | None, model: str = FASTER, *, pretrained: bool = True, **settings: Any) -> Spec:
    task = Task.SEGMENTATION if model.startswith("mask") else Task.DETECTION
    chosen = {**settings, **({"backbone": backbone} if backbone else {})}
    return specify(task, model, resolve(task, model, chosen), ("a", "b"), pretrained=pretrained)


def family_of(backbone: str, model: str = FASTER, **more: Any) -> Family:
    # Through JSON, as a packaged model reads it.
    return create(Spec.model_validate_json(spec_of(backbone, model, **more).model_dump_json()))


def classifier_file(folder: Path, name: str = "test_efficientnet", seed: int = 1) -> dict[str, Tensor]:
    """A classifier as its publisher has it, with statistics as if it were trained, in NAME.safetensors."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = timm.create_model(name).state_dict()
    for key, value in state.items():
        if "running_mean" in key:
            value.normal_(0, 0.1)
        elif "running_var" in key:
            value.uniform_(0.5, 2)
    save_file(state, folder / f"{name}.safetensors")
    return state


def test_the_spec_carries_the_backbone_and_its_normalisation() -> None:
    options = spec_of("timm/tf_efficientnet_lite0").options
    assert options["backbone"] == "timm/tf_efficientnet_lite0"
    assert options["mean"] == options["std"] == [0.5, 0.5, 0.5]
    network: Any = family_of(EFFICIENTNET).build()
    config = timm.get_pretrained_cfg("test_efficientnet")
    assert tuple(network.transform.image_mean) == config.mean
    assert tuple(network.transform.image_std) == config.std
    own = spec_of(None).options  # as in checkpoints and models of earlier versions
    assert not {"backbone", "mean", "std"} & own.keys()


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("timm/vit_tiny_patch16_224", "its feature maps have strides 16"),
        ("timm/maxvit_tiny_tf_224", "must be divisible by window"),
        ("timm/hrnet_w18_small", "they do not come from stages that follow one another"),
        ("timm/no_such_network", "has no model 'no_such_network'"),
        ("timm/convnext_tinny", "did you mean timm/convnext_tiny"),
    ],
)
def test_a_network_without_a_pyramid_for_every_image_size_is_refused(backbone: str, said: str) -> None:
    with pytest.raises(JobError) as caught:
        spec_of(backbone)
    (problem,) = caught.value.problems
    assert problem.where == "backbone"
    assert said in str(problem)


@pytest.mark.parametrize(
    ("model", "backbone"),
    [
        ("fasterrcnn_resnet50_fpn", "timm/swin_tiny_patch4_window7_224"),
        ("maskrcnn_resnet50_fpn", "timm/convnext_tiny.dinov3_lvd1689m"),
        ("fasterrcnn_resnet50_fpn_v2", "timm/tf_efficientnet_lite0"),
        ("retinanet_resnet50_fpn", "timm/mobilenetv3_small_050"),
        ("retinanet_resnet50_fpn_v2", "timm/test_resnet"),
        ("fcos_resnet50_fpn", "timm/pvt_v2_b0"),
    ],
)
def test_every_architecture_gets_its_levels_and_a_published_file(model: str, backbone: str) -> None:
    family = family_of(backbone, model)
    with torch.device("meta"):  # shapes without memory
        network: Any = family.build()
        levels = network.backbone(torch.empty(2, 3, 96, 160))
        classifier = timm.create_model(backbone.removeprefix("timm/"))
    one_stage = model.startswith(("retinanet", "fcos"))
    strides = (8, 16, 32, 64, 128) if one_stage else (4, 8, 16, 32, 64)
    assert [tuple(level.shape) for level in levels.values()] == [
        (2, 256, -(-96 // stride), -(-160 // stride)) for stride in strides
    ]
    assert len(network.anchor_generator.sizes if one_stage else network.rpn.anchor_generator.sizes) == 5
    # The classifier's tensors fit under their own names.
    adapted = family.published().adapt
    assert adapted is not None
    state = adapted(classifier.state_dict(), network)
    own = {key for key in network.state_dict() if key.startswith("backbone.body.")}
    assert {key for key in state if not key.endswith("num_batches_tracked")} == {
        key for key in own if not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("size", [(64, 64), (61, 97)])
def test_images_of_odd_sizes_are_scored(size: tuple[int, int]) -> None:
    family = family_of(EFFICIENTNET, min_size=64, max_size=96)
    torch.manual_seed(0)
    network = family.build().eval()
    with torch.inference_mode():
        (prediction,) = family.predict(network, [np.full((*size, 3), 90, dtype=np.uint8)])
    assert prediction.image_size == size


def test_a_swin_sees_images_that_it_was_not_published_for() -> None:
    torch.manual_seed(0)
    network: Any = family_of("timm/swin_tiny_patch4_window7_224").build().eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        maps = network.backbone.feature_maps(image)
        again = network.backbone.feature_maps(torch.cat([image, 1 - image]))
    assert [tuple(each.shape) for each in maps] == [
        (1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3),
    ]  # fmt: skip
    for one, other in zip(maps, again, strict=True):
        torch.testing.assert_close(one, other[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [FASTER, "retinanet_resnet50_fpn"])
def test_a_classifiers_file_starts_the_backbone(tmp_path: Path, model: str) -> None:
    published = classifier_file(tmp_path)
    family = family_of(EFFICIENTNET, model)
    network: Any = family.build()
    loaded = weights.load(network, model, family.published(), str(tmp_path), family.spec)
    assert loaded is not None
    body = network.backbone.body.state_dict()
    assert all(torch.equal(value, published[key]) for key, value in body.items())
    dropped = {key for key in published if key.startswith(TAIL) and "num_batches" not in key}
    assert set(loaded.left) == dropped
    assert not any(key.startswith("backbone.body.") for key in loaded.fresh)
    assert any(key.startswith("backbone.fpn.") for key in loaded.fresh)
    assert "(of the backbone alone); unused: " in str(loaded)
    # The same feature maps as timm's own.
    own = timm.create_model("test_efficientnet", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    own.load_state_dict(published, strict=False)
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = own(image)[-len(network.backbone.indices) :]
        for one, other in zip(network.backbone.feature_maps(image), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_another_networks_file_or_a_part_is_refused(tmp_path: Path) -> None:
    published = classifier_file(tmp_path)
    family = family_of(EFFICIENTNET)
    network = family.build()
    more = {**published, "blocks.5.0.conv.weight": torch.zeros(1)}
    less = {key: value for key, value in published.items() if not key.startswith("blocks.4.")}
    for state, said in ((more, r"also holds backbone\.body\.blocks\.5"), (less, r"lacks backbone\.body\.")):
        save_file(state, tmp_path / "mine.safetensors")
        with pytest.raises(WeightsError, match=said):
            weights.load(network, FASTER, family.published(), str(tmp_path / "mine.safetensors"))


def test_weights_of_a_run_need_the_same_backbone(tmp_path: Path) -> None:
    family = family_of(EFFICIENTNET)
    before, network = family.build(), family.build()
    torch.save(before.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "spec.json").write_text(family.spec.to_json())
    loaded = weights.load(network, FASTER, family.published(), str(tmp_path), family.spec)
    assert loaded is not None
    assert loaded.fresh == ()
    assert "backbone alone" not in str(loaded)
    for key, value in before.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    other = family_of("timm/test_resnet")
    with pytest.raises(WeightsError) as caught:
        weights.load(other.build(), FASTER, other.published(), str(tmp_path), other.spec)
    assert f"Use --model {FASTER} --backbone {EFFICIENTNET} --task" in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "first", "last"),
    [
        (EFFICIENTNET, {"conv_stem", "bn1", "blocks.0"}, {"blocks.4"}),
        ("timm/test_resnet", {"conv1", "bn1"}, {"layer4"}),
        ("timm/test_convnext", {"stem"}, {"stages.3"}),
        ("timm/tf_efficientnet_lite0", {"conv_stem", "bn1", "blocks.0"}, {"blocks.5", "blocks.6"}),
    ],
)
def test_frozen_groups_go_by_stride(backbone: str, first: set[str], last: set[str]) -> None:
    family = family_of(backbone, pretrained=False)
    with torch.device("meta"):
        network = family.build()
    body = network.get_submodule("backbone.body")
    names = {id(module): name for name, module in body.named_modules()}
    groups = family.freeze_groups(network)
    assert len(groups) == 5
    covered = [{names[id(module)] for module in group} for group in groups]
    assert first <= covered[0]
    assert covered[4] == last
    parameters = [id(p) for group in groups for module in group for p in module.parameters()]
    assert sorted(parameters) == sorted(id(p) for p in body.parameters())


def test_layers_learn_at_rates_by_their_stride() -> None:
    family = family_of("timm/test_convnext", pretrained=False)
    network = family.build()
    settings = resolve(family.spec.task, FASTER, {"layer_decay": 0.5, "learning_rate": 0.32})
    optimizer = build_optimizer(network, settings, family.freeze_groups(network))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rate_of = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    body = "backbone.body."
    assert rate_of[f"{body}stem.0.weight"] == pytest.approx(0.01)
    assert rate_of[f"{body}stages.0.blocks.0.mlp.fc1.weight"] == pytest.approx(0.02)
    assert rate_of[f"{body}stages.3.blocks.0.mlp.fc1.weight"] == pytest.approx(0.16)
    assert rate_of["backbone.fpn.inner_blocks.0.0.weight"] == pytest.approx(0.32)


def norms(network: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_published_batch_norms_are_frozen_as_torchvision_does() -> None:
    network = family_of("timm/tf_efficientnet_lite0").build()
    assert not norms(network, nn.BatchNorm2d)
    frozen = norms(network, FrozenBatchNormAct2d)
    assert {norm.eps for norm in frozen} == {1e-3}  # TensorFlow's, not torchvision's
    # Those of version 2 learn, and so do all from scratch.
    assert norms(family_of(EFFICIENTNET, "fasterrcnn_resnet50_fpn_v2").build(), BatchNormAct2d)
    assert norms(family_of(EFFICIENTNET, pretrained=False).build(), BatchNormAct2d)


def test_synchronised_batch_norms_keep_their_activations() -> None:
    family = family_of(EFFICIENTNET, pretrained=False)
    network = family.build()
    activations = [type(norm.act) for norm in norms(network, BatchNormAct2d)]
    converted = family.sync_batch_norms(network)
    assert not norms(converted, nn.BatchNorm2d)
    found = norms(converted, nn.SyncBatchNorm)
    assert [type(norm.act) for norm in found] == activations


def test_another_backbone_cannot_resume_a_run(tmp_path: Path) -> None:
    job = Job(task="object-detection", training_data="x", model=FASTER, settings={"backbone": EFFICIENTNET})
    run = Run(tmp_path)
    run.write_job(job.to_yaml())
    assert Job.read(run.job).resolve_settings().backbone == EFFICIENTNET
    run.checkpoints.mkdir()
    run.last_checkpoint.touch()
    check_resumable(run, job.resolve_settings())
    other = job.changed(settings={"backbone": "timm/test_resnet"})
    with pytest.raises(JobError, match=f"backbone: must stay what the run was started with, {EFFICIENTNET}"):
        check_resumable(run, other.resolve_settings())
    checkpoint = Checkpoint(run, run.last_checkpoint, 0, spec_of(EFFICIENTNET).model_dump_json(), 0)
    check_same_network(checkpoint, spec_of(EFFICIENTNET))
    with pytest.raises(RunError, match="of another network"):
        check_same_network(checkpoint, spec_of("timm/test_resnet"))


def test_a_sweep_chooses_among_backbones() -> None:
    def job(*values: str | None, model: str = FASTER) -> Job:
        space = {"model_name": model, "backbone": {"type": "choice", "values": list(values)}}
        return Job(
            task="object-detection", training_data="x", search_space=(space,), limits={"max_trials": 2}
        )

    search = prepare_search(job(EFFICIENTNET, None, "timm/test_resnet"))
    assert search.space.sub_spaces[0].parameters["backbone"].bounds[1] is None
    trial = job(EFFICIENTNET).for_trial({"model_name": FASTER, "backbone": EFFICIENTNET})
    assert trial.resolve_settings().backbone == EFFICIENTNET
    with pytest.raises(JobError, match="must be timm/NAME"):
        prepare_search(job("resnet50"))
    with pytest.raises(JobError, match="applies only to R-CNNs, not to yolo11n"):
        prepare_search(job(EFFICIENTNET, model="yolo11n"))
