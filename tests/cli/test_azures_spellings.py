"""Flags take the values that Azure's job files and command line have for them."""

from __future__ import annotations

import pytest

from tests.cli.test_commands import job_of


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
        *("--lr-scheduler", "none", "--validation-metric-type", "none", "--layers-to-freeze", "0"),
    )
    resolved = job.resolve_settings()
    assert (resolved.optimizer, resolved.learning_rate_scheduler) == ("sgd", "warmup_cosine")
    assert (resolved.validation_metric_type, resolved.layers_to_freeze) == ("voc", None)
    assert job.validation_data_size == 0.3
