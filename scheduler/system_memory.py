"""How much host memory a new process can get, in a container as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")

# Page cache that the kernel drops before it kills anything for memory. It is in memory.current.
_RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """Host memory that a new process can get; page cache counts as free, swap is apart."""

    total_bytes: int
    free_bytes: int
    swap_bytes: int


def system_memory(cgroup_root: Path = CGROUP_ROOT, self_cgroup: Path = SELF_CGROUP) -> SystemMemory:
    """Host memory, or what the control group (a container's limit) leaves of it if that is less."""
    host = psutil.virtual_memory()
    memory = SystemMemory(host.total, host.available, psutil.swap_memory().free)
    for group in own_cgroups(cgroup_root, self_cgroup):
        memory = _within(memory, group)
    return memory


def own_cgroups(root: Path, self_cgroup: Path) -> Iterator[Path]:
    """The version 2 control group of this process and all those around it: each one's limit holds."""
    try:
        lines = self_cgroup.read_text().splitlines()
    except OSError:
        return  # not Linux
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is None:
        return
    group = root / path.lstrip("/")
    yield group
    while group != root:
        group = group.parent
        yield group


def _within(memory: SystemMemory, group: Path) -> SystemMemory:
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return memory
    free = max(0, limit - used + _reclaimable_bytes(group))
    swap_limit, swap_used = _number(group / "memory.swap.max"), _number(group / "memory.swap.current")
    swap = memory.swap_bytes if swap_limit is None else max(0, swap_limit - (swap_used or 0))
    return SystemMemory(
        total_bytes=min(memory.total_bytes, limit),
        free_bytes=min(memory.free_bytes, free, limit),
        swap_bytes=min(memory.swap_bytes, swap),
    )


def _reclaimable_bytes(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(" ", 1) for line in lines if " " in line)
    return sum(int(stat.get(name, "0")) for name in _RECLAIMABLE)


def _number(path: Path) -> int | None:
    """None: there is no such file, or it says ``max``."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
