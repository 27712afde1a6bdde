"""Where a load goes while others go on: at once, after others have made room, or after another load has ended.

Pure, but for headers that the estimator reads. Blocking, for milliseconds: call on a thread, without a running event
loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner.footprint import CPU
from runner.protocol import Layout, Memory
from scheduler.errors import LayoutError, LayoutNotAllocatedError
from scheduler.estimate import Estimates, device_names
from scheduler.events import Eviction
from scheduler.eviction import Candidate, Rank, cheapest, choose, freed
from scheduler.layout import num_placed
from scheduler.load import Loaded, Situation
from scheduler.options import AUTO, Auto, LoadOptions, layers_wanted, must_be_on_gpu
from scheduler.plan import Plan, largest_num_ctx, request_for
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

    @property
    def is_for_memory(self) -> bool:
        return self.reason is Eviction.MEMORY


@dataclass(frozen=True, slots=True)
class Wait:
    """Another load has to end first."""


Decision = Place | MakeRoom | Wait


def decide(estimates: Estimates, case: Case, around: Around) -> Decision:
    """What the load that ``case`` describes does next.

    A model goes beside others only where it fits wholly (or with the layers that ``num_gpu`` says). Nobody is unloaded
    for a model that could not be loaded anyway. Idle models make room for the context ``"auto"``.

    Raises what loading would on a machine without any other model: LayoutError, LayoutNotAllocatedError; and
    SettingsError, ModelFileError.
    """
    wants_gpu = bool(case.machine.gpus) and case.options.num_gpu != 0
    asked, case = case, _beside(case, around.claims)
    num_others = len(around.claims) + len(around.candidates)
    if num_others >= around.max_loaded:
        victim = cheapest(around.candidates)
        return MakeRoom((victim,), Eviction.MAX_MODELS, Claim()) if victim else Wait()
    if wants_gpu and not case.machine.gpus:
        return Wait()  # all are claimed, and the CPU is no place for what waits for a GPU
    num_ctx = _context(estimates, case, around.candidates)
    asked, case = _with_context(asked, num_ctx), _with_context(case, num_ctx)
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


# ---- the context "auto" ------------------------------------------------------------------------


def _context(estimates: Estimates, case: Case, others: Sequence[Candidate]) -> int | Auto | None:
    """The context to look for a place with. ``"auto"`` is the largest that fits wholly once all idle models are gone.

    Where none does, the default one, or what would fit if everybody were gone, if that is less.
    """
    if case.options.num_ctx != AUTO:
        return case.options.num_ctx
    beside = _largest_without_idle(estimates, case, others)
    if beside is not None or not others:
        return beside
    alone = largest_num_ctx(estimates, _with_freed(case, freed(others)))
    return None if alone is None else min(alone, case.settings.default_num_ctx)


def _largest_without_idle(estimates: Estimates, case: Case, others: Sequence[Candidate]) -> int | None:
    idle = [candidate for candidate in others if candidate.rank <= Rank.IDLE]
    return largest_num_ctx(estimates, _with_freed(case, freed(idle)))


def _with_context(case: Case, num_ctx: int | Auto | None) -> Case:
    return replace(case, options=replace(case.options, num_ctx=num_ctx))


# ---- a plan ------------------------------------------------------------------------------------


_LOADING = Path()  # stands for a model of which only its claim is known


def plan_beside(estimates: Estimates, case: Case, around: Around) -> Plan:
    """What a load that began now would come to, after all that it would wait for.

    ``case.machine`` is as ``decide`` has it. What the model itself holds, if it is loaded now, is to be free there, and
    it is not among the candidates: it goes before it is loaded anew. Raises what ``decide`` does.
    """
    going: list[Candidate] = []
    is_waiting = False
    while not isinstance(decision := decide(estimates, case, around), Place):
        if isinstance(decision, MakeRoom):
            going += decision.victims
            case, around = _after_leaving(case, around, decision)
        else:
            is_waiting = True
            case, around = _after_loads(case, around)
    beside = _beside(case, around.claims)
    request = decision.situation.request.model_copy(update={"layout": decision.layout})
    return Plan(
        request=request,
        memory=estimates.memory(case.path, request, device_names(case.machine.gpus)),
        machine=case.machine,
        trained_num_ctx=estimates.header(case.path).context_length,
        max_num_ctx=_largest_without_idle(estimates, beside, around.candidates),
        unloads=tuple(candidate.path for candidate in going if candidate.path != _LOADING),
        is_waiting=is_waiting,
    )


def _after_leaving(case: Case, around: Around, room: MakeRoom) -> tuple[Case, Around]:
    rest = tuple(candidate for candidate in around.candidates if candidate not in room.victims)
    case = replace(case, is_at_others_expense=case.is_at_others_expense or room.is_for_memory)
    return _with_freed(case, freed(room.victims)), replace(around, candidates=rest)


def _after_loads(case: Case, around: Around) -> tuple[Case, Around]:
    """When the loads under way are done, each has loaded a model that is in use."""
    held = freed(around.candidates)
    machine = after_claims(case.machine, around.claims, held)
    done = (Candidate(_LOADING, Rank.BUSY, 0.0, 0.0, _of_load(claim, case, held)) for claim in around.claims)
    return replace(case, machine=machine), replace(around, claims=(), candidates=(*around.candidates, *done))


def _of_load(claim: Claim, case: Case, held: Bytes) -> Bytes:
    """What the load with this claim will hold: all that others leave, where that is not known."""
    if claim.in_the_end is not None:
        return claim.in_the_end
    gpus = {device_name(gpu): gpu.total_bytes or gpu.free_bytes for gpu in case.machine.gpus}
    return {CPU: claim.system_bytes, **{name: gpus[name] - held.get(name, 0) for name in claim.devices & set(gpus)}}


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
    if not is_wide and _is_complete(loaded, case.options):
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


def _is_complete(loaded: Loaded, options: LoadOptions) -> bool:
    return num_placed(loaded.layout) >= layers_wanted(options, len(loaded.memory.cpu.weights))
