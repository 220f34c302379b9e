"""The commands about data, models and weights: `validate`, `models`, `weights` and `sample-data`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import libraries_loaded_by, trainer
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")


def write_lines(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.fresh_processes
def test_validate_summarises_valid_data_without_torch(digits: Path) -> None:
    loaded, printed = libraries_loaded_by(
        "validate",
        digits / "train.jsonl",
        digits / "validation.jsonl",
        "--task",
        "object-detection",
        "--images",
    )
    assert loaded == []
    assert printed.startswith("10 images, ")
    done = trainer("validate", "--data", digits / "train.jsonl", "--task", "image_object_detection")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("8 images, ")


def test_validate_prints_every_problem(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(digits / "images")
    box = {"label": "one", "topX": 0.1, "topY": 0.1, "bottomX": 0.5, "bottomY": 0.5}
    images = [f"images/train/{i:05}.jpg" for i in range(5)]
    path = write_lines(
        tmp_path / "데이터.jsonl",
        {"image_url": images[0], "label": [box]},
        "{not json",
        {"image_url": images[1], "label": [box | {"bottomX": 37}]},
        {"image_url": images[2], "label": [box | {"topX": 0.7}]},
        {"image_url": "images/없음.jpg", "label": []},
        {"image_url": images[3], "label": "one"},
        {"image_url": images[4]},
    )
    done = trainer("validate", path, "--task", "object-detection")
    assert done.returncode == 1
    assert done.stderr == ""
    for line in range(2, 8):
        assert f"{path}:{line}: " in done.stdout, line
    assert not any(line.strip().startswith(f"{path}:1: ") for line in done.stdout.splitlines())
    assert "label[0].bottomX" in done.stdout
    assert "pixels" in done.stdout
    assert "1 images" in done.stdout


def test_class_names_outside_the_terminals_encoding_are_escaped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "wrong.jsonl", {"image_url": "a.png", "label": ["사과 🍌"]})
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "validate", str(path), "--task", "image-classification"],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "\\uc0ac\\uacfc \\U0001f34c" in done.stdout


def test_validate_succeeds_with_warnings(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(digits / "images")
    line = {"image_url": "images/train/00000.jpg", "label": [], "colour": "red"}
    path = write_lines(tmp_path / "train.jsonl", line)
    done = trainer("validate", path, "--task", "object-detection")
    assert "warning: " in done.stdout
    assert "colour" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.jsonl", "--task", "object-detection"),
        ("missing.jsonl", "--task", "nonsense"),
        ("missing.jsonl", "--task", "object-detection", "--datastore", "blob"),
    ],
)
def test_validate_fails_for_missing_input(arguments: tuple[str, ...]) -> None:
    done = trainer("validate", *arguments)
    assert done.returncode == 1
    assert arguments[-1] in done.stdout + done.stderr or arguments[0] in done.stdout


def test_validate_maps_datastores(digits: Path, tmp_path: Path) -> None:
    url = "azureml://subscriptions/1/datastores/blob/paths/images/train/00000.jpg"
    path = write_lines(tmp_path / "train.jsonl", {"image_url": url, "label": []})
    unmapped = trainer("validate", path, "--task", "object-detection")
    assert unmapped.returncode == 1
    assert "--datastore blob=DIR_OR_URL" in unmapped.stdout
    mapped = trainer(
        "validate", path, "--task", "object-detection", "--datastore", f"blob={digits}", "--images"
    )
    assert f"{path}:1: " not in mapped.stdout
    assert mapped.stdout.rstrip().splitlines()[-1].startswith("1 images")


def test_real_data_as_azure_users_hold_them_are_valid(shared_data: Path) -> None:
    folder = shared_data / "fridge_azure"
    tables = sorted(path.parent for path in folder.glob("*/MLTable"))
    store = f"workspaceblobstore={folder / 'datastore'}"
    done = trainer("validate", *tables, "--task", "object-detection", "--datastore", store, "--images")
    assert done.returncode == 0, done.stdout
    assert "6 images" in done.stdout


@pytest.mark.fresh_processes
def test_models_are_listed_for_all_tasks_or_one() -> None:
    loaded, printed = libraries_loaded_by("models")
    assert loaded == []
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    rows = {line.split()[0]: line for line in lines}
    tasks = "image-classification, image-classification-multilabel"
    licences = "timm, Apache-2.0 ImageNet-1k; Apache-2.0"
    assert rows["resnet18"] == f"resnet18 {tasks} 11.7 M 224 {licences} no"
    assert rows["fasterrcnn_resnet50_fpn"].startswith(
        "fasterrcnn_resnet50_fpn object-detection 41.8 M 600–1333 torchvision, BSD-3-Clause COCO; "
    )
    assert rows["yolo11x"] == "yolo11x object-detection 57.0 M 640 ultralytics, AGPL-3.0 COCO; AGPL-3.0 no"
    assert rows["timm/NAME"].startswith(f"timm/NAME {tasks} timm, Apache-2.0")
    assert [line for line in lines if line.startswith("hf/")] == [
        f"hf/ORG/NAME {of_tasks} transformers, Apache-2.0 its model card's"
        for of_tasks in (tasks, "object-detection")
    ]
    for size in ("small", "medium", "large", "extra_large"):
        assert f" yolov5 --model-size {size} " in printed
    loaded, printed = libraries_loaded_by("models", "--task", "image_instance_segmentation")
    assert loaded == []
    assert "maskrcnn_resnet50_fpn (default)" in printed
    assert "fasterrcnn" not in printed
    wrong = trainer("models", "--task", "segmentation")
    assert (wrong.returncode, wrong.stdout) == (1, "")


@pytest.mark.fresh_processes
def test_models_answers_within_a_second() -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert trainer("models", COVERAGE_PROCESS_CONFIG="").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1, times


@pytest.mark.fresh_processes  # where weights are is read on import
def test_models_shows_which_weights_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here() -> dict[str, str]:
        lines = trainer("models").stdout.splitlines()
        return {line.split()[0]: line.split()[-1] for line in lines if line.strip()}

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth").touch()
    repository = tmp_path / "hub/models--timm--resnet18.a1_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123", encoding="utf-8")
    (repository / "snapshots/0123").mkdir(parents=True)
    (repository / "snapshots/0123/model.safetensors").touch()
    (tmp_path / "가중치").mkdir()
    (tmp_path / "가중치/yolo11n.pt").touch()
    monkeypatch.setenv("TRAINER_WEIGHTS", str(tmp_path / "가중치"))
    found = here()
    assert found["fasterrcnn_resnet50_fpn"] == found["resnet18"] == "cache"
    assert found["yolo11n"] == "TRAINER_WEIGHTS"
    assert found["resnet34"] == found["yolo11s"] == found["fasterrcnn_resnet18_fpn"] == "no"


def test_weights_prints_file_and_destination() -> None:
    done = trainer("weights", "--model", "resnet18")
    assert (done.returncode, done.stderr) == (0, "")
    assert "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in done.stdout
    assert "trainer fit --task image-classification --model resnet18 --weights weights" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "yolo1n"), "did you mean yolo11n"),
        (("--model", "resnet18", "--task", "object-detection"), "not for object-detection"),
        (("--model", "가나다"), "`trainer models` lists the names"),
        ((), "--model"),
    ],
)
def test_weights_rejects_unknown_models(arguments: tuple[str, ...], said: str) -> None:
    done = trainer("weights", *arguments)
    assert done.returncode not in (0, None)
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("task", Task)
def test_sample_data_are_valid_data(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    made = trainer("sample-data", task, folder, "--images", 6, "--seed", 3)
    assert made.returncode == 0, made.stderr
    checked = trainer(
        "validate", folder / "train.jsonl", folder / "validation.jsonl", "--task", task, "--images"
    )
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] != ""
    assert "6 images" in checked.stdout


def test_sample_data_never_overwrites(digits: Path) -> None:
    before = (digits / "train.jsonl").read_bytes()
    done = trainer("sample-data", "object-detection", digits)
    assert done.returncode == 1
    assert str(digits) in done.stderr
    assert (digits / "train.jsonl").read_bytes() == before
