"""Where a load goes while others go on: at once, after others have made room, or after another load has ended.

Pure, but for headers that the estimator reads. Blocking, for milliseconds: call on a thread, without a running event
loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from runner.footprint import CPU
from runner.protocol import Layout, Memory
from scheduler.errors import LayoutError, LayoutNotAllocatedError
from scheduler.estimate import Estimates, device_names
from scheduler.events import Eviction
from scheduler.eviction import Candidate, Rank, cheapest, choose, freed
from scheduler.layout import LayoutRules, num_placed
from scheduler.load import Loaded, Situation
from scheduler.options import must_be_on_gpu
from scheduler.plan import request_for
from scheduler.rehearsal import Case, rehearse_as_asked
from scheduler.reservations import (
    Bytes,
    Claim,
    after_claims,
    bytes_of,
    device_name,
    names_of,
    only,
    with_freed,
    without_claims,
)


@dataclass(frozen=True, slots=True)
class Around:
    """What else there is while a load looks for its place."""

    claims: tuple[Claim, ...] = ()  # of other loads
    candidates: tuple[Candidate, ...] = ()  # models that are loaded or leaving
    max_loaded: int = 3
    failed: frozenset[Layout] = frozenset()  # where this load has tried to go already: in truth it did not fit


@dataclass(frozen=True, slots=True)
class Place:
    """It can go there now. ``situation`` has no device in it but those claimed."""

    situation: Situation
    estimate: Memory
    layout: Layout
    claim: Claim


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """These have to go first; the claim keeps what they free for this load."""

    victims: tuple[Candidate, ...]
    reason: Eviction
    claim: Claim


@dataclass(frozen=True, slots=True)
class Wait:
    """Another load has to end first."""


Decision = Place | MakeRoom | Wait


def decide(estimates: Estimates, case: Case, around: Around) -> Decision:
    """What the load that ``case`` describes does next.

    A model goes beside others only where it fits wholly (or with the layers that ``num_gpu`` says). Nobody is unloaded
    for a model that could not be loaded anyway. Raises what loading would on a machine without any other model:
    LayoutError, LayoutNotAllocatedError; and SettingsError, ModelFileError.
    """
    wants_gpu = bool(case.machine.gpus) and case.options.num_gpu != 0
    asked, case = case, _beside(case, around.claims)
    num_others = len(around.claims) + len(around.candidates)
    if num_others >= around.max_loaded:
        victim = cheapest(around.candidates)
        return MakeRoom((victim,), Eviction.MAX_MODELS, Claim()) if victim else Wait()
    if wants_gpu and not case.machine.gpus:
        return Wait()  # all are claimed, and the CPU is no place for what waits for a GPU
    try:
        place = _place(estimates, case, is_strict=num_others > 0, is_wide=bool(around.failed))
        if not num_others or place.layout not in around.failed:
            return place
    except (LayoutError, LayoutNotAllocatedError):
        if not num_others:
            raise
    if around.claims:
        return _beside_loads(estimates, asked, case, around)
    return _make_room(estimates, case, around)


def check_on_gpu(estimates: Estimates, case: Case, freed: Bytes) -> None:
    """Raises NotOnGPUError if the model does not fit on GPUs even when these bytes are freed."""
    _place(estimates, _with_freed(case, freed), is_strict=False, is_wide=False)


def _beside_loads(estimates: Estimates, asked: Case, case: Case, around: Around) -> Decision:
    """Idle models go at once where the model would not fit when the loads under way are done; else it waits for these.

    ``case`` is what ``asked`` is beside the claims of those loads.
    """
    later = replace(asked, machine=after_claims(asked.machine, around.claims, freed(around.candidates)))
    try:
        _place(estimates, later, is_strict=True, is_wide=False)
        return Wait()
    except (LayoutError, LayoutNotAllocatedError):
        idle = [candidate for candidate in around.candidates if candidate.rank <= Rank.IDLE]
        return _choose(estimates, case, idle, is_wide=bool(around.failed)) or Wait()


def _make_room(estimates: Estimates, case: Case, around: Around) -> Decision:
    everybody = around.candidates
    _place(estimates, _with_freed(case, freed(everybody)), is_strict=False, is_wide=False)  # raises if it is hopeless
    chosen = _choose(estimates, case, everybody, is_wide=bool(around.failed))
    return chosen or _go_partly(estimates, case, everybody)


def _choose(estimates: Estimates, case: Case, candidates: Sequence[Candidate], *, is_wide: bool) -> MakeRoom | None:
    """Those who have to go so that the model fits wholly; None: it does not, whoever goes."""
    places: list[Place] = []

    def makes_room(freed: Bytes) -> bool:
        try:
            places.append(_place(estimates, _with_freed(case, freed), is_strict=True, is_wide=is_wide))
        except (LayoutError, LayoutNotAllocatedError):
            return False
        return True

    victims = choose(candidates, makes_room)
    return MakeRoom(victims, Eviction.MEMORY, places[-1].claim) if victims else None


def _go_partly(estimates: Estimates, case: Case, everybody: Sequence[Candidate]) -> Decision:
    """It does not fit wholly whoever goes: idle models go, so that most of it fits, and the others may stay."""
    idle = tuple(c for c in everybody if c.rank <= Rank.IDLE and _is_in_the_way(case, c))
    if idle:
        return MakeRoom(idle, Eviction.MEMORY, _all_of(case, 0))
    try:
        return _place(estimates, case, is_strict=False, is_wide=True)
    except (LayoutError, LayoutNotAllocatedError):
        victim = cheapest(everybody)
        assert victim is not None  # without others it would have been placed, or refused, before
        return MakeRoom((victim,), Eviction.MEMORY, _all_of(case, 0))


def _is_in_the_way(case: Case, candidate: Candidate) -> bool:
    wanted = [device_name(gpu) for gpu in case.machine.gpus] or [CPU]
    return any(candidate.held.get(device) for device in wanted)


def _beside(case: Case, claims: Sequence[Claim]) -> Case:
    """What the case is beside these claims; ``main_gpu`` still means the same GPU."""
    main = case.main_gpu
    machine = without_claims(case.machine, claims)
    number = next((i for i, gpu in enumerate(machine.gpus) if main and gpu.id == main.id), None)
    return replace(case, machine=machine, options=replace(case.options, main_gpu=number))


def _with_freed(case: Case, freed: Bytes) -> Case:
    return replace(case, machine=with_freed(case.machine, freed))


# ---- one place ---------------------------------------------------------------------------------


def _place(estimates: Estimates, case: Case, *, is_strict: bool, is_wide: bool) -> Place:
    """The place that the load loop would find, by the estimate, on the machine of ``case``.

    ``is_strict``: wholly or not at all. Where all layers find a place, the claim has only the devices that are used
    (unless ``is_wide``), and the load must stay on them: if it cannot, there may be a better place.
    """
    request = request_for(estimates, case)
    rules = replace(case.rules, require_full=is_strict or must_be_on_gpu(case.options, case.settings))
    loaded = rehearse_as_asked(estimates, case, request, rules)
    machine = case.machine
    if not is_wide and _is_complete(loaded, rules):
        machine = only(machine, names_of(loaded.layout))
        rules = replace(rules, require_full=rules.require_full or len(machine.gpus) < len(case.machine.gpus))
    estimate = estimates.memory(case.path, request, device_names(machine.gpus))
    held = bytes_of(loaded.memory)
    claim = _all_of(replace(case, machine=machine), held[CPU])
    if not is_wide:
        claim = replace(claim, in_the_end=held)
    return Place(Situation(request, machine, rules), estimate, loaded.layout, claim)


def _all_of(case: Case, system_bytes: int) -> Claim:
    return Claim(frozenset(map(device_name, case.machine.gpus)), system_bytes)


def _is_complete(loaded: Loaded, rules: LayoutRules) -> bool:
    num_layers = len(loaded.memory.cpu.weights)
    return num_placed(loaded.layout) >= (num_layers if rules.num_gpu < 0 else min(num_layers, rules.num_gpu))
