"""Which weights a user chose to start from; free of torch, unlike the reading of them."""

from __future__ import annotations

import os

PRETRAINED = "pretrained"
NONE = "none"


def choice_or_environment(choice: str | None) -> str:
    """The user's choice: `--weights`, else TRAINER_WEIGHTS, else the published weights."""
    return choice or os.environ.get("TRAINER_WEIGHTS") or PRETRAINED
