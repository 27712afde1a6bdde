"""Starts a runner: the process, and the client that speaks to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from scheduler.client import RunnerClient
from scheduler.oom_kills import OomKills
from scheduler.options import ModelFile
from scheduler.process import RunnerProcess, runner_command
from scheduler.settings import SchedulerSettings


@dataclass(frozen=True, slots=True)
class Started:
    """A process that may not answer yet."""

    process: RunnerProcess
    client: RunnerClient

    async def stop(self) -> None:
        """Lets go of idle connections and ends the process."""
        await self.client.aclose()
        await self.process.stop()


_OOM_KILLS = OomKills()

Spawn = Callable[[ModelFile, SchedulerSettings], Awaitable[Started]]


async def spawn_runner(model: ModelFile, settings: SchedulerSettings) -> Started:
    """Raises RunnerStartError."""
    process = await RunnerProcess.start(
        name=model.name,
        command=lambda fd: runner_command(model.path, fd),
        own_environment=_environment(settings),
        oom_kills=_OOM_KILLS,
    )
    return Started(process, RunnerClient(process.port, process.token, process.obituary))


def _environment(settings: SchedulerSettings) -> dict[str, str]:
    values = {
        "SHALE_KERNELS": settings.kernels,
        "SHALE_CPU_ISA": settings.cpu_isa,
        "SHALE_DEVICES": settings.devices,
        "SHALE_SIM_LEDGER": str(settings.sim_ledger) if settings.sim_ledger else None,
        "SHALE_DEBUG": "1" if settings.debug else None,
    }
    return {name: value for name, value in values.items() if value}
