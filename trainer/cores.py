"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@cache
def available_cores() -> int:
    """The cores in this process's affinity mask, capped by its cgroup's CPU quota; at least 1.

    Containers limit CPU time by a quota (`docker run --cpus 2`, Kubernetes' limits) while the affinity mask
    still shows every core of the host.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, cgroup_quota(_CGROUP) or affinity))


def cgroup_quota(root: Path) -> int | None:
    """The CPU quota of the cgroup mounted at `root` in whole cores, rounded up; None if there is none.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us, version 1).
    """
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        if quota in ("max", "-1"):
            return None
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None
