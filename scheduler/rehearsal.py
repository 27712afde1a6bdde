"""The load loop, run against the estimate instead of a runner.

It is the same loop that loads (``scheduler.load``), so what it comes to is what will happen. Blocking, though only for
milliseconds: call on a thread, without a running event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from runner.protocol import Layout, LoadRequest, LoadResponse, Memory, Operation
from scheduler.devices import Machine
from scheduler.errors import LayoutError, LayoutNotAllocatedError, NotOnGPUError, RequireFullError, SettingsError
from scheduler.estimate import Estimates, device_names
from scheduler.gpu import GPU
from scheduler.layout import LayoutRules, num_placed
from scheduler.load import Loaded, Situation, load_model
from scheduler.options import LoadOptions, must_be_on_gpu
from scheduler.settings import SchedulerSettings
from scheduler.sizes import human_bytes


@dataclass(frozen=True, slots=True)
class Case:
    """The question: which file, asked for how, on what."""

    path: Path
    options: LoadOptions
    settings: SchedulerSettings
    machine: Machine
    is_at_others_expense: bool = False
    """Whether models had to go for this one, because there was not memory for all."""

    @property
    def rules(self) -> LayoutRules:
        return LayoutRules(
            num_gpu=-1 if self.options.num_gpu is None else self.options.num_gpu,
            overhead_bytes=self.settings.gpu_overhead_bytes,
            is_spread=self.settings.is_spread,
        )

    @property
    def main_gpu(self) -> GPU | None:
        """The GPU to try first, if the options name one and there is a choice.

        Raises SettingsError where there are GPUs, but not that one.
        """
        number, gpus = self.options.main_gpu, self.machine.gpus
        if number is None or not gpus:
            return None
        if number >= len(gpus):
            there = ", ".join(gpu.id for gpu in gpus)
            raise SettingsError(f"main_gpu must be less than {len(gpus)}, found {number}; the GPUs are {there}")
        return gpus[number] if len(gpus) > 1 else None


def rehearse(estimates: Estimates, case: Case, request: LoadRequest, rules: LayoutRules) -> Loaded:
    """The load loop, with the estimate in the place of a runner. Raises what the loop raises, and SettingsError.

    ``main_gpu`` is tried alone first, and has the model if that fits there wholly. The memory that is returned has an
    entry for every device of the machine, as that of a runner has.
    """
    main = case.main_gpu
    if main is not None:
        alone = replace(case.machine, gpus=(main,))
        with contextlib.suppress(LayoutError, LayoutNotAllocatedError):
            return _rehearse(estimates, case, Situation(request, alone, replace(rules, require_full=True)))
    return _rehearse(estimates, case, Situation(request, case.machine, rules))


def _rehearse(estimates: Estimates, case: Case, situation: Situation) -> Loaded:
    """``situation`` has the devices that layers may go to, ``case`` all of them."""
    names = device_names(case.machine.gpus)
    free = {(gpu.id, gpu.library): gpu.free_bytes for gpu in case.machine.gpus}
    answers: dict[Layout, Memory] = {}

    def measure(request: LoadRequest) -> Memory:
        if request.layout not in answers:
            answers[request.layout] = estimates.memory(case.path, request, names)
        return answers[request.layout]

    async def post(request: LoadRequest) -> LoadResponse:
        memory = measure(request)
        short = [gpu for gpu in memory.gpus if gpu.total_bytes > free[gpu.id, gpu.library]]
        if request.operation != Operation.ALLOC or not short:
            return LoadResponse(success=True, memory=memory)
        gpu = short[0]
        message = f"out of memory on {gpu.id}: {gpu.total_bytes} bytes asked, {free[gpu.id, gpu.library]} bytes free"
        return LoadResponse(success=False, memory=memory, message=message)

    return asyncio.run(load_model(post, situation, measure(situation.request)))


# ---- layers on the CPU as an error -------------------------------------------------------------


def rehearse_as_asked(estimates: Estimates, case: Case, request: LoadRequest, rules: LayoutRules) -> Loaded:
    """``rehearse``, but for the options of ``case`` that make layers on the CPU an error.

    Raises what the loop raises; for those options NotOnGPUError, which says what would stay on the CPU.
    """
    if not must_be_on_gpu(case.options, case.settings):
        return rehearse(estimates, case, request, rules)
    if not case.machine.gpus:
        raise NotOnGPUError("there is no GPU that can be used")
    try:
        return rehearse(estimates, case, request, replace(rules, require_full=True))
    except RequireFullError as error:
        partial = rehearse(estimates, case, request, replace(rules, require_full=False))
        raise NotOnGPUError(_what_stays(case, partial)) from error


def _what_stays(case: Case, loaded: Loaded) -> str:
    memory = loaded.memory
    stays = sum(memory.cpu.weights) + sum(memory.cpu.cache)
    free = ", ".join(f"{human_bytes(gpu.free_bytes)} on {gpu.id}" for gpu in case.machine.gpus)
    return (
        f"{num_placed(loaded.layout)} of {len(memory.cpu.weights)} layers fit, {human_bytes(stays)} of layers would "
        f"stay on the CPU; free: {free}"
    )
