"""Weights from real files: found, checked, fitted to a network of other classes, or rejected."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.errors import WeightsError
from trainer.models import Family, Spec, create
from trainer.models.catalog import find
from trainer.models.defaults import resolve
from trainer.models.weights import loading as weights
from trainer.models.weights.published import PublishedWeights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

RESNET18 = "resnet18.a1_in1k"
FASTER_COCO = "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
MASK_COCO = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"


def family_of(task: Task, model: str, classes: int = 3, *, pretrained: bool = True) -> Family:
    family = find(model, task).family
    options = import_module(f"trainer.models.{family}").FAMILY.options
    return create(
        Spec(
            family=family,
            model=model,
            task=task,
            classes=tuple(f"class {i}" for i in range(classes)),
            options=options(task, model, resolve(task, model, {}), pretrained),
            parameters=ScoringParameters(),
        )
    )


@pytest.fixture(scope="module")
def imagenet() -> Mapping[str, Tensor]:
    """A timm ResNet-18 as its publisher has it: 1000 classes."""
    torch.manual_seed(1)
    state: dict[str, Tensor] = timm.create_model("resnet18", pretrained=False, num_classes=1000).state_dict()
    return state


@pytest.fixture
def resnet() -> tuple[Family, nn.Module]:
    torch.manual_seed(2)
    family = family_of(Task.CLASSIFICATION, "resnet18")
    return family, family.build()


def save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    save_file(dict(state), path)


def save_under_state_dict(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": dict(state)}, path)


def save_as_a_run_does(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": {f"network.{key}": value for key, value in state.items()}}, path)


def save_legacy(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save(dict(state), path, _use_new_zipfile_serialization=False)


def save_as_published(
    state: Mapping[str, Tensor], directory: Path, published: PublishedWeights
) -> PublishedWeights:
    """Save under the name that the publisher would give this very file: with its own hash in it."""
    stem = published.files[0].rpartition("-")[0]
    torch.save(dict(state), directory / "part")
    name = f"{stem}-{hashlib.sha256((directory / 'part').read_bytes()).hexdigest()[:8]}.pth"
    (directory / "part").rename(directory / name)
    return dataclasses.replace(published, files=(name,), url="")


def assert_taken(network: nn.Module, state: Mapping[str, Tensor], *, but: tuple[str, ...]) -> None:
    for key, value in network.state_dict().items():
        if key not in but:
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("name", "save"),
    [
        (f"{RESNET18}.safetensors", save_safetensors),
        (f"{RESNET18}/model.safetensors", save_safetensors),
        ("resnet18.safetensors", save_safetensors),
        (f"{RESNET18}.pth", torch.save),
        (f"{RESNET18}.pth", save_under_state_dict),
        (f"{RESNET18}.pth", save_legacy),
    ],
)
def test_a_directory_of_published_files_fits_another_number_of_classes(
    tmp_path: Path,
    imagenet: Mapping[str, Tensor],
    resnet: tuple[Family, nn.Module],
    name: str,
    save: Callable[[Any, Path], None],
) -> None:
    path = tmp_path / "가중치" / name
    path.parent.mkdir(parents=True)
    save(imagenet, path)
    family, network = resnet
    head = network.state_dict()["fc.weight"].clone()
    loaded = weights.load(network, "resnet18", family.published(), str(tmp_path / "가중치"))
    assert loaded is not None
    assert loaded.source == str(path)
    assert loaded.fresh == ("fc.weight", "fc.bias")
    assert loaded.taken == len(imagenet) - 2
    assert set(loaded.left) == {"fc.weight", "fc.bias"}
    assert str(loaded).endswith("; made for other classes, so randomly initialized: fc.weight, fc.bias")
    assert_taken(network, imagenet, but=loaded.fresh)
    assert torch.equal(network.state_dict()["fc.weight"], head)


@pytest.mark.parametrize("save", [torch.save, save_as_a_run_does])
def test_a_file_of_the_same_classes_is_taken_whole(
    tmp_path: Path, save: Callable[[Any, Path], None], resnet: tuple[Family, nn.Module]
) -> None:
    family, network = resnet
    state = family.build().state_dict()
    save(state, tmp_path / "mine.ckpt")
    loaded = weights.load(network, "resnet18", family.published(), str(tmp_path / "mine.ckpt"))
    assert loaded is not None
    assert loaded.fresh == ()
    assert str(loaded) == f"{len(state)} tensors from {tmp_path / 'mine.ckpt'}"
    assert_taken(network, state, but=())


def test_a_vits_position_embedding_is_resampled_to_the_crop(tmp_path: Path) -> None:
    values = {"validation_crop_size": 64, "training_crop_size": 64}
    published = timm.create_model("vit_small_patch16_224", img_size=32)
    file = tmp_path / "vit.pth"
    torch.save(published.state_dict(), file)
    settings = resolve(Task.CLASSIFICATION, "vits16r224", values)
    options = import_module("trainer.models.classifiers").FAMILY.options(
        Task.CLASSIFICATION, "vits16r224", settings, True
    )
    spec = Spec(
        family="classifiers",
        model="vits16r224",
        task=Task.CLASSIFICATION,
        classes=("a", "b"),
        options=options,
        parameters=ScoringParameters(),
    )
    family = create(spec)
    network = family.build()
    loaded = weights.load(network, "vits16r224", family.published(), str(file))
    assert loaded is not None
    assert loaded.fresh == ("head.weight", "head.bias")
    assert loaded.resampled == ("pos_embed",)
    assert "; resized: pos_embed;" in str(loaded)
    state = network.state_dict()
    assert state["pos_embed"].shape[1] == 1 + 4 * 4
    assert torch.equal(state["pos_embed"][:, 0], published.state_dict()["pos_embed"][:, 0])
    assert torch.equal(state["blocks.0.norm1.weight"], published.state_dict()["blocks.0.norm1.weight"])


def test_of_a_runs_checkpoint_the_average_that_was_scored_is_taken(
    tmp_path: Path, resnet: tuple[Family, nn.Module]
) -> None:
    family, network = resnet
    average = family.build().state_dict()
    state = {f"network.{key}": torch.zeros_like(value) for key, value in average.items()}
    state |= {f"average.network.{key}": value for key, value in average.items()}
    state["average.steps"] = torch.tensor(3)
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    weights.load(network, "resnet18", family.published(), str(tmp_path / "best.ckpt"))
    assert_taken(network, average, but=())


def test_none_leaves_the_network_as_it_is(resnet: tuple[Family, nn.Module]) -> None:
    family, network = resnet
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert weights.load(network, "resnet18", family.published(), "none") is None
    assert_taken(network, before, but=())


def test_a_backbones_file_starts_a_detector(tmp_path: Path) -> None:
    torch.manual_seed(3)
    backbone = torchvision.models.resnet18(weights=None).state_dict()
    family = family_of(Task.DETECTION, "fasterrcnn_resnet18_fpn")
    network = family.build()
    published = save_as_published(backbone, tmp_path, family.published())
    loaded = weights.load(network, "fasterrcnn_resnet18_fpn", published, str(tmp_path))
    assert loaded is not None
    body = network.get_submodule("backbone.body").state_dict()
    assert body
    assert all(torch.equal(value, backbone[key]) for key, value in body.items())
    assert loaded.taken >= len(body)
    assert all(key.startswith(("backbone.fpn.", "rpn.", "roi_heads.")) for key in loaded.fresh)
    assert "roi_heads.box_predictor.cls_score.weight" in loaded.fresh
    assert loaded.left == ("fc.weight", "fc.bias")
    text = str(loaded)
    assert "; unused: fc.weight, fc.bias" in text
    layers = text.partition("not in the file, so randomly initialized: ")[2].split(", ")
    assert {"backbone.fpn.inner_blocks (8)", "rpn.head.cls_logits (2)", "roi_heads.box_head.fc6 (2)"} <= {
        *layers
    }
    assert sum(int(layer.partition("(")[2].rstrip(")") or 1) for layer in layers) == len(loaded.fresh)


@pytest.mark.parametrize("depth", [34, 50])
def test_another_backbone_is_refused(tmp_path: Path, depth: int) -> None:
    # ResNet-34 holds every tensor of ResNet-18, in the same shapes, and more.
    state = torchvision.models.get_model(f"resnet{depth}", weights=None).state_dict()
    family = family_of(Task.DETECTION, "fasterrcnn_resnet18_fpn")
    published = save_as_published(state, tmp_path, family.published())
    with pytest.raises(WeightsError, match="does not fit fasterrcnn_resnet18_fpn"):
        weights.load(family.build(), "fasterrcnn_resnet18_fpn", published, str(tmp_path))


def test_a_part_of_a_backbone_is_refused(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    state = {key: value for key, value in state.items() if "layer4" not in key}
    family = family_of(Task.DETECTION, "fasterrcnn_resnet18_fpn")
    published = save_as_published(state, tmp_path, family.published())
    with pytest.raises(WeightsError, match=r"it lacks backbone\.body\.layer4"):
        weights.load(family.build(), "fasterrcnn_resnet18_fpn", published, str(tmp_path))


def old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names in the files of 2019 that torchvision still publishes."""
    renamed = {}
    for key, value in state.items():
        for block in ("inner_blocks", "layer_blocks"):
            for i in range(4):
                key = key.replace(f"fpn.{block}.{i}.0.", f"fpn.{block}.{i}.")
        for i in range(4):
            key = key.replace(f"roi_heads.mask_head.{i}.0.", f"roi_heads.mask_head.mask_fcn{i + 1}.")
        renamed[key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    return renamed


@pytest.mark.parametrize("names", [dict, old_names], ids=["new names", "names of 2019"])
@pytest.mark.parametrize(
    ("task", "model", "file", "head"),
    [
        (Task.DETECTION, "fasterrcnn_resnet50_fpn", FASTER_COCO, {"box_predictor"}),
        (Task.SEGMENTATION, "maskrcnn_resnet50_fpn", MASK_COCO, {"box_predictor", "mask_predictor"}),
    ],
)
def test_torchvisions_coco_file_starts_a_detector_for_other_classes(
    tmp_path: Path,
    task: Task,
    model: str,
    file: str,
    head: set[str],
    names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> None:
    with torch.device("meta"):  # shapes without memory
        coco = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=91)
        family = family_of(task, model)
        network = family.build()
    assert family.published().files == (file,)
    published = save_as_published(names(coco.state_dict()), tmp_path, family.published())
    loaded = weights.load(network, model, published, str(tmp_path))
    assert loaded is not None
    assert loaded.source.endswith(published.files[0])
    assert set(loaded.left) == set(loaded.fresh)
    assert {key.split(".")[1] for key in loaded.fresh} == head
    assert len(loaded.fresh) == (4 if task is Task.DETECTION else 6)


def test_a_detector_is_no_segmenter(tmp_path: Path) -> None:
    with torch.device("meta"):
        coco = torchvision.models.get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
        family = family_of(Task.SEGMENTATION, "maskrcnn_resnet50_fpn")
        network = family.build()
    published = save_as_published(coco.state_dict(), tmp_path, family.published())
    with pytest.raises(WeightsError, match=r"it lacks roi_heads\.mask_head"):
        weights.load(network, "maskrcnn_resnet50_fpn", published, str(tmp_path))


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "mobilenetv2_100", "vit_tiny_patch16_224"])
def test_another_architecture_is_refused_naming_both(
    tmp_path: Path, resnet: tuple[Family, nn.Module], other: str
) -> None:
    path = tmp_path / f"{other}.pth"
    torch.save(timm.create_model(other, pretrained=False).state_dict(), path)
    family, network = resnet
    with pytest.raises(WeightsError) as caught:
        weights.load(network, "resnet18", family.published(), str(path))
    said = str(caught.value)
    assert f"{path} does not fit resnet18" in said
    assert f"{RESNET18}.safetensors" in said
    assert "--weights none" in said


