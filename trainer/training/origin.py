"""What a result depends on besides its job and data: the code's commit and the libraries' versions."""

from __future__ import annotations

import getpass
import subprocess
from contextlib import suppress
from importlib import metadata

from trainer.models.catalog import CARDS

_LIBRARIES = ("torch", "lightning", "mlflow", "numpy", *(card.library for card in CARDS.values()))


def library_versions() -> dict[str, str]:
    """The versions of the installed libraries that affect results, by name."""
    versions = {}
    for name in dict.fromkeys(_LIBRARIES):
        with suppress(metadata.PackageNotFoundError):  # an extra
            versions[name] = metadata.version(name)
    return versions


def git_commit() -> str | None:
    """The commit of the repository in the working directory; None without one."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None


def origin_tags() -> dict[str, str]:
    """Who trains, and from which commit, as tags that MLflow's pages show."""
    tags = {"mlflow.source.name": "trainer", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError, ImportError):  # a user without a name, as in containers
        tags["mlflow.user"] = getpass.getuser()
    commit = git_commit()
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit}
