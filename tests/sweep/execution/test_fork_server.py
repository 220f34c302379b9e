"""The process that trials are forked from. Their orders are FIFOs here: a trial waits for a writer."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer.sweep.execution.fork_client import ForkServer, TrialProcess
from trainer.sweep.execution.messages import outcome_path

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")

Start = Callable[[str], TrialProcess]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    made = ForkServer({"OMP_NUM_THREADS": "1"}, tmp_path / "fork_server.out", modules=())
    yield made
    made.close()


@pytest.fixture
def start(server: ForkServer, tmp_path: Path) -> Start:
    def started(name: str) -> TrialProcess:
        order = tmp_path / f"{name}.json"
        if not order.exists():
            os.mkfifo(order)
        return server.start(order, order.with_suffix(".out"), {})

    return started


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def begun(trial: TrialProcess) -> int:
    wait_for(lambda: trial.pid is not None)
    assert trial.pid is not None
    return trial.pid


def test_what_a_library_prints_on_import_is_no_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talkative.py").write_text("print('welcome')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    server = ForkServer({}, tmp_path / "fork_server.out", modules=("talkative",))
    order = tmp_path / "order.json"
    order.write_text("no order", encoding="utf-8")
    assert server.start(order, tmp_path / "order.out", {}).wait(60) == 1
    server.close()
    assert (tmp_path / "fork_server.out").read_text("utf-8") == "welcome\n"


def test_a_workers_rank_is_not_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    server = ForkServer({}, tmp_path / "fork_server.out", modules=())
    order = tmp_path / "order.json"
    values = {"job": str(tmp_path / "no.yaml"), "directory": str(tmp_path / "run"), "storage": "none"}
    order.write_text(json.dumps({**values, "study": "s", "trial_id": 0}), encoding="utf-8")
    server.start(order, tmp_path / "order.out", {}).wait(60)
    server.close()
    assert json.loads(outcome_path(order).read_text("utf-8"))["state"] == "failed"


def test_trials_run_beside_each_other_and_end_each_for_itself(start: Start, tmp_path: Path) -> None:
    first, second = start("first"), start("second")
    one, other = begun(first), begun(second)
    assert parent(one) == parent(other) != os.getpid()
    assert os.getpgid(one) == one  # with what it starts it can be killed as one
    (tmp_path / "first.json").write_text("no order", encoding="utf-8")
    assert first.wait(60) == 1
    assert "ValidationError" in (tmp_path / "first.out").read_text("utf-8")
    assert second.returncode is None
    second.kill()
    assert second.wait(60) == -signal.SIGKILL
    assert (tmp_path / "second.out").read_text("utf-8") == ""


def test_an_interrupt_comes_even_before_the_trial_has_begun(start: Start) -> None:
    early = start("early")
    early.interrupt()
    status = early.wait(60)
    assert status not in (None, 0)
    assert not is_alive(begun(early))


def test_when_it_dies_its_trials_do_and_another_takes_its_place(start: Start) -> None:
    trial = start("first")
    pid = begun(trial)
    os.kill(parent(pid), signal.SIGKILL)
    assert trial.wait(60) == -signal.SIGKILL
    wait_for(lambda: not is_alive(pid))
    assert is_alive(begun(start("second")))


def test_what_has_spoken_to_a_gpus_driver_is_not_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA would fail in the child; so the trial's process starts again, under the same number."""
    (tmp_path / "asks_for_gpus.py").write_text("import torch\n\ntorch.cuda.is_available()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    # Lightning sets it on import, and PyTorch then asks NVML instead of the driver.
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    server = ForkServer({}, tmp_path / "fork_server.out", modules=("asks_for_gpus",))
    order = tmp_path / "order.json"
    os.mkfifo(order)
    trial = server.start(order, order.with_suffix(".out"), {})
    command = Path(f"/proc/{begun(trial)}/cmdline")
    wait_for(lambda: b"trainer.sweep.execution.trial\0" in command.read_bytes())
    assert trial.returncode is None
    server.close()
    wait_for(lambda: not is_alive(begun(trial)))


def test_trials_end_with_it(server: ForkServer, start: Start, tmp_path: Path) -> None:
    pid = begun(start("first"))
    server.close()
    wait_for(lambda: not is_alive(pid))
    assert not (tmp_path / "fork_server.out").exists()  # it had nothing to say
