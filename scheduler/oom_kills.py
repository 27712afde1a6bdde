"""Whether the kernel has killed for want of memory: a killed process cannot say so, but the kernel counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scheduler.system_memory import CGROUP_ROOT, SELF_CGROUP, own_cgroups

VMSTAT = Path("/proc/vmstat")

EXPLANATION = "out of memory: the kernel has ended a process for want of memory (oom_kill)"


def count_oom_kills(
    cgroup_root: Path = CGROUP_ROOT, self_cgroup: Path = SELF_CGROUP, vmstat: Path = VMSTAT
) -> int | None:
    """Processes of our control group (where there is none: of the machine) that the kernel has killed for memory.

    None: the system does not tell.
    """
    events = (group / "memory.events" for group in own_cgroups(cgroup_root, self_cgroup))
    return next((count for path in (*events, vmstat) if (count := _read(path)) is not None), None)


class OomKills:
    """Tells of each process that was killed whether the kernel can have done it. One for all runners."""

    def __init__(self, count: Callable[[], int | None] = count_oom_kills) -> None:
        self._count = count
        self._num_explained = 0

    def mark(self) -> int:
        """To be remembered when a process starts."""
        return self._count() or 0

    def explain(self, mark: int) -> bool:
        """Whether the kernel has killed something since ``mark`` that has not explained another death yet."""
        begin = max(mark, self._num_explained)
        if (self._count() or 0) <= begin:
            return False
        self._num_explained = begin + 1
        return True


def _read(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    numbers = (line.removeprefix("oom_kill ") for line in lines if line.startswith("oom_kill "))
    return next((int(number) for number in numbers if number.isdigit()), None)
