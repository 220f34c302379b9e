"""Files that Azure's own packages write, made once for all tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def azure_python() -> Path:
    """A Python with azure-ai-ml and mltable; the test is skipped where there is none, and fails under CI."""
    python = Path(os.environ.get("AZURE_PYTHON", ROOT / ".venv-azure" / "bin" / "python"))
    if not python.exists():
        message = "needs Azure's SDK in an environment of its own: make azure-sdk"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return python


def _written_by(script: str, python: Path, folder: Path) -> Path:
    command = [str(python), str(Path(__file__).with_name(script)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def sdk_jobs(azure_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs as Azure's SDK writes them: NAME.yaml by dump(), NAME.json in the REST form."""
    return _written_by("write_jobs.py", azure_python, tmp_path_factory.mktemp("jobs"))
