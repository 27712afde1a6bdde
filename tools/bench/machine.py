"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path

# The flags that decide which kernels an engine takes, in the order of their age.
FLAGS = (
    "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """CPU, its relevant flags, usable cores, system, and the day."""

    cpu: str
    flags: tuple[str, ...]
    num_cores: int
    system: str
    python: str
    day: str

    @classmethod
    def here(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
        facts = read_cpuinfo(cpuinfo.read_text("utf-8") if cpuinfo.exists() else "")
        have = set(facts.get("flags", facts.get("Features", "")).split())
        family = "/".join(facts[key] for key in ("cpu family", "model", "stepping") if key in facts)
        name = facts.get("model name", platform.processor() or platform.machine())
        return cls(
            cpu=f"{name} (family/model/stepping {family})" if family else name,
            flags=tuple(flag for flag in FLAGS if flag in have),
            num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            system=platform.platform(),
            python=platform.python_version(),
            day=date.today().isoformat(),
        )


def read_cpuinfo(text: str) -> dict[str, str]:
    """The facts of the first processor in /proc/cpuinfo."""
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
