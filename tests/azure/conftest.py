"""Files that Azure's own packages write, made once for all tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import ROOT


def _without_sdk() -> NoReturn:
    message = "needs Azure's SDK in an environment of its own: make azure-sdk"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def azure_python() -> Path:
    """A Python with azure-ai-ml and mltable; the test is skipped where there is none, and fails under CI."""
    python = Path(os.environ.get("AZURE_PYTHON", ROOT / ".venv-azure" / "bin" / "python"))
    return python if python.exists() else _without_sdk()


def _written_by(script: str, python: Path, folder: Path) -> Path:
    command = [str(python), str(Path(__file__).with_name(script)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "ModuleNotFoundError" in done.stderr:  # an environment made for an earlier requirements.txt
        _without_sdk()
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def sdk_jobs(azure_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs as Azure's SDK writes them: NAME.yaml by dump(), NAME.json in the REST form."""
    return _written_by("write_jobs.py", azure_python, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="session")
def sdk_tables(azure_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLTables as Azure's package saves them, their data, and the rows it reads; see write_tables.py."""
    return _written_by("write_tables.py", azure_python, tmp_path_factory.mktemp("tables"))
