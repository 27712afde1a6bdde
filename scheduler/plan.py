"""See it before you load it: the load loop, run against the estimate instead of a runner.

It is the same loop that loads (``scheduler.load``), so a plan is what will happen. Blocking, though only for
milliseconds: call on a thread, without a running event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from runner.protocol import Layout, LoadRequest, LoadResponse, Memory, Operation
from scheduler.devices import Machine
from scheduler.errors import LayoutError, LayoutNotAllocatedError
from scheduler.estimate import Estimates, device_names
from scheduler.layout import LayoutRules, num_placed
from scheduler.load import Loaded, Situation, load_model
from scheduler.options import AUTO, MIN_NUM_CTX, LoadOptions, ModelHeader, resolve
from scheduler.settings import SchedulerSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """What loading a model would come to."""

    request: LoadRequest  # what the runner would be asked for, its layout included
    memory: Memory
    machine: Machine
    trained_num_ctx: int
    max_num_ctx: int | None  # the largest context with which the model fits wholly; None: it does not with any

    @property
    def layout(self) -> Layout:
        return self.request.layout

    @property
    def is_whole(self) -> bool:
        """All layers are on GPUs; where there is none, all is in free memory."""
        return num_placed(self.layout) == len(self.memory.cpu.weights) or not self.machine.gpus


@dataclass(frozen=True, slots=True)
class Case:
    """The question: which file, asked for how, on what."""

    path: Path
    options: LoadOptions
    settings: SchedulerSettings
    machine: Machine

    @property
    def rules(self) -> LayoutRules:
        return LayoutRules(num_gpu=-1 if self.options.num_gpu is None else self.options.num_gpu)


def make_plan(estimates: Estimates, case: Case) -> Plan:
    """The plan for ``case``.

    Raises what loading would: SettingsError for the options, ModelFileError for the file, LayoutError where it cannot
    be placed.
    """
    header = estimates.header(case.path)
    max_num_ctx = largest_num_ctx(estimates, case)
    request = _resolve(case, header, max_num_ctx)
    loaded = _rehearse(estimates, case, request, case.rules)
    request = request.model_copy(update={"layout": loaded.layout})
    return Plan(request, loaded.memory, case.machine, header.context_length, max_num_ctx)


def request_for(estimates: Estimates, case: Case) -> LoadRequest:
    """``resolve``, with ``"auto"`` as the largest context that fits wholly on the machine as it is.

    Where none does, ``"auto"`` is the default context. Raises SettingsError and ModelFileError.
    """
    header = estimates.header(case.path)
    largest = largest_num_ctx(estimates, case) if case.options.num_ctx == AUTO else None
    return _resolve(case, header, largest)


def largest_num_ctx(estimates: Estimates, case: Case) -> int | None:
    """The largest context, at most the trained length, with which the model fits wholly; None if none does.

    Wholly: on GPUs (or with as many layers there as ``num_gpu`` says), and the rest in host memory without swap.
    """
    header = estimates.header(case.path)

    def fits(num_ctx: int) -> bool:
        request = resolve(replace(case.options, num_ctx=num_ctx), header, case.settings)
        try:
            _rehearse(estimates, case, request, replace(case.rules, require_full=True))
        except (LayoutError, LayoutNotAllocatedError):
            return False
        return True

    return _largest(fits, MIN_NUM_CTX, max(MIN_NUM_CTX, header.context_length))


def _resolve(case: Case, header: ModelHeader, largest: int | None) -> LoadRequest:
    options = case.options
    if options.num_ctx == AUTO:
        options = replace(options, num_ctx=largest)
    return resolve(options, header, case.settings)


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """By bisection: what fits with more fits with less."""
    if fits(high):
        return high
    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _rehearse(estimates: Estimates, case: Case, request: LoadRequest, rules: LayoutRules) -> Loaded:
    """The load loop, with the estimate in the place of a runner. Raises what the loop raises."""
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

    situation = Situation(request, case.machine, rules)
    return asyncio.run(load_model(post, situation, measure(request)))
