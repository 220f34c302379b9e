"""What `trainer models` and `trainer weights` tell is what the libraries have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.conftest import needs_library
from tools import collect_published
from trainer.errors import JobError
from trainer.models import catalog, listing
from trainer.models.cards.shared import CLASSIFICATION
from trainer.models.published import PublishedModel, library_versions, published_models
from trainer.models.weights.sources import published_names
from trainer.tasks import Task

DUE = "it is due: python -m tools.collect_published"
SMALL = 4_000_000
"""Parameters up to which a network is built to count them, where it cannot be built without memory."""


def test_every_model_has_facts_and_a_library() -> None:
    names = [listing.with_size(entry, size) for entry, size in collect_published.models()]
    assert list(published_models()) == names, DUE
    # Models of the Hub are named by what is there, so their families may have no entries.
    listed = [card for card in catalog.CARDS.values() if not card.hub_tasks or card.smallest_models]
    assert {entry.family for entry in catalog.MODELS.values()} == {card.name for card in listed}
    assert library_versions().keys() == {card.library for card in listed}


@pytest.mark.parametrize("model", catalog.MODELS)
def test_the_facts_are_those_of_the_libraries(model: str) -> None:
    entry = catalog.MODELS[model]
    library = entry.card.library
    needs_library(library)
    for size in listing.sizes(entry):
        facts = published_models()[listing.with_size(entry, size)]
        if library != "ultralytics" or facts.parameters <= SMALL:
            measured = collect_published.measure(entry, size)
            assert measured.parameters == facts.parameters, DUE
        if metadata.version(library) == library_versions()[library]:  # another may publish other files
            published = listing.family_of(entry, entry.tasks[0], size).published()
            names = published_names(published)
            told = (facts.files, facts.hub, facts.licence)
            assert (names, published.hub, published.licence) == told, DUE


def test_torchvisions_own_count_is_ours() -> None:
    from torchvision.models import get_model_weights

    for name in ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"):
        assert published_models()[name].parameters == get_model_weights(name).COCO_V1.meta["num_params"]


def test_the_written_facts_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = PublishedModel(12_345, ("a.pt",), "", "")
    monkeypatch.setattr(collect_published, "models", lambda: [(catalog.MODELS["resnet18"], "")])
    monkeypatch.setattr(collect_published, "measure", lambda *_: one)
    file = tmp_path / "published.json"
    collect_published.write(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["libraries"] == {name: metadata.version(name) for name in content["libraries"]}
    assert content["models"] == {"resnet18": {**asdict(one), "files": ["a.pt"]}}


def test_a_new_library_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {name: find_spec(name) and metadata.version(name) for name in library_versions()}
    assert [name for name in library_versions() if there[name] != library_versions()[name]] == [
        text.split()[0] for text in listing.other_versions()
    ]
    monkeypatch.setitem(library_versions(), "timm", "0.0.1")
    (said,) = [text for text in listing.other_versions() if text.startswith("timm")]
    assert said == f"timm {metadata.version('timm')} is installed, the table describes 0.0.1"


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_looked_into_is_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert listing._torch_cache() == Path(torch.hub.get_dir()) / "checkpoints"


def test_rows_carry_the_tasks_default() -> None:
    for task in Task:
        rows = list(listing.rows(task))
        assert [row.model for row in rows if "(default)" in row.model] == [f"{task.default_model} (default)"]
        assert all(task in row.tasks for row in rows)


def test_a_models_sizes_are_told_by_the_flags_of_fit() -> None:
    models = [row.model for row in listing.rows(Task.DETECTION)]
    assert "yolov5 --model-size small" in models
    assert not [model for model in models if model.startswith("yolov5 ") and "--model-size" not in model]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "fasterrcnn_resnet50_fpn",
            (
                "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
                "SHA-256, which must begin with 258fb6c6",
                "trainer fit --task object-detection --model fasterrcnn_resnet50_fpn --weights weights",
                "TRAINER_WEIGHTS=weights",
            ),
        ),
        (
            "resnet18",
            (
                "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
                "save as      resnet18.a1_in1k.safetensors",
                "mkdir -p weights",
            ),
        ),
        ("timm/vit_tiny_patch16_224", ("vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors",)),
        (
            "rfdetr-nano",
            (
                "download     https://storage.googleapis.com/rfdetr/nano_coco/checkpoint_best_regular.pth",
                "save as      rf-detr-nano.pth",
                "its MD5, which must be fb6504cce7fbdc783f7a46991f07639f",
                "of the weights: Apache-2.0; of transformers: Apache-2.0",
            ),
        ),
        ("yolo11n", ("yolo11n.pt", "publishes no hash", "pickle", "--weights weights/yolo11n.pt")),
        ("yolov5", ("yolov5su.pt", "yolov5mu.pt", "yolov5lu.pt", "yolov5xu.pt", "--model-size small")),
    ],
)
def test_weights_says_what_to_download_and_where_to_put_it(model: str, said: tuple[str, ...]) -> None:
    text = "\n".join(listing.instructions(model, None))
    for words in said:
        assert words in text


def test_the_instructions_tell_what_is_here_and_keep_to_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yolo11n.pt").touch()
    assert "  is here      no" in listing.instructions("yolo11n", None)
    (tmp_path / "Roboflow/rf-detr-nano").mkdir(parents=True)
    (tmp_path / "Roboflow/rf-detr-nano/model.safetensors").touch()
    monkeypatch.setenv("TRAINER_WEIGHTS", str(tmp_path))
    for model in ("yolo11n", "rfdetr-nano"):
        assert "  is here      TRAINER_WEIGHTS" in listing.instructions(model, None)
    assert "  is here      no" in listing.instructions("rfdetr-small", None)
    text = "\n".join(listing.instructions("resnet18", Task.MULTILABEL))
    assert "trainer fit --task image-classification-multilabel --model resnet18 " in text


def test_the_weights_of_a_detector_on_another_backbone_are_the_backbones() -> None:
    backbone = "timm/convnext_tiny.dinov3_lvd1689m"
    text = "\n".join(listing.instructions("maskrcnn_resnet50_fpn", None, backbone))
    for words in (
        f"maskrcnn_resnet50_fpn --backbone {backbone}  (instance-segmentation)",
        "https://huggingface.co/timm/convnext_tiny.dinov3_lvd1689m/resolve/main/model.safetensors",
        "save as      convnext_tiny.dinov3_lvd1689m.safetensors",
        "of the weights: dinov3-license; of timm: Apache-2.0; of torchvision: BSD-3-Clause",
        "holds        the backbone",
        f"--model maskrcnn_resnet50_fpn --backbone {backbone} --weights weights",
    ):
        assert words in text
    with pytest.raises(JobError, match="backbone: applies only to R-CNNs, not to yolo11n"):
        list(listing.instructions("yolo11n", None, backbone))


@pytest.mark.parametrize("task", [*Task, None])
def test_the_table_names_the_models_whose_backbone_can_be_replaced(task: Task | None) -> None:
    rows = [row for row in listing.rows(task) if "--backbone timm/NAME" in row.model]
    if task in CLASSIFICATION:
        assert not rows
    else:
        (row,) = rows
        assert row.tasks == (Task.DETECTION, Task.SEGMENTATION)
        assert row.library == "torchvision, BSD-3-Clause; timm, Apache-2.0"


def test_what_timm_does_not_know_is_refused() -> None:
    with pytest.raises(JobError, match="no_such_net"):
        list(listing.instructions("timm/no_such_net", None))


def test_the_table_needs_no_network() -> None:
    code = (
        "import socket, sys\n"
        "class Forbidden(socket.socket):\n"
        "    def __init__(self, *arguments, **more): raise AssertionError\n"
        "socket.socket = socket.create_connection = socket.getaddrinfo = Forbidden\n"
        "from trainer.cli import main\n"
        "sys.argv = ['trainer', *sys.argv[1:]]\n"
        "main()"
    )
    for arguments in (["models"], ["weights", "--model", "resnet18"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
