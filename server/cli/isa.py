"""Whether the CPU has the instruction set that ``SHALE_CPU_ISA`` names, told before a model is asked for.

The compiled kernels know. They are asked in a process of their own, as the server itself never loads them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from scheduler.environment import runner_environment
from scheduler.process import checkout
from server.cli.client import CommandError
from server.settings import SettingError, Settings

ALWAYS_THERE = ("auto", "portable")
PROGRAM = "from runner.kernels import _cpu; print(*_cpu.available_isas())"


def available_isas() -> list[str]:
    """The instruction sets of this build that this CPU has. Raises CommandError where the kernels do not answer."""
    environment = runner_environment(os.environ, {}, checkout())
    command = [sys.executable, "-P", "-c", PROGRAM]  # -P: not a stray runner/ in the working directory
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        reason = asked.stderr.strip().rpartition("\n")[2] or f"exit status {asked.returncode}"
        raise CommandError(f"the CPU kernels do not say which instruction sets there are: {reason}")
    return asked.stdout.split()


def check_isa(settings: Settings, available: Callable[[], Sequence[str]] = available_isas) -> None:
    """Raises SettingError where the fast kernels cannot use the instruction set that they are to use.

    Nobody is asked about those that are always there: it costs a start 0.3 s.
    """
    if settings.kernels != "fast" or settings.cpu_isa in ALWAYS_THERE:
        return
    found = available()
    if settings.cpu_isa not in found:
        allowed = ", ".join(("auto", *found))
        raise SettingError(f"SHALE_CPU_ISA={settings.cpu_isa!r} cannot be used; allowed on this machine: {allowed}")