class Payload:
    """Reading this pickle runs code: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_unless_the_file_itself_is_named(
    tmp_path: Path, imagenet: Mapping[str, Tensor], resnet: tuple[Family, nn.Module], zipped: bool
) -> None:
    path, trace = tmp_path / f"{RESNET18}.pth", tmp_path / "trace"
    content = {"payload": Payload(trace), "state_dict": dict(imagenet)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    family, network = resnet
    with pytest.raises(WeightsError) as caught:
        weights.load(network, "resnet18", family.published(), str(tmp_path))
    assert f"name the file itself: --weights {path}" in str(caught.value)
    assert not trace.exists()
    loaded = weights.load(network, "resnet18", family.published(), str(path))
    assert loaded is not None
    assert loaded.fresh == ("fc.weight", "fc.bias")
    assert trace.exists()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46\n",
        b"<!DOCTYPE html><title>404</title>",
        b"PK\x03\x04 cut off",
        b"\x80\x02}q\x00(X\x01",
        pickle.dumps("a text"),
        pickle.dumps([1, 2, 3]),
    ],
    ids=["empty", "lfs pointer", "web page", "cut zip", "cut pickle", "text", "list"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_without_weights_is_refused(
    tmp_path: Path, resnet: tuple[Family, nn.Module], content: bytes, named: bool, suffix: str
) -> None:
    path = tmp_path / f"{RESNET18}{suffix}"
    path.write_bytes(content)
    family, network = resnet
    with pytest.raises(WeightsError) as caught:
        weights.load(network, "resnet18", family.published(), str(path if named else tmp_path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_download_is_refused(
    tmp_path: Path, imagenet: Mapping[str, Tensor], resnet: tuple[Family, nn.Module], suffix: str
) -> None:
    path = tmp_path / f"{RESNET18}{suffix}"
    (save_safetensors if suffix == ".safetensors" else torch.save)(imagenet, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    family, network = resnet
    with pytest.raises(WeightsError, match=f"{RESNET18}{suffix} cannot be read as weights"):
        weights.load(network, "resnet18", family.published(), str(tmp_path))


def test_a_dictionary_without_tensors_is_refused(tmp_path: Path, resnet: tuple[Family, nn.Module]) -> None:
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / f"{RESNET18}.pth")
    family, network = resnet
    with pytest.raises(WeightsError, match="does not fit resnet18"):
        weights.load(network, "resnet18", family.published(), str(tmp_path))


@pytest.fixture(scope="module")
def yolo_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Tensor]]:
    """yolo11n.pt as ultralytics publishes it: a whole network in half precision, for COCO's 80 classes."""
    torch.manual_seed(4)
    network: Any = family_of(Task.DETECTION, "yolo11n", classes=80).build().half()
    network.args = {"imgsz": 640}
    path = tmp_path_factory.mktemp("yolo") / "yolo11n.pt"
    now = datetime.datetime.now(tz=datetime.UTC).isoformat()
    torch.save({"date": now, "version": "8.3.0", "ema": None, "model": network, "train_args": {}}, path)
    return path, network.state_dict()


