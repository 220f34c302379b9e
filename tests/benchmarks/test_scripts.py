"""Runs every script at sizes at which its measurements mean nothing."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks import accuracy, automode, data, few_images, measuring, training
from benchmarks.contenders import ceiling, timm_loop, torchvision_loop, ultralytics_trainer
from benchmarks.contenders.common import Options
from benchmarks.measuring import ROOT, Measurements
from trainer.models import create, specify
from trainer.models.defaults import resolve
from trainer.models.weights import loading as weights
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")


@pytest.fixture(autouse=True)
def _libraries_as_they_were() -> Iterator[None]:
    """ultralytics, imported, replaces functions of Pillow and PyTorch; contenders set the threads."""
    opened, saved, threads = PIL.Image.open, torch.save, torch.get_num_threads()
    yield
    PIL.Image.open, torch.save = opened, saved
    torch.set_num_threads(threads)


def run(script: str, *arguments: object, folder: Path) -> str:
    """A script's standard output, started as its documentation says, elsewhere."""
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--tiny", *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout, done.stdout + done.stderr
    return done.stdout


def table(text: str) -> list[dict[str, str]]:
    """The last table's rows by heading."""
    lines = [line.strip()[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    start = max(index for index, row in enumerate(rows) if set("".join(row)) <= set("-:"))
    return [dict(zip(rows[start - 1], row, strict=True)) for row in rows[start + 1 :]]


def test_training(tmp_path: Path) -> None:
    (row,) = table(run("training.py", "--only", "resnet50", folder=tmp_path))
    assert row["workload"].startswith("timm/test_resnet, 64 px, batch 2, 4 images")
    assert row["peer"] == "timm"
    check_training(row)
    assert float(row["peak MB"].replace(",", "")) > 100


def check_training(row: dict[str, str]) -> None:
    assert "met" in row["goal"] or "missed" in row["goal"]
    assert float(row["ours, images/s"].split()[0].replace(",", "")) > 0
    assert float(row["ours / peer"].split()[0].replace(",", "")) > 0
    assert float(row["ours / ceiling"].split()[0]) > 0


@pytest.mark.parametrize(("name", "peer"), [("yolo11n-seg", "ultralytics"), ("fasterrcnn", "torchvision")])
def test_training_of_the_other_rows(
    name: str, peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: starting one for each contender is what test_training shows."""

    def run_here(module: str, options: dict[str, object], environment: dict[str, str]) -> Measurements:
        contender = import_module(module)
        train = contender.measure if contender is ceiling else contender.train
        measurements: Measurements = train(Options(**options))  # type: ignore[arg-type]
        return {"peak_mb": 0.0, **measurements}

    monkeypatch.setattr(measuring, "run_python", run_here)
    monkeypatch.setattr(ceiling, "_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    work = next(each for each in training.QUICK if each.name == name)
    asked = argparse.Namespace(
        tiny=True, device="cpu", epochs=2, rounds=1, workers=0, threads=1, compile=False
    )
    (row,) = training.measure(work, tmp_path, asked)
    cells = dict(zip(training.HEADERS, row, strict=True))
    assert cells["peer"] == peer
    check_training(cells)


@pytest.mark.parametrize(
    ("contender", "task", "model"),
    [
        (ultralytics_trainer, Task.SEGMENTATION, "yolo11n-seg"),
        (torchvision_loop, Task.SEGMENTATION, "maskrcnn_resnet18_fpn"),
        (timm_loop, Task.MULTILABEL, "timm/test_resnet"),
    ],
)
def test_peers_train_and_are_scored_by_our_metrics(
    contender: object, task: Task, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train, validation = data.make(task, tmp_path / "data", 4, (96, 80))
    options = Options(
        task.value, model, str(train), str(validation), str(tmp_path / "run"),
        epochs=1, batch=2, image_size=64, workers=0, threads=1, score=True,
    )  # fmt: skip
    measurements = contender.train(options)  # type: ignore[attr-defined]
    assert measurements["images_per_second"] > 0
    assert -1 <= measurements["metric"] <= 1


def test_torchvisions_loop_starts_from_the_same_published_backbone(tmp_path: Path) -> None:
    published = timm.create_model("test_efficientnet").state_dict()
    save_file(published, tmp_path / "test_efficientnet.safetensors")
    train, validation = data.make(Task.DETECTION, tmp_path / "data", 4, (96, 80))
    options = Options(
        "object-detection", "fasterrcnn_resnet50_fpn", str(train), str(validation), "",
        backbone="timm/test_efficientnet", weights=str(tmp_path), image_size=64,
    )  # fmt: skip
    peer = torchvision_loop.build(options)
    settings = resolve(Task.DETECTION, options.model, {"backbone": options.backbone})
    family = create(specify(Task.DETECTION, options.model, settings, options.classes, pretrained=True))
    ours = family.build()
    weights.load(ours, options.model, family.published(), str(tmp_path), family.spec)
    for layer in chain.from_iterable(family.freeze_groups(ours)[: settings.layers_to_freeze]):
        layer.requires_grad_(False)
    counts = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in (peer, ours)]
    assert counts[0] == counts[1]
    images = torch.rand(1, 3, 64, 96)
    own, others = (network.eval().backbone.body for network in (ours, peer))
    maps = own.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
    for one, other in zip(maps, others(images), strict=True):
        torch.testing.assert_close(one, other)
    assert tuple(peer.transform.image_mean) == tuple(ours.transform.image_mean)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "counts"),
    [("few", [5] * 5), ("imbalanced", [2, 3, 6, 10, 16]), ("noisy", [8] * 5)],
)
def test_made_sets_have_their_counts(name: str, counts: list[int]) -> None:
    images = {
        label: [{"image_url": f"{label}{number}.jpg", "label": label} for number in range(20)]
        for label in "abcde"
    }
    lines = few_images._drawn(name, images, random.Random(1))
    of_class = Counter(line["image_url"][0] for line in lines)
    assert sorted(of_class.values()) == counts
    wrong = [line for line in lines if line["label"] != line["image_url"][0]]
    assert len(wrong) == (8 if name == "noisy" else 0)
    assert lines == few_images._drawn(name, images, random.Random(1))
    assert lines != few_images._drawn(name, images, random.Random(2))


def test_few_images_trains_and_averages_the_seeds_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[int] = []

    def train(name: str, contender: object, seed: int, *others: object) -> float:
        seeds.append(seed)
        return seed / 10

    monkeypatch.setattr(few_images, "train", train)
    command = ["few_images.py", "--data-root", str(tmp_path), "--only", "few", "--contenders", "probe"]
    command += ["--results", str(tmp_path / "results.json")]
    for asked in ("--rounds 2", "--seeds 4 3"):
        monkeypatch.setattr(sys, "argv", [*command, *asked.split()])
        few_images.main()
    assert seeds == [0, 1, 4, 3]
    (row,) = table(capsys.readouterr().out)
    assert row["probe"] == "0.350 ± 0.071"  # the mean of seeds 3 and 4 alone


def test_accuracy_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    prefix = "fridge timm/test_resnet 64px b4 e1 cpu made"
    before = {f"{prefix} ours seed 0": 0.75, f"{prefix} timm_loop seed 0": 0.5}
    results.write_text(json.dumps(before))
    text = run("accuracy.py", "--only", "fridge", "--results", results, folder=tmp_path)
    (row,) = table(text)
    after = json.loads(results.read_text())
    assert after.keys() - before.keys() == {f"{prefix} ours, modern seed 0"}
    assert before.items() <= after.items()
    assert row["peer's mean"] == "0.500"
    assert row["ours"] == "0.750"
    new = after[f"{prefix} ours, modern seed 0"]
    assert row["ours, modern"] == f"{new['value']:.3f}"
    commits = f"unknown, {new['commit']}" if new["commit"] else "unknown"  # earlier files do not name it
    assert f"Trained at commits: {commits}." in text


def test_accuracy_is_judged_by_the_spread() -> None:
    assert "met" in accuracy.judgement([0.80, 0.84], [0.83, 0.85])
    assert "missed" in accuracy.judgement([0.80, 0.81], [0.90, 0.91])
    assert accuracy.judgement([0.8], [0.9]) == "–"
    assert "missed" in accuracy.judgement([0.80, 0.84], [0.83, 0.85], better=True)
    assert "met" in accuracy.judgement([0.84, 0.86], [0.83, 0.85], better=True)


def test_accuracy_does_not_take_made_data_for_real_ones(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"cards/detection/train.jsonl: is missing|is missing"):
        run("accuracy.py", "--data-root", tmp_path, "--table", folder=tmp_path)


def test_automode_counts_trials_that_end_in_time_and_chooses_by_validation() -> None:
    trials = [
        automode.Trial(best=0.5, seconds=40, test=0.3),
        automode.Trial(values=[0.9], seconds=5, pruned=True),
        automode.Trial(best=0.6, seconds=10, test=0.2),
        automode.Trial(best=0.9, seconds=6, test=0.9),
    ]
    bench: Any = SimpleNamespace(seconds=60.0)
    assert automode.Bench.best_of(bench, iter(trials)) == (0.2, 3, 55)
    slow = automode.Trial(best=0.1, seconds=100, test=0.4)
    assert automode.Bench.best_of(bench, iter([slow, *trials])) == (0.4, 1, 100)


def test_automode_replays_a_run_as_far_as_it_would_have_gone() -> None:
    trial = automode.Trial([0.1, 0.2, 0.3, 0.4], best=0.4, seconds=8, test=0.5)
    pruned = automode.Trial([0.1, 0.2], seconds=4, pruned=True)
    assert automode._replayed(trial, lambda step, _: step == 2) == pruned
    assert automode._replayed(trial, lambda step, _: step == 4) is trial  # there is nothing left to prune


def test_evaluation(tmp_path: Path) -> None:
    wall, processor = table(run("evaluation.py", folder=tmp_path))
    assert "≥ 5" in wall["goal"]
    assert float(processor["pycocotools / ours"].split()[0]) > 0


def test_sweep_overhead(tmp_path: Path) -> None:
    text = run("sweep_overhead.py", "--trials", 1, folder=tmp_path)
    assert "Goal, under 5 % of a trial of 5 minutes, 15 s: " in text
    rows = {row["part of a trial"]: row["mean seconds"].strip("*") for row in table(text)}
    assert float(rows["process start and imports"]) > 0
    rest = float(rows["the rest: start, end and waiting, shared by 1"])
    assert 0 < rest < float(rows["**all but training**"]), "no part is counted twice"


def test_input_pipeline(tmp_path: Path) -> None:
    text = run("input_pipeline.py", folder=tmp_path)
    for heading in (
        "### Lines",
        "### Decoding and augmentation",
        "### JPEGs at a reduced scale",
        "### The loader",
    ):
        assert heading in text
    assert "ultralytics, masks" in text
    assert "1/2" in text, "a reduced scale"


def test_startup(tmp_path: Path) -> None:
    rows = table(run("startup.py", folder=tmp_path))
    assert {"trainer --help", "trainer fit --help", "trainer validate, 10 lines"} <= {
        row["operation"] for row in rows
    }
    peers = {row["peer"]: row["peer / ours"] for row in rows}
    for peer in (
        "yolo help",
        "mlflow --help",
        "timm loop",
        "ultralytics",
        "mlflow.pyfunc.load_model",
        "torch.load into timm's network",
    ):
        assert float(peers[peer].split()[0]) > 0


def test_explanations(tmp_path: Path) -> None:
    ours, peer, batched = table(run("explanations.py", "--threads", 1, folder=tmp_path))
    assert [ours["xrai"], peer["xrai"]] == ["fast: ours", "fast: saliency"]
    assert "met" in peer["goal"] or "missed" in peer["goal"]
    assert batched["goal"] == "–"
    assert float(peer["ours / saliency"].split()[0]) > 0
    # Of an untrained network and two steps: alike, not the same.
    assert float(peer["rank correlation"]) > 0.5


def test_data_are_the_same_for_ultralytics(tmp_path: Path) -> None:
    train, validation = data.make(Task.DETECTION, tmp_path / "data", 3, (96, 80))
    data.as_yolo(train, validation, Task.DETECTION, tmp_path / "yolo")
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    classes = data.all_classes(Task.DETECTION, train, validation)
    for index, line in enumerate(lines):
        rows = (tmp_path / f"yolo/labels/train/{index:06d}.txt").read_text().splitlines()
        assert len(rows) == len(line["label"])
        for row, box in zip(rows, line["label"], strict=True):
            label, x, y, width, height = map(float, row.split())
            assert classes[int(label)] == box["label"]
            assert [x - width / 2, y - height / 2] == pytest.approx([box["topX"], box["topY"]], abs=1e-4)
            assert [x + width / 2, y + height / 2] == pytest.approx(
                [box["bottomX"], box["bottomY"]], abs=1e-4
            )
        picture = tmp_path / f"yolo/images/train/{index:06d}.jpg"
        assert picture.samefile(train.parent / line["image_url"])
