"""Loader processes where /dev/shm is small, as Docker makes it."""

from __future__ import annotations

import logging

import pytest

from tests.conformance.conftest import make_case
from trainer.tasks import Task
from trainer.training import shared_memory
from trainer.training.loading import Batches
from trainer.training.shared_memory import workers_that_fit

MB = 2**20


@pytest.mark.parametrize(
    ("workers", "batch", "free", "fitting"),
    [(4, MB, 100 * MB, 4), (4, 10 * MB, 100 * MB, 3), (4, 20 * MB, 64 * MB, 0), (0, MB, 64 * MB, 0)],
)
def test_batches_of_all_workers_fit(workers: int, batch: int, free: int, fitting: int) -> None:
    assert workers_that_fit(workers, batch, free) == fitting


def test_loaders_take_the_workers_for_which_there_is_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = make_case(Task.CLASSIFICATION, "resnet18", number_of_workers=1, training_batch_size=4)
    batch_bytes = 4 * 3 * 64 * 64  # uint8; of validation, float32
    batches = Batches(case.family, case.examples, case.examples, case.settings, 0)
    with caplog.at_level(logging.WARNING, "trainer"):
        monkeypatch.setattr(shared_memory, "_free_bytes", lambda: 2 * 5 * batch_bytes)
        assert batches.train_dataloader().num_workers == 1
        assert not caplog.records
        monkeypatch.setattr(shared_memory, "_free_bytes", lambda: 2 * 3 * batch_bytes)
        assert batches.train_dataloader().num_workers == 0
    assert "using 0" in caplog.text
    assert "--shm-size=" in caplog.text