def test_an_ultralytics_file_starts_a_yolo_for_other_classes(
    yolo_file: tuple[Path, Mapping[str, Tensor]],
) -> None:
    path, state = yolo_file
    family = family_of(Task.DETECTION, "yolo11n")
    network = family.build()
    loaded = weights.load(network, "yolo11n", family.published(), str(path))
    assert loaded is not None
    assert all(key.startswith("model.23.cv3.") for key in loaded.fresh)
    assert {key for key in loaded.fresh if key.endswith(".2.weight")} == {
        f"model.23.cv3.{level}.2.weight" for level in range(3)
    }
    own = network.state_dict()
    same = [key for key in own if key not in loaded.fresh and not key.endswith("num_batches_tracked")]
    assert len(same) > 300
    assert all(torch.equal(own[key], state[key].float()) for key in same)
    assert all(value.dtype != torch.float16 for value in own.values())


@pytest.mark.parametrize("classes_lie_in", ["modules", "package"])
def test_a_directory_may_hold_a_whole_network_of_the_same_classes(
    tmp_path: Path, yolo_file: tuple[Path, Mapping[str, Tensor]], classes_lie_in: str
) -> None:
    path, state = yolo_file
    if classes_lie_in == "package":  # files of 2023 name ultralytics.nn.modules.Conv
        renamed = tmp_path / path.name
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data.pkl"):
                    assert b"cultralytics.nn.modules.conv\n" in content
                    content = content.replace(b"cultralytics.nn.modules.conv\n", b"cultralytics.nn.modules\n")
                new.writestr(name, content)
        path = renamed
    family = family_of(Task.DETECTION, "yolo11n")
    network = family.build()
    loaded = weights.load(network, "yolo11n", family.published(), str(path.parent))
    assert loaded is not None
    assert loaded.source == str(path)
    assert torch.equal(network.state_dict()["model.0.conv.weight"], state["model.0.conv.weight"].float())


