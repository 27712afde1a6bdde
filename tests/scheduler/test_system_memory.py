"""Host memory, and control groups that leave less of it."""

from __future__ import annotations

import psutil
import pytest

from scheduler.system_memory import system_memory

MIB = 2**20


@pytest.fixture
def cgroup(tmp_path):
    """A control group ``/outer/inner``; returns a function that writes one of its files."""
    (tmp_path / "self").write_text("12:cpu:/x\n0::/outer/inner\n")
    (tmp_path / "fs/outer/inner").mkdir(parents=True)

    def write(group, **files):
        for name, value in files.items():
            (tmp_path / "fs" / group / name.replace("_", ".", 1)).write_text(f"{value}\n")

    write.memory = lambda: system_memory(tmp_path / "fs", tmp_path / "self")
    return write


def test_without_limits_the_host_counts(cgroup):
    cgroup("outer/inner", memory_max="max", memory_current=100)
    assert cgroup.memory().total_bytes == psutil.virtual_memory().total


def test_a_limit_counts_and_page_cache_is_free(cgroup):
    stat = f"anon {10 * MIB}\nactive_file {20 * MIB}\ninactive_file {5 * MIB}\nslab_reclaimable {MIB}"
    cgroup("outer/inner", memory_max=64 * MIB, memory_current=40 * MIB, memory_stat=stat)
    memory = cgroup.memory()
    assert memory.total_bytes == 64 * MIB
    assert memory.free_bytes == (64 - 40 + 26) * MIB


def test_the_limit_of_an_outer_group_counts_as_well(cgroup):
    cgroup("outer/inner", memory_max=64 * MIB, memory_current=10 * MIB)
    cgroup("outer", memory_max=32 * MIB, memory_current=31 * MIB)
    assert cgroup.memory().free_bytes == MIB


def test_swap_is_limited(cgroup):
    cgroup("outer/inner", memory_max=64 * MIB, memory_current=0, **{"memory_swap.max": 0, "memory_swap.current": 0})
    assert cgroup.memory().swap_bytes == 0


def test_a_group_over_its_limit_has_nothing_free(cgroup):
    cgroup("outer/inner", memory_max=10 * MIB, memory_current=11 * MIB)
    assert cgroup.memory().free_bytes == 0


def test_no_control_groups(tmp_path):
    assert system_memory(tmp_path, tmp_path / "none").total_bytes == psutil.virtual_memory().total
