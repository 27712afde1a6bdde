"""Usable cores: the affinity mask, and the quotas of control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.kernels.cores import usable_cores

CORES = len(os.sched_getaffinity(0))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        pytest.param({}, "", CORES, id="no groups"),
        pytest.param({"a/b/cpu.max": "max 100000"}, "0::/a/b\n", CORES, id="no limit"),
        pytest.param({"a/b/cpu.max": "150000 100000"}, "0::/a/b\n", 1, id="a fraction is cut off"),
        pytest.param({"a/b/cpu.max": "20000 100000"}, "0::/a/b\n", 1, id="at least one"),
        pytest.param({"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 1, id="parent limit"),
        pytest.param({"cpu,cpuacct/x/cpu.cfs_quota_us": "-1"}, "4:cpu,cpuacct:/x\n", CORES, id="version 1, no limit"),
        pytest.param(
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "100000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            "5:memory:/y\n4:cpu,cpuacct:/x\n",
            1,
            id="version 1",
        ),
        pytest.param({"cpu.max": "10000000 100000"}, "0::/\n", CORES, id="a quota above the cores"),
    ],
)
def test_usable_cores(tmp_path: Path, files: dict[str, str], groups: str, expected: int) -> None:
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    membership = tmp_path / "membership"
    membership.write_text(groups)
    assert usable_cores(tmp_path / "cgroup", membership) == expected


def test_a_system_without_control_groups_has_its_cores(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "nothing", tmp_path / "nothing") == CORES
