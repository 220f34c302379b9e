from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cores import available_cores, cgroup_quota


def test_available_cores_is_at_least_one() -> None:
    assert available_cores() >= 1


@pytest.mark.parametrize(
    ("content", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)],
)
def test_quota_of_cgroup_version_2_rounds_up(content: str, cores: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content + "\n")
    assert cgroup_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", None)])
def test_quota_of_cgroup_version_1_is_read(quota: str, cores: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path) == cores


def test_quota_is_none_outside_of_cgroups(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
