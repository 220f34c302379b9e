"""The base package in an environment of its own: nothing is under the AGPL, and all other families work.

The environment is a real one, with the wheel of this checkout installed by pip. Its libraries are links to
those that run the tests, because PyTorch alone takes gigabytes, and only to the packages that the wheel
requires, directly or not.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from tests import hub_models
from tests.conftest import ROOT, in_ci
from tools.licences_page import base_requirements, closure, licence, normalised
from trainer.data.samples import make
from trainer.models.catalog import CARDS, find_for_any_task
from trainer.tasks import Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not in_ci(), reason="takes a minute; runs under CI=true"),
]

OFFLINE = {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
TRAIN = """
import json, sys
import trainer
from serving.predict import predict_files
from pathlib import Path

for name, job in json.loads(sys.argv[1]).items():
    run = trainer.fit(trainer.Job(output=name, gpus=0, tracking_uri="none", **job))
    (answer,) = predict_files(run.model, [Path(sys.argv[2])])
    print(name, sorted(set(answer) - {"image_url"}))
print("loaded", sorted({"ultralytics", "polars"} & set(sys.modules)))
"""


def top_level_names(package: Distribution) -> set[str]:
    """What a distribution installs into site-packages: names of packages, modules and its own metadata."""
    record = package.read_text("RECORD") or ""
    return {line.partition(",")[0].split("/")[0] for line in record.splitlines()} - {"..", "__pycache__", ""}


def link(packages: dict[str, Distribution], site_packages: Path) -> None:
    """Link to the files of some installed distributions, and to those of no others."""
    owners: dict[str, set[str]] = {}
    for package in distributions():
        for name in top_level_names(package):
            owners.setdefault(name, set()).add(normalised(package.name))
    for package in packages.values():
        for name in top_level_names(package):
            target = site_packages / name
            if owners[name] <= packages.keys():
                if not target.exists():
                    target.symlink_to(package.locate_file(name))
                continue
            for line in (package.read_text("RECORD") or "").splitlines():  # the folder has others' files, too
                file = line.partition(",")[0]
                if file.split("/")[0] == name and not (site_packages / file).exists():
                    (site_packages / file).parent.mkdir(parents=True, exist_ok=True)
                    (site_packages / file).symlink_to(package.locate_file(file))


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment in which only the base package is installed."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"
    for name in ("trainer", "serving"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    link(closure(base_requirements()), next(folder.glob("env/lib/python*/site-packages")))
    pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", *folder.glob("*.whl"))
    pip("--python", python, "check")  # no requirement of the wheel is missing
    return python.parent


def surroundings() -> dict[str, str]:
    """The environment variables, without the path of the tests' own libraries."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | OFFLINE


def run(program: Path, *arguments: object, code: int = 0) -> str:
    """Run a program in a folder without this checkout; returns its output."""
    command = [program, *map(str, arguments)]
    folder = program.parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, env=surroundings(), cwd=folder, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nothing_is_under_the_gpl() -> None:
    packages = closure(base_requirements())
    assert not {name for name in packages if name.startswith(("ultralytics", "polars"))}
    assert {name: text for name, package in packages.items() if "GPL" in (text := licence(package))} == {}


def test_models_are_listed_with_the_command_that_adds_the_others(environment: Path) -> None:
    listed = run(environment / "trainer", "models")
    assert "yolo11n" in listed
    assert "ultralytics is not installed: pip install 'image-trainer[yolo]' for YOLO models" in listed


def test_a_yolo_ends_before_the_data_with_what_to_do(environment: Path) -> None:
    job = ("--task", "object-detection", "--data", "missing.jsonl", "--model", "yolov5")
    error = run(environment / "trainer", "fit", *job, code=1)
    assert "yolov5 needs ultralytics, which is not installed; pip install 'image-trainer[yolo]'" in error
    assert "fasterrcnn_resnet18_fpn (BSD-3-Clause)" in error
    assert "Traceback" not in error


def test_every_installed_family_is_trained_packaged_and_served(environment: Path, tmp_path: Path) -> None:
    has = set(closure(base_requirements()))
    jobs = {}
    for card in CARDS.values():
        if normalised(card.library) not in has:
            continue
        if card.smallest_models:
            weights, model = "none", card.smallest_models[0]
            tasks = find_for_any_task(model, "model").tasks
        else:  # every model is one of the Hub, known by its files
            weights, model, tasks = str(tmp_path / "hub"), f"hf/acme/{card.name}", card.hub_tasks
            directory = tmp_path / "hub" / "acme" / card.name
            if Task.DETECTION in tasks:
                hub_models.write_detector(directory, "yolos")
            else:
                hub_models.write(directory, "vit")
        task = next(task for task in Task if task in tasks)
        data = make(task, tmp_path / card.name, images=8, seed=0)
        settings = {"number_of_epochs": 1, "training_batch_size": 4, "number_of_workers": 0, "random_seed": 0}
        jobs[card.name] = {
            "task": task,
            "model": model,
            "weights": weights,
            "training_data": str(data.train),
            "validation_data": str(data.validation),
            "settings": settings | dict(card.tiny_settings),
        }
    assert {"classifiers", "rcnn"} <= set(jobs)
    image = next((data.train.parent / "images").rglob("*.*"))
    output = run(environment / "python", "-W", "ignore", "-c", TRAIN, json.dumps(jobs), image)
    for name, job in jobs.items():
        assert f"{name} {['labels', 'probs'] if Task(job['task']).is_classification else ['boxes']}" in output
    assert "loaded []" in output

    served = environment.parents[1] / "rcnn"
    command = [environment / "trainer", "serve", served, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings()) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            text = base64.b64encode(image.read_bytes()).decode()
            body = json.dumps({"input_data": {"columns": ["image"], "data": [text]}}).encode()
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            assert "boxes" in json.loads(urllib.request.urlopen(request, timeout=60).read())[0]
        finally:
            server.terminate()
