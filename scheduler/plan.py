"""See it before you load it: where the layers would go, and the largest context that would fit.

Made by rehearsals of the load (``scheduler.rehearsal``), so a plan is what will happen. Blocking, though only for
milliseconds: call on a thread, without a running event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from runner.protocol import Layout, LoadRequest, Memory
from scheduler.devices import Machine
from scheduler.errors import LayoutError, LayoutNotAllocatedError
from scheduler.estimate import Estimates
from scheduler.layout import num_placed
from scheduler.options import (
    AUTO,
    MAX_AUTO_PARALLEL,
    MIN_NUM_CTX,
    LoadOptions,
    ModelHeader,
    is_parallel_auto,
    resolve,
)
from scheduler.rehearsal import Case, rehearse, rehearse_as_asked


@dataclass(frozen=True, slots=True)
class Plan:
    """What loading a model would come to."""

    request: LoadRequest  # what the runner would be asked for, its layout included
    memory: Memory
    machine: Machine
    trained_num_ctx: int
    max_num_ctx: int | None  # the largest context with which the model fits wholly; None: it does not with any
    unloads: tuple[Path, ...] = ()  # models that make room for it; on ``machine`` they are gone
    is_waiting: bool = False  # loads under way end first; on ``machine`` they have

    @property
    def layout(self) -> Layout:
        return self.request.layout

    @property
    def is_whole(self) -> bool:
        """All layers are on GPUs; where there is none, all is in free memory."""
        return num_placed(self.layout) == len(self.memory.cpu.weights) or not self.machine.gpus


def make_plan(estimates: Estimates, case: Case) -> Plan:
    """The plan for ``case``, on a machine that nobody else uses: ``scheduler.placement.plan_beside`` is for others.

    Raises what loading would: SettingsError for the options, ModelFileError for the file, LayoutError or
    LayoutNotAllocatedError where it cannot be placed, NotOnGPUError where layers on the CPU are an error.
    """
    header = estimates.header(case.path)
    max_num_ctx = largest_num_ctx(estimates, case)
    request = _resolve(estimates, case, header, max_num_ctx)
    loaded = rehearse_as_asked(estimates, case, request, case.rules)
    request = request.model_copy(update={"layout": loaded.layout})
    return Plan(request, loaded.memory, case.machine, header.context_length, max_num_ctx)


def layout_notes(options: LoadOptions, memory: Memory, layout: Layout) -> tuple[str, ...]:
    """What a client should know where its model's layers are not where it asked for them, word for word.

    ``memory`` is a plan's or a loaded model's, with an entry for every device that there is.
    """
    if not memory.gpus:
        asked = {"num_gpu": options.num_gpu or None, "main_gpu": options.main_gpu}
        given = {name: value for name, value in asked.items() if value is not None and value >= 0}
        return tuple(f"{name} {value} has no effect: there is no GPU" for name, value in given.items())
    num_layers, num_there = len(memory.cpu.weights), num_placed(layout)
    if num_there >= min(options.num_gpu or 0, num_layers):
        return ()
    return (f"num_gpu {options.num_gpu}: {num_there} of {num_layers} layers are on GPUs, more do not fit",)


def request_for(estimates: Estimates, case: Case) -> LoadRequest:
    """``resolve``, with ``"auto"`` as the largest context that fits wholly on the machine as it is, and as many
    sequences as fit with that, at most 4, where their number is left open.

    Where no context fits, ``"auto"`` is the default one. Raises SettingsError and ModelFileError.
    """
    header = estimates.header(case.path)
    largest = largest_num_ctx(estimates, case) if case.options.num_ctx == AUTO else None
    return _resolve(estimates, case, header, largest)


def largest_num_ctx(estimates: Estimates, case: Case) -> int | None:
    """The largest context, at most the trained length, with which the model fits wholly; None if none does.

    Wholly: on GPUs (or with as many layers there as ``num_gpu`` says), and the rest in host memory without swap.
    """
    header = estimates.header(case.path)

    def fits(num_ctx: int) -> bool:
        return _fits_wholly(estimates, case, resolve(replace(case.options, num_ctx=num_ctx), header, case.settings))

    return _largest(fits, MIN_NUM_CTX, max(MIN_NUM_CTX, header.context_length))


def _resolve(estimates: Estimates, case: Case, header: ModelHeader, largest: int | None) -> LoadRequest:
    options = case.options
    if options.num_ctx == AUTO:
        options = replace(options, num_ctx=largest)
    request = resolve(options, header, case.settings)
    if not is_parallel_auto(options, case.settings):
        return request
    return request.model_copy(update={"num_parallel": _most_sequences(estimates, case, request)})


def _most_sequences(estimates: Estimates, case: Case, request: LoadRequest) -> int:
    """As many as fit wholly: on GPUs, or, where none is used, in half of free memory, which others want as well.

    One where not even that many fit, where others had to go for the model (or the two would take each other's place
    for ever), or where there is no cache to hold them apart (bidirectional attention).
    """
    if case.is_at_others_expense or not any(estimates.memory(case.path, request).cpu.cache):
        return 1
    if not case.machine.gpus or case.options.num_gpu == 0:
        system = case.machine.system
        case = replace(case, machine=replace(case.machine, system=replace(system, free_bytes=system.free_bytes // 2)))
    for num_parallel in range(MAX_AUTO_PARALLEL, 1, -1):
        if _fits_wholly(estimates, case, request.model_copy(update={"num_parallel": num_parallel})):
            return num_parallel
    return 1


def _fits_wholly(estimates: Estimates, case: Case, request: LoadRequest) -> bool:
    try:
        rehearse(estimates, case, request, replace(case.rules, require_full=True))
    except (LayoutError, LayoutNotAllocatedError):
        return False
    return True


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
