"""Flags take the values that Azure's job files and command line have for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import StoppedError, job_of
from trainer import cli
from trainer.errors import JobError


@pytest.mark.parametrize(
    ("flags", "early_stopping", "nesterov"),
    [
        (("--early-stopping", "false"), False, True),
        (("--early-stopping", "False", "--nesterov", "0"), False, False),
        (("--early-stopping", "true"), True, True),
        (("--early-stopping=false",), False, True),
        (("--no-early-stopping",), False, True),
        (("--no-early-stopping", "false"), True, True),
        (("--early-stopping", "off", "--skip-invalid", "yes"), False, True),
        (("--early-stopping", "--gpus", "0"), True, True),
    ],
)
def test_a_switch_may_have_a_value(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], early_stopping: bool, nesterov: bool
) -> None:
    job = job_of(monkeypatch, "--task", "object-detection", "--data", "a.jsonl", *flags)
    resolved = job.resolve_settings()
    assert (resolved.early_stopping, resolved.nesterov) == (early_stopping, nesterov)
    assert job.skip_invalid is ("yes" in flags)


def test_azures_none_means_the_default_of_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(
        monkeypatch,
        *("--task", "object-detection", "--data", "a.jsonl", "--optimizer", "None", "--split-ratio", "0.3"),
        *(
            "--primary-metric",
            "None",
            "--lr-scheduler",
            "none",
            "--validation-metric-type",
            "none",
            "--layers-to-freeze",
            "0",
        ),
    )
    resolved = job.resolve_settings()
    assert (resolved.optimizer, resolved.learning_rate_scheduler) == ("sgd", "warmup_cosine")
    assert (resolved.validation_metric_type, resolved.layers_to_freeze) == ("voc", None)
    assert (job.validation_data_size, job.primary_metric) == (0.3, None)


def test_a_timeout_may_be_a_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--task", "object-detection", "--data", "a.jsonl", "--timeout-minutes")
    assert job_of(monkeypatch, *flags, "90").limits.timeout_minutes == 90
    assert job_of(monkeypatch, *flags, "PT1H30M").limits.timeout_minutes == 90
    with pytest.raises(JobError, match=r"timeout_minutes must be a duration .*, got 'soon'"):
        job_of(monkeypatch, *flags, "soon")


def test_node_chooses_what_a_pipeline_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = "{type: automl, task: image_object_detection, training_data: ONE, training_parameters: {seed: 1}}"
    nodes = "".join(f"  {name}: {node.replace('ONE', name)}\n" for name in ("one", "two"))
    path = tmp_path / "pipeline.yml"
    path.write_text(f"type: pipeline\njobs:\n{nodes}")
    fit = ("fit", "--config", str(path), "--dry-run")
    with pytest.raises(JobError, match="one, two; choose one, such as --node one"):
        cli.app(fit, exit_on_error=False)
    cli.app([*fit, "--node", "two"], exit_on_error=False, result_action="return_value")
    printed = capsys.readouterr().out
    assert f"path: {tmp_path / 'two'}\n" in printed
    assert f"# {path}: without effect here: jobs.one\n" in printed
    for flags in (("--task", "object-detection", "--data", "x"), ("--resume", str(tmp_path))):
        with pytest.raises(JobError, match="--node: needs --config"):
            cli.app(["fit", *flags, "--node", "two"], exit_on_error=False)


def test_resuming_leaves_out_what_only_older_interfaces_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.yml"
    parameters = "{split_ratio: 0.3, image_type: png, number_of_epochs: 4}"
    data = "${{parent.jobs.a.outputs.b}}"
    node = f"{{task: image_object_detection, training_data: '{data}', training_parameters: {parameters}}}"
    path.write_text(f"type: pipeline\njobs:\n  one: {node}\n")

    def resume(directory: Path, settings: dict[str, Any], **values: Any) -> None:
        assert settings == {"number_of_epochs": 4, "random_seed": 2}
        raise StoppedError

    monkeypatch.setattr("trainer.fitting.resume", resume)
    with pytest.raises(StoppedError):
        cli.app(
            ["fit", "--resume", "runs/x", "--config", str(path), "--random-seed", "2"], exit_on_error=False
        )
