"""Estimates of a training step: the measured costs, and how memory and time depend on size and hardware."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

import pytest

from tests.conftest import needs_library
from trainer.automode import costs
from trainer.automode.candidates import GROUPS
from trainer.automode.costs import MEASURED, StepCost
from trainer.automode.data_statistics import DataStatistics
from trainer.automode.hardware import Hardware
from trainer.models import catalog
from trainer.models.published import library_versions
from trainer.tasks import Task

DATA = DataStatistics(images=1000, classes=3, width=1000, height=1000)
GPU = Hardware(gpus=1, memory=24, bandwidth=1000, cores=16)
CPU = Hardware(gpus=0, memory=0, bandwidth=0, cores=2)


def test_every_candidate_was_measured() -> None:
    tried = {
        name
        for tables in GROUPS.values()
        for groups in tables.values()
        for group in groups
        for name in (*group.models, *group.larger)
    }
    assert tried <= MEASURED.keys()


@pytest.mark.parametrize("model", ["resnet18", "yolo11n"])
def test_costs_equal_a_new_measurement(model: str) -> None:
    from tools.measure_costs import measure

    entry = catalog.MODELS[model]
    library = "timm" if entry.family == "classifiers" else "ultralytics"
    needs_library(library)
    if version(library) != library_versions()[library]:
        pytest.skip(f"counted with {library} {library_versions()[library]}")
    counted, known = measure(model, entry.tasks[0]), MEASURED[model]
    assert counted.side == known.side
    assert counted.forward_gmacs == pytest.approx(known.forward_gmacs, rel=0.02)
    assert counted.activations_mib == pytest.approx(known.activations_mib, rel=0.05)


def test_cost_grows_with_the_square_of_the_side() -> None:
    entry = catalog.MODELS["yolo11n"]
    known = MEASURED["yolo11n"]
    assert costs.step_cost(entry) == known
    assert costs.step_cost(entry, 1280) == StepCost(1280, 4 * known.forward_gmacs, 4 * known.activations_mib)


def test_cost_of_other_models_scales_with_their_parameters() -> None:
    large, medium = catalog.MODELS["yolo11x"], MEASURED["yolo11m"]
    assert costs.step_cost(large).activations_mib > 2 * medium.activations_mib
    assert costs.step_cost(catalog.MODELS["yolov5"]).activations_mib == pytest.approx(
        medium.activations_mib, rel=0.5
    )
    unknown = catalog.find("timm/anything", Task.CLASSIFICATION)
    assert costs.step_cost(unknown) == MEASURED["resnet50"]


def test_fits_depends_on_side_batch_and_memory() -> None:
    entry = catalog.MODELS["yolo26m"]
    assert costs.fits(entry, 640, 16, GPU)
    assert not costs.fits(entry, 1280, 16, GPU)
    assert not costs.fits(entry, 640, 16, dataclasses.replace(GPU, memory=8))
    assert costs.fits(entry, 640, 2, dataclasses.replace(GPU, memory=8))


def test_everything_fits_on_the_cpu() -> None:
    assert costs.fits(catalog.MODELS["yolo26m"], 1280, 16, CPU)


def seconds(
    model: str, hardware: Hardware = GPU, data: DataStatistics = DATA, side: int = 640, views: int = 1
) -> float:
    """Estimated time of an epoch with batches of eight."""
    return costs.epoch_seconds(catalog.MODELS[model], side, 8, data, hardware, views)


def test_epoch_seconds_grow_with_image_count() -> None:
    twice = dataclasses.replace(DATA, images=2000)
    assert seconds("yolo26m", data=twice) == pytest.approx(2 * seconds("yolo26m"))


def test_epoch_seconds_grow_with_tiles() -> None:
    assert seconds("yolo26m", views=5) == pytest.approx(5 * seconds("yolo26m"))


def test_epoch_seconds_grow_with_image_side() -> None:
    assert seconds("yolo26m", side=1280) > 2 * seconds("yolo26m")


def test_larger_models_take_longer() -> None:
    assert seconds("yolo26m") > seconds("yolo26s")


def test_two_gpus_are_faster_than_one() -> None:
    two = dataclasses.replace(GPU, gpus=2)
    assert seconds("fasterrcnn_resnet50_fpn_v2", two) < seconds("fasterrcnn_resnet50_fpn_v2")


def test_the_cpu_is_slower_than_a_gpu() -> None:
    assert seconds("yolo11n", CPU, side=320) > seconds("yolo11n", side=320)


def test_epochs_of_large_images_wait_for_decoding() -> None:
    large = dataclasses.replace(DATA, width=8000, height=6000)
    assert seconds("yolo11n", data=large) == pytest.approx(seconds("yolo26s", data=large))


def test_affordable_epochs_invert_trial_seconds() -> None:
    assert costs.affordable_epochs(costs.trial_seconds(7, 10.0), 10.0) == 7


def test_at_least_one_epoch_is_affordable() -> None:
    assert costs.affordable_epochs(1.0, 10.0) == 1
