"""Settings without effect, given the others: a warning if a user gave them, nothing in job files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.job.job import Job
from trainer.tasks import Task

CLASSIFICATION, DETECTION = Task.CLASSIFICATION, Task.DETECTION


@pytest.mark.parametrize(
    ("task", "model", "settings", "expected"),
    [
        (CLASSIFICATION, "resnet18", {"momentum": 0.8, "nesterov": False}, []),
        (CLASSIFICATION, "resnet18", {"beta1": 0.8, "amsgrad": True}, []),
        (
            CLASSIFICATION,
            "resnet18",
            {"recipe": "modern", "momentum": 0.8},
            ["momentum has no effect with optimizer adamw, only with sgd"],
        ),
        (
            DETECTION,
            "yolo11n",
            {"amsgrad": True, "beta2": None},
            ["ams_gradient has no effect with optimizer sgd, only with adam or adamw"],
        ),
        (
            DETECTION,
            "rfdetr-nano",
            {"nesterov": True},
            ["nesterov has no effect with optimizer adamw, only with sgd"],
        ),
        (
            DETECTION,
            "yolo11n",
            {"step_lr_gamma": 0.1},
            ["step_lr_gamma has no effect with learning_rate_scheduler warmup_cosine, only with step"],
        ),
        (
            CLASSIFICATION,
            "resnet18",
            {"lr_scheduler": "step", "warmup_cosine_lr_cycles": 0.5, "step_lr_step_size": 2},
            [
                "warmup_cosine_lr_cycles has no effect with learning_rate_scheduler step, "
                "only with warmup_cosine"
            ],
        ),
        (CLASSIFICATION, "resnet18", {"early_stopping_patience": 3}, []),
        (
            CLASSIFICATION,
            "resnet18",
            {"early_stopping_delay": 3, "early_stopping": False},
            ["early_stopping_delay has no effect with early_stopping false, only with true"],
        ),
        (
            CLASSIFICATION,
            "resnet18",
            {"freeze": "backbone", "learning_rate": 0.1, "seed": 1},
            ["learning_rate has no effect with number_of_epochs 0, a probe alone"],
        ),
    ],
)
def test_setting_without_effect_is_named(
    task: Task, model: str, settings: dict[str, Any], expected: list[str]
) -> None:
    job = Job(task=task, training_data=("a",), model=model, settings=settings)
    assert job.without_effect() == expected


def test_job_file_may_list_settings_without_effect(tmp_path: Path) -> None:
    file = tmp_path / "job.yml"
    file.write_text(
        "type: automl\ntask: image_classification\ntraining_data: {path: a, type: mltable}\n"
        "training_parameters: {model_name: resnet18, optimizer: adam, momentum: 0.9, amsgrad: true}\n"
    )
    job = Job.read(file)
    assert job.without_effect() == []
    assert Job.read(file, settings={"momentum": 0.9}).without_effect() == []  # as the file has it
    said = ["nesterov has no effect with optimizer adam, only with sgd"]
    assert Job.read(file, settings={"nesterov": False}).without_effect() == said
    assert job.changed(settings={"nesterov": False}).without_effect() == said
    trial = job.for_trial({"step_lr_gamma": 0.1})
    assert trial.without_effect() == []
    (tmp_path / "job.yaml").write_text(trial.to_yaml(), "utf-8")
    own = Job.of_run(tmp_path / "job.yaml")
    assert own.without_effect() == []
    assert len(own.changed(settings={"momentum": 0.5}).without_effect()) == 1