def test_a_whole_network_of_other_classes_is_refused_unless_named(
    tmp_path: Path, resnet: tuple[Family, nn.Module], yolo_file: tuple[Path, Mapping[str, Tensor]]
) -> None:
    family, network = resnet
    (tmp_path / f"{RESNET18}.pth").write_bytes(yolo_file[0].read_bytes())
    with pytest.raises(WeightsError, match="name the file itself"):
        weights.load(network, "resnet18", family.published(), str(tmp_path))
    with pytest.raises(WeightsError, match="does not fit resnet18"):
        weights.load(network, "resnet18", family.published(), str(tmp_path / f"{RESNET18}.pth"))


def test_another_size_of_yolo_is_refused(yolo_file: tuple[Path, Mapping[str, Tensor]]) -> None:
    path, _ = yolo_file
    family = family_of(Task.DETECTION, "yolo11s")
    with pytest.raises(WeightsError, match=r"yolo11n\.pt does not fit yolo11s"):
        weights.load(family.build(), "yolo11s", family.published(), str(path))


def test_a_renamed_backbone_starts_an_rtdetr_whose_own_weights_are_taken_whole(tmp_path: Path) -> None:
    family = family_of(Task.DETECTION, "rtdetr-resnet50")
    network = family.build()
    backbone = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    loaded = weights.load(network, "rtdetr-resnet50", family.published(), str(tmp_path / "backbone.pth"))
    assert loaded is not None
    assert loaded.left == ("fc.weight", "fc.bias")
    assert loaded.taken == sum(not key.startswith("fc.") for key in backbone)
    assert {key.split(".")[1] for key in loaded.fresh}.isdisjoint("01234")
    assert len(str(loaded)) < 1000
    # Its own file covers everything: a part of that is none, and other classes cost the class layers alone.
    state = network.state_dict()
    torch.save(state, tmp_path / "own.pth")
    other = family.published()
    loaded = weights.load(family.build(), "rtdetr-resnet50", other, str(tmp_path / "own.pth"))
    assert loaded is not None
    assert loaded.fresh == ()
    torch.save({key: value for key, value in state.items() if "decoder" not in key}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"it lacks model\.23\.decoder"):
        weights.load(family.build(), "rtdetr-resnet50", other, str(tmp_path / "own.pth"))
