"""Where weights come from: directories, caches, downloads and earlier runs; and what is checked of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save, save_file
from torch import Tensor, nn

from tests.models.weights.conftest import Pages, family_of, load
from trainer.data.samples import make
from trainer.errors import WeightsError
from trainer.job.job import Job
from trainer.models import Family, Spec, create
from trainer.models.weights import loading as weights
from trainer.models.weights.published import PublishedWeights
from trainer.models.weights.reading import SPEC_KEY
from trainer.models.weights.sources import hash_in_name, published_names, spec_of
from trainer.tasks import Task

RESNET18 = "resnet18.a1_in1k"
BACKBONE = "resnet18-f37072fd.pth"
FASTER_COCO = "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"


@pytest.fixture(scope="module")
def imagenet() -> Mapping[str, Tensor]:
    """A timm ResNet-18 as its publisher has it: 1000 classes."""
    torch.manual_seed(1)
    state: dict[str, Tensor] = timm.create_model("resnet18", pretrained=False, num_classes=1000).state_dict()
    return state


def test_a_wrong_path_is_refused(tmp_path: Path, resnet: Family) -> None:
    with pytest.raises(WeightsError, match=r"없음\.pth: no such file or directory"):
        load(resnet, tmp_path / "없음.pth")


def test_a_directory_without_the_file_says_what_it_looked_for(tmp_path: Path, resnet: Family) -> None:
    (tmp_path / "resnet18.pth").touch()
    with pytest.raises(WeightsError) as caught:
        load(resnet, tmp_path)
    said = str(caught.value)
    assert str(tmp_path) in said
    names = (f"{RESNET18}.safetensors", f"{RESNET18}/model.safetensors", f"{RESNET18}.pth")
    for name in (*names, "resnet18_a1_0-d63eafa0.pth"):
        assert name in said
    assert "--weights FILE" in said
    assert "--weights none" in said


@pytest.mark.parametrize(("model", "accepts"), [("timm/resnet18", True), ("timm/resnet18.a1_in1k", False)])
def test_a_file_without_a_tag_is_the_model_without_a_tag(model: str, accepts: bool) -> None:
    names = published_names(family_of(Task.CLASSIFICATION, model).published())
    assert ("resnet18.safetensors" in names) is accepts


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("task", "model", "file", "address"),
    [
        (Task.CLASSIFICATION, "resnet18", f"{RESNET18}.safetensors", "https://huggingface.co/timm/"),
        (Task.DETECTION, "fasterrcnn_resnet18_fpn", BACKBONE, "https://download.pytorch.org/models/"),
        (Task.DETECTION, "fasterrcnn_resnet50_fpn", FASTER_COCO, "https://download.pytorch.org/models/"),
        (Task.DETECTION, "yolo11n", "yolo11n.pt", "https://github.com/ultralytics/assets/"),
        (Task.DETECTION, "yolov5", "yolov5mu.pt", "https://github.com/ultralytics/assets/"),
    ],
)
def test_without_a_network_the_error_names_the_file_and_both_ways_out(
    task: Task, model: str, file: str, address: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.load(nn.Linear(1, 1), model, family_of(task, model).published(), "pretrained")
    said = str(caught.value)
    assert f"put {file} into a directory and give --weights DIR (or TRAINER_WEIGHTS=DIR)" in said
    assert "--weights none" in said
    assert address in said


def put_into_hub_cache(content: bytes, cache: Path, *, etag: str) -> Path:
    """As huggingface_hub keeps a large file: under its ETag, with a link of its name to it."""
    folder = cache / f"models--timm--{RESNET18}"
    for part in ("refs", "snapshots/0123", "blobs"):
        (folder / part).mkdir(parents=True)
    (folder / "refs/main").write_text("0123", encoding="utf-8")
    (folder / "blobs" / etag).write_bytes(content)
    (folder / "snapshots/0123/model.safetensors").symlink_to(f"../../blobs/{etag}")
    return folder / "blobs" / etag


@pytest.mark.usefixtures("_no_network")
def test_what_the_hub_sent_before_needs_no_network_and_is_checked(
    tmp_path: Path, imagenet: Mapping[str, Tensor], resnet: Family
) -> None:
    content = save(dict(imagenet))
    right, wrong = hashlib.sha256(content).hexdigest(), hashlib.sha256(b"other").hexdigest()
    put_into_hub_cache(content, tmp_path / "hub", etag=right)
    assert load(resnet, "pretrained")[1].fresh == ("fc.weight", "fc.bias")
    (tmp_path / "hub").rename(tmp_path / "before")
    blob = put_into_hub_cache(content, tmp_path / "hub", etag=wrong)
    with pytest.raises(WeightsError) as caught:
        load(resnet, "pretrained")
    assert str(blob) in str(caught.value)
    assert f"its SHA-256 must be {wrong}, but is {right}" in str(caught.value)
    assert "Delete it and try again" in str(caught.value)


@pytest.mark.usefixtures("_no_network")
def test_what_torchvision_sent_before_needs_no_network_and_is_checked(tmp_path: Path) -> None:
    family = family_of(Task.DETECTION, "fasterrcnn_resnet18_fpn")
    kept = tmp_path / "torch/hub/checkpoints" / BACKBONE
    kept.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), kept)
    with pytest.raises(WeightsError) as caught:
        load(family, "pretrained")
    found = hashlib.sha256(kept.read_bytes()).hexdigest()[:8]
    assert f"must begin with f37072fd, but begins with {found}" in str(caught.value)
    right = kept.rename(kept.with_name(f"resnet18-{found}.pth"))
    published = dataclasses.replace(
        family.published(), files=(right.name,), url=f"https://example.org/{right.name}"
    )
    loaded = weights.load(family.build(), "fasterrcnn_resnet18_fpn", published, "pretrained")
    assert loaded is not None
    assert loaded.source == str(right)


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="own has no published weights"):
        weights.load(nn.Linear(1, 1), "own", PublishedWeights(files=("own.pth",)), "pretrained")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (FASTER_COCO, "258fb6c6"),
        ("resnet18_a1_0-d63eafa0.pth", "d63eafa0"),
        ("yolo11n.pt", ""),
        ("yolo11n-seg.pt", ""),
        ("rtdetr-l.pt", ""),
        (f"{RESNET18}.safetensors", ""),
        ("model-abcdef.pth", ""),
    ],
)
def test_a_hash_is_read_from_the_name_by_torchs_convention(name: str, found: str) -> None:
    assert hash_in_name(name) == found


def test_a_file_in_a_directory_that_is_not_the_published_one_is_refused_unless_named(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / BACKBONE)
    found = hashlib.sha256((tmp_path / BACKBONE).read_bytes()).hexdigest()[:8]
    family = family_of(Task.DETECTION, "fasterrcnn_resnet18_fpn")
    with pytest.raises(WeightsError) as caught:
        load(family, tmp_path)
    assert f"must begin with f37072fd, but begins with {found}" in str(caught.value)
    assert "`trainer weights --model fasterrcnn_resnet18_fpn`" in str(caught.value)
    assert f"name the file: --weights {tmp_path / BACKBONE}" in str(caught.value)
    # Whoever names the file vouches for it, but is told.
    _, loaded = load(family, tmp_path / BACKBONE)
    assert f"must begin with f37072fd, but begins with {found}" in str(loaded)


def test_the_file_at_timms_address_is_found_under_its_own_name_and_checked(
    tmp_path: Path, imagenet: Mapping[str, Tensor], resnet: Family
) -> None:
    torch.save(dict(imagenet), tmp_path / "resnet18_a1_0-d63eafa0.pth")
    with pytest.raises(WeightsError, match="must begin with d63eafa0"):
        load(resnet, tmp_path)


def test_a_download_by_address_is_checked_before_it_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    site: tuple[str, Pages],
    imagenet: Mapping[str, Tensor],
    resnet: Family,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    address, pages = site
    torch.save(dict(imagenet), tmp_path / "made.pth")
    content = (tmp_path / "made.pth").read_bytes()
    found = hashlib.sha256(content).hexdigest()[:8]
    for stated in ("0123abcd", found):
        name = f"own-{stated}.pth"
        pages[f"/{name}"] = (content, {})
        published = PublishedWeights(files=(name,), url=f"{address}/{name}", head=("fc",))
        kept = tmp_path / "torch/hub/checkpoints" / name
        if stated == found:
            loaded = weights.load(resnet.build(), "own", published, "pretrained")
            assert loaded is not None
            assert loaded.source == str(kept)
        else:
            with pytest.raises(WeightsError, match=f"must begin with 0123abcd, but begins with {found}"):
                weights.load(resnet.build(), "own", published, "pretrained")
            assert not kept.exists()
    assert [path.name for path in kept.parent.iterdir()] == [f"own-{found}.pth"]
    gone = PublishedWeights(files=("gone.pth",), url=f"{address}/gone.pth")
    with pytest.raises(WeightsError, match="could not be fetched"):
        weights.load(resnet.build(), "own", gone, "pretrained")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("honest", [True, False])
def test_a_download_from_the_hub_is_checked_against_what_the_hub_states(
    tmp_path: Path,
    hub_pages: Pages,
    imagenet: Mapping[str, Tensor],
    resnet: Family,
    file: str,
    honest: bool,
) -> None:
    torch.save(dict(imagenet), tmp_path / "made.bin")
    content = save(dict(imagenet)) if file == "model.safetensors" else (tmp_path / "made.bin").read_bytes()
    stated = hashlib.sha256(content if honest else b"other").hexdigest()
    headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{stated}"', "X-Linked-Size": str(len(content))}
    hub_pages[f"/timm/{RESNET18}/resolve/main/{file}"] = (content, headers)
    hub_pages[f"/timm/{RESNET18}/resolve/{'0' * 40}/{file}"] = (content, headers)
    if honest:
        assert load(resnet, "pretrained")[1].fresh == ("fc.weight", "fc.bias")
    else:
        with pytest.raises(WeightsError, match=f"its SHA-256 must be {stated}"):
            load(resnet, "pretrained")


def test_the_environment_names_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagenet: Mapping[str, Tensor], resnet: Family
) -> None:
    save_file(dict(imagenet), tmp_path / f"{RESNET18}.safetensors")
    monkeypatch.setenv("TRAINER_WEIGHTS", str(tmp_path))
    choice = Job(task="image-classification", model="resnet18", training_data="a").weights_choice
    assert load(resnet, choice)[1].source.startswith(str(tmp_path))


# Air-gapped machines.

_FORBID = """
import socket, sys
class Forbidden(socket.socket):
    def __init__(self, *arguments, **more):
        if (arguments or [more.get("family", socket.AF_INET)])[0] in (socket.AF_INET, socket.AF_INET6, -1):
            raise AssertionError("a socket was opened")
        super().__init__(*arguments, **more)
