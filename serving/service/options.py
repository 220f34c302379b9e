"""What can be set about the service; `trainer serve` has a flag for each."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Limits and sizes of the service. Each worker process has them for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: Annotated[int, Field(ge=1, le=1024)] = 8
    """Images that the network sees at once, at most."""
    max_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 5.0
    """How long a batch waits for images that are still being decoded."""
    max_queue: Annotated[int, Field(ge=1)] = 512
    """Images accepted and not answered yet; more are refused by 429."""
    max_queue_mb: Annotated[int, Field(ge=1)] = 512
    """The same in megabytes of requests, those that are still being read among them."""
    max_rows: Annotated[int, Field(ge=1)] = 1000
    """Images in one request; more are refused by 413."""
    timeout_s: Annotated[float, Field(gt=0)] = 180.0
    """From a request's last byte to its answer; then it is given up by 504."""
    read_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """From a request's first byte to its last; then it is given up by 408."""
    shutdown_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long requests that were accepted may take after the service was told to stop."""
    cores: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: available_cores())
    """Cores that a worker process reckons with."""


def available_cores() -> int:
    """Cores that this process may use: those it may run on, or fewer if its container has a smaller share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # "max 100000" where there is none
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
