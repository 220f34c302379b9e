"""Output that nobody reads any more, or that does not fit the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_closed_output_causes_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text("{not json\n" * 5000)
    command = [sys.executable, "-m", "trainer", "validate", str(path), "--task", "object-detection"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reading:
        assert reading.stdout is not None
        assert reading.stderr is not None
        assert reading.stdout.readline().startswith(f"{path}:1: ")
        reading.stdout.close()
        assert reading.stderr.read() == ""
        assert reading.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["models"], ["--help"]])
def test_output_that_does_not_fit_the_disk_is_one_error(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "trainer", *command],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "error: a file cannot be written (No space left on device). "
        "Make room or raise the quota, then repeat the command\n"
    )
