"""The processes of a sweep's trials, as a user finds them."""

from __future__ import annotations

import os
from pathlib import Path


def trial_processes(run: Path, number: str = "*") -> list[int]:
    """Those that write a trial's output; `number` as the trial's directory is called, or all."""
    outputs = {str(path.resolve()) for path in (run / "trials").glob(f"{number}.out")}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                output = os.readlink(entry / "fd" / "1")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has ended, or is another user's
                continue
            if output in outputs and state != "Z":
                found.append(int(entry.name))
    return found