def refuse(*arguments, **more):
    raise AssertionError("a name was looked up")
socket.socket, socket.getaddrinfo, socket.create_connection = Forbidden, refuse, refuse
"""


def run_without_sockets(code: str, *arguments: object) -> str:
    environment = {**os.environ, "TRAINER_WEIGHTS": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", _FORBID + code, *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_socket_means_none() -> None:
    with pytest.raises(AssertionError, match="a socket was opened"):
        run_without_sockets("socket.socket()")


def test_a_directory_serves_a_training_without_any_network(
    tmp_path: Path, imagenet: Mapping[str, Tensor]
) -> None:
    (tmp_path / "가중치").mkdir()
    save_file(dict(imagenet), tmp_path / "가중치" / f"{RESNET18}.safetensors")
    data = make(Task.CLASSIFICATION, tmp_path / "data", images=12, seed=1)
    code = """
import trainer
job = trainer.Job(
    task="image-classification", model="resnet18", weights=sys.argv[1], output=sys.argv[4], gpus=0,
    training_data=sys.argv[2], validation_data=sys.argv[3],
    settings={"number_of_epochs": 1, "number_of_workers": 0, "training_crop_size": 32,
              "validation_crop_size": 32, "training_batch_size": 4, "learning_rate": 1e-8},
)
print(trainer.fit(job).read_result().model_path)
"""
    run = tmp_path / "run"
    arguments = (tmp_path / "가중치", data.train, data.validation, run)
    assert run_without_sockets(code, *arguments).strip().endswith("model")
    log = (run / "trainer.log").read_text("utf-8")
    assert f"tensors from {tmp_path / '가중치' / RESNET18}.safetensors; made for other classes" in log
    trained = torch.load(run / "model/artifacts/weights.pt", weights_only=True)
    assert torch.allclose(trained["conv1.weight"], imagenet["conv1.weight"], atol=1e-4)
    # The head, which is new, starts with the loss of a uniform guess.
    assert trained["fc.weight"].abs().max() < 0.01
    assert trained["fc.bias"].abs().max() < 1e-4
    # And what that run trained can be trained further: the same classes, so the head too.
    spec = Spec.from_json((run / "model/artifacts/spec.json").read_text("utf-8"))
    for given in (run, run / "model", run / "checkpoints/best.ckpt", run / "checkpoints/last.ckpt"):
        network, loaded = load(create(spec), given)
        assert loaded.fresh == ()
        assert torch.equal(network.state_dict()["fc.weight"], trained["fc.weight"]), given
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert Spec.from_json(checkpoint["spec"]) == spec


def test_a_directory_serves_torchvision_and_ultralytics_without_any_network(tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "part")
    name = f"resnet18-{hashlib.sha256((tmp_path / 'part').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "part").rename(tmp_path / name)
    whole: Any = family_of(Task.DETECTION, "yolo11n").build()
    whole.args = {"imgsz": 640}
    torch.save({"model": whole.half()}, tmp_path / "yolo11n.pt")
    code = """
