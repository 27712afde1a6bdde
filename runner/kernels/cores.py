"""How many cores this process may use: its affinity mask, and the CPU quota of the control groups above it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(cgroup_root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> int:
    """At least 1. A quota of 2.5 cores counts as 2: one thread more would be stopped half of the time, and the others
    would wait for it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(cgroup_root, membership):
        cores = min(cores, int(quota))
    return max(1, cores)


def _quotas(cgroup_root: Path, membership: Path) -> Iterator[float]:
    """The quota in cores of every group that this process is in, and of the groups above."""
    for hierarchy, path in _groups(membership):
        for group in (path, *path.parents):
            directory = cgroup_root / hierarchy / group.relative_to("/")
            yield from _version_2(directory)
            yield from _version_1(directory)


def _groups(membership: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Lines of /proc/self/cgroup are hierarchy:controllers:path; version 2 has no controllers."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            yield controllers, PurePosixPath(path)


def _version_2(directory: Path) -> Iterator[float]:
    quota, _, period = _read(directory / "cpu.max").strip().partition(" ")
    if quota not in ("", "max"):
        yield int(quota) / int(period)


def _version_1(directory: Path) -> Iterator[float]:
    quota = _read(directory / "cpu.cfs_quota_us").strip()
    if quota not in ("", "-1"):
        yield int(quota) / int(_read(directory / "cpu.cfs_period_us"))


def _read(path: Path) -> str:
    """The file's text; empty where the system has no such file or does not show it."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
