"""What a result comes from beside its job and data: the code's commit and the libraries' versions."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from importlib import metadata

_LIBRARIES = ("torch", "torchvision", "lightning", "timm", "ultralytics", "mlflow", "numpy")


def library_versions() -> dict[str, str]:
    """Those of the libraries that are installed: ultralytics need not be."""
    installed = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def git_commit() -> str | None:
    """The commit of the repository that this process was started in; None without one."""
    asked = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no repository
        return None
