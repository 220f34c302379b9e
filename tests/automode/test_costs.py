"""What a training step costs: figures that hold, and how they go with size and machine."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

import pytest

from trainer.automode import costs
from trainer.automode.candidates import GROUPS
from trainer.automode.costs import MEASURED, StepCost
from trainer.automode.data_statistics import DataStatistics
from trainer.automode.hardware import Hardware
from trainer.models import catalog
from trainer.models.published import VERSIONS
from trainer.tasks import Task

FACTS = DataStatistics(images=1000, classes=3, width=1000, height=1000)
GPU = Hardware(gpus=1, memory=24, bandwidth=1000, cores=16)
CPU = Hardware(gpus=0, memory=0, bandwidth=0, cores=2)


def test_the_cost_of_every_candidate_is_known() -> None:
    tried = {
        name
        for tables in GROUPS.values()
        for groups in tables.values()
        for group in groups
        for name in (*group.models, *group.larger)
    }
    assert tried <= MEASURED.keys()


@pytest.mark.parametrize("model", ["resnet18", "yolo11n"])
def test_the_figures_are_those_that_are_counted(model: str) -> None:
    from tools.measure_costs import measure

    entry = catalog.MODELS[model]
    library = "timm" if entry.family == "classifiers" else "ultralytics"
    if version(library) != VERSIONS[library]:
        pytest.skip(f"counted with {library} {VERSIONS[library]}")
    counted, known = measure(model, entry.tasks[0]), MEASURED[model]
    assert counted.side == known.side
    assert counted.forward_gmacs == pytest.approx(known.forward_gmacs, rel=0.02)
    assert counted.activations_mib == pytest.approx(known.activations_mib, rel=0.05)


def test_twice_the_side_costs_four_times_as_much() -> None:
    entry = catalog.MODELS["yolo11n"]
    known = MEASURED["yolo11n"]
    assert costs.step_cost(entry) == known
    assert costs.step_cost(entry, 1280) == StepCost(1280, 4 * known.forward_gmacs, 4 * known.activations_mib)


def test_other_models_cost_as_those_of_their_family() -> None:
    large, medium = catalog.MODELS["yolo11x"], MEASURED["yolo11m"]
    assert costs.step_cost(large).activations_mib > 2 * medium.activations_mib
    assert costs.step_cost(catalog.MODELS["yolov5"]).activations_mib == pytest.approx(
        medium.activations_mib, rel=0.5
    )
    unknown = catalog.find("timm/anything", Task.CLASSIFICATION)
    assert costs.step_cost(unknown) == MEASURED["resnet50"]


def test_memory() -> None:
    entry = catalog.MODELS["yolo26m"]
    assert costs.fits(entry, 640, 16, GPU)
    assert not costs.fits(entry, 1280, 16, GPU)
    assert not costs.fits(entry, 640, 16, dataclasses.replace(GPU, memory=8))
    assert costs.fits(entry, 640, 2, dataclasses.replace(GPU, memory=8))
    assert costs.fits(entry, 1280, 16, CPU)


def test_time() -> None:
    def epoch(
        model: str, machine: Hardware = GPU, facts: DataStatistics = FACTS, side: int = 640, views: int = 1
    ) -> float:
        entry = catalog.MODELS[model]
        return costs.epoch_seconds(entry, side, 8, facts, machine, views)

    assert epoch("yolo26m", facts=dataclasses.replace(FACTS, images=2000)) == pytest.approx(
        2 * epoch("yolo26m")
    )
    assert epoch("yolo26m", views=5) == pytest.approx(5 * epoch("yolo26m"))
    assert epoch("yolo26m", side=1280) > 2 * epoch("yolo26m")
    assert epoch("yolo26m") > epoch("yolo26s")
    twice = dataclasses.replace(GPU, gpus=2)
    assert epoch("fasterrcnn_resnet50_fpn_v2", twice) < epoch("fasterrcnn_resnet50_fpn_v2")
    assert epoch("yolo11n", CPU, side=320) > epoch("yolo11n", side=320)
    # Large images wait for the processes that decode them, not for the GPU.
    large = dataclasses.replace(FACTS, width=8000, height=6000)
    assert epoch("yolo11n", facts=large) == pytest.approx(epoch("yolo26s", facts=large))
    assert costs.affordable_epochs(costs.trial_seconds(7, 10.0), 10.0) == 7
    assert costs.affordable_epochs(1.0, 10.0) == 1