import dataclasses
from trainer.models import Spec, create
from trainer.models.weights import loading as weights
directory, name = sys.argv[1:3]
for text in sys.argv[3:]:
    spec = Spec.model_validate_json(text)
    family = create(spec)
    published = family.published()
    if spec.family == "rcnn":  # whose real file the test cannot make
        published = dataclasses.replace(published, files=(name,))
    print(weights.load(family.build(), spec.model, published, directory, spec))
"""
    specs = [family_of(Task.DETECTION, model).spec for model in ("fasterrcnn_resnet18_fpn", "yolo11n")]
    printed = run_without_sockets(code, tmp_path, name, *(spec.model_dump_json() for spec in specs))
    first, second = printed.splitlines()
    assert f"tensors from {tmp_path / name} (of the backbone alone);" in first
    assert f"tensors from {tmp_path / 'yolo11n.pt'}" in second


def test_a_runs_checkpoint_names_its_spec(tmp_path: Path) -> None:
    spec = family_of(Task.CLASSIFICATION, "resnet18").spec
    file = tmp_path / "best.ckpt"
    torch.save({SPEC_KEY: spec.to_json(), "state_dict": {}}, file)
    assert spec_of(str(file)) == spec
    torch.save({"state_dict": {}}, file)
    assert spec_of(str(file)) is None
