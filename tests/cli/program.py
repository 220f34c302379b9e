"""Runs the program in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = ("torch", "torchvision", "lightning", "mlflow", "timm", "ultralytics")


def trainer(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, in a terminal wide enough to search its help.

    Args:
        variables: environment variables.
    """
    code = "from trainer.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "300", "PYTHONIOENCODING": "utf-8", **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def libraries_loaded_by(*arguments: object) -> tuple[list[str], str]:
    """The slow libraries that a command imports, and what it prints, its error included."""
    code = (
        "import sys, trainer.cli as cli\n"
        "try:\n    cli.main()\n"
        "finally:\n"
        f"    print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    printed, _, loaded = done.stdout.rpartition("loaded:")
    return loaded.split(), printed + done.stderr
