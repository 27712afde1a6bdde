"""What a load does next, by what else there is: a table, over models of four layers of 1 GiB each."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.footprint import DeviceName
from runner.protocol import DeviceLayers, DeviceMemory, Memory
from scheduler.devices import GPU, Machine, SystemMemory
from scheduler.errors import LayoutNotAllocatedError, NotOnGPUError, SettingsError, SystemMemoryError
from scheduler.events import Eviction
from scheduler.eviction import Candidate, Rank
from scheduler.options import LoadOptions, ModelHeader
from scheduler.placement import Around, MakeRoom, Place, Wait, decide, plan_beside
from scheduler.rehearsal import Case
from scheduler.reservations import Claim
from scheduler.settings import SchedulerSettings

GIB = 2**30
NUM_LAYERS = 4
CPU, SIM0, SIM1 = DeviceName("cpu", "cpu"), DeviceName("sim0", "sim"), DeviceName("sim1", "sim")
ONE, TWO = {"sim0": 8}, {"sim0": 8, "sim1": 8}


class Layers:
    """Estimates of models without graph: as many GiB as their layers have, and ``token_bytes`` of cache in a layer."""

    def __init__(self, token_bytes=0):
        self.token_bytes = token_bytes

    def header(self, path):
        return ModelHeader("llama", 8192)

    def memory(self, path, request, devices=()):
        where = {layer: share.id for share in request.layout for layer in share.layers}
        cache_bytes = self.token_bytes * request.num_ctx * request.num_parallel

        def on(id, library):
            weights = tuple(GIB if where.get(layer, "cpu") == id else 0 for layer in range(NUM_LAYERS))
            cache = tuple(cache_bytes if where.get(layer, "cpu") == id else 0 for layer in range(NUM_LAYERS))
            return DeviceMemory(id=id, library=library, weights=weights, cache=cache, graph=0)

        gpus = tuple(on(device.id, device.library) for device in devices)
        return Memory(input_weights=0, cpu=on("cpu", "cpu"), gpus=gpus)


def machine(gpus, free, system=64):
    return Machine(
        SystemMemory(64 * GIB, system * GIB, 0),
        tuple(
            GPU(id, "sim", free.get(id, size) * GIB, minimum_bytes=0, total_bytes=size * GIB)
            for id, size in gpus.items()
        ),
    )


def held(name, rank=Rank.IDLE, idle_s=10.0, **gib):
    """A loaded model that holds so many GiB of ``sim0``, ``sim1``, ``cpu``."""
    bytes_ = {{"cpu": CPU, "sim0": SIM0, "sim1": SIM1}[id]: size * GIB for id, size in gib.items()}
    return Candidate(Path(name), rank, idle_s, 1.0, bytes_)


def given(**asked):
    """Arguments of ``ask``."""
    return asked


def claim(*devices, system=0, **in_the_end):
    expected = {{"sim0": SIM0, "sim1": SIM1}[id]: size * GIB for id, size in in_the_end.items()}
    return Claim(frozenset(devices), system * GIB, expected or None)


def told(decision):
    """``go sim0:4``, ``go cpu``, ``evict a b``, ``wait``."""
    if isinstance(decision, Place):
        return "go " + (" ".join(f"{share.id}:{len(share.layers)}" for share in decision.layout) or "cpu")
    if isinstance(decision, MakeRoom):
        return "evict " + " ".join(sorted(str(victim.path) for victim in decision.victims))
    assert isinstance(decision, Wait)
    return "wait"


def ask(
    gpus, free=None, claims=(), candidates=(), system=64, max_loaded=9, failed=frozenset(), *,
    of=decide, token_bytes=0, **options,
):  # fmt: skip
    case = Case(Path("m"), LoadOptions(**options), SchedulerSettings(), machine(gpus, free or {}, system))
    return of(Layers(token_bytes), case, Around(tuple(claims), tuple(candidates), max_loaded, failed))


WHOLE_ON_SIM0 = frozenset({(DeviceLayers(id="sim0", library="sim", layers=(0, 1, 2, 3)),)})
BUSY, PINNED, LEAVING = Rank.BUSY, Rank.PINNED, Rank.LEAVING

TABLE = {
    # ---- alone
    "no GPU": (given(gpus={}), "go cpu"),
    "it fits": (given(gpus=ONE), "go sim0:4"),
    "the roomier of two": (given(gpus=TWO, free={"sim0": 5}), "go sim1:4"),
    "split over two": (given(gpus=TWO, free={"sim0": 3, "sim1": 2}), "go sim0:2 sim1:2"),
    "partly": (given(gpus=ONE, free={"sim0": 3}), "go sim0:3"),
    "num_gpu 0": (given(gpus=ONE, num_gpu=0), "go cpu"),
    "num_gpu 2": (given(gpus=ONE, num_gpu=2), "go sim0:2"),
    "main_gpu": (given(gpus=TWO, free={"sim1": 4}, main_gpu=1), "go sim1:4"),
    # ---- beside loaded models
    "beside another": (given(gpus=ONE, free={"sim0": 4}, candidates=[held("a", sim0=4)]), "go sim0:4"),
    "one has to go": (given(gpus=ONE, free={"sim0": 2}, candidates=[held("a", sim0=6)]), "evict a"),
    "the smallest number goes": (
        given(gpus=ONE, free={"sim0": 1}, candidates=[held("a", sim0=2), held("b", sim0=2), held("c", sim0=3)]),
        "evict c",
    ),
    "several have to go": (
        given(
            gpus=ONE,
            free={"sim0": 0},
            candidates=[held("a", sim0=2), held("b", sim0=2), held("c", sim0=3, idle_s=0)],
        ),
        "evict a b",
    ),
    "idle before busy": (
        given(gpus=TWO, free={"sim0": 1, "sim1": 1}, candidates=[held("a", BUSY, sim0=7), held("b", sim1=7)]),
        "evict b",
    ),
    "busy before pinned": (
        given(gpus=TWO, free={"sim0": 1, "sim1": 1}, candidates=[held("a", BUSY, sim0=7), held("b", PINNED, sim1=7)]),
        "evict a",
    ),
    "one that goes anyway": (
        given(gpus=TWO, free={"sim0": 1, "sim1": 1}, candidates=[held("a", LEAVING, sim0=7), held("b", sim1=7)]),
        "evict a",
    ),
    "nobody goes for what fits nowhere wholly": (
        given(gpus={"sim0": 3}, free={"sim0": 2}, candidates=[held("a", BUSY, sim0=1)]),
        "go sim0:2",
    ),
    "idle ones go for most of it": (
        given(gpus={"sim0": 3}, free={"sim0": 1}, candidates=[held("a", sim0=2), held("b", cpu=9)]),
        "evict a",
    ),
    "num_gpu beside another": (
        given(gpus=ONE, free={"sim0": 2}, candidates=[held("a", sim0=6)], num_gpu=2),
        "go sim0:2",
    ),
    "num_gpu makes room": (given(gpus=ONE, free={"sim0": 1}, candidates=[held("a", sim0=7)], num_gpu=2), "evict a"),
    "host memory makes room": (given(gpus={}, system=3, candidates=[held("a", cpu=50)]), "evict a"),
    "as many as may be": (given(gpus=ONE, max_loaded=1, candidates=[held("a", sim0=1)]), "evict a"),
    "where it went it did not fit": (
        given(gpus=ONE, free={"sim0": 6}, candidates=[held("a", sim0=2)], failed=WHOLE_ON_SIM0),
        "evict a",
    ),
    # ---- beside loads under way
    "on another device": (given(gpus=TWO, claims=[claim(SIM0)]), "go sim1:4"),
    "all devices are claimed": (given(gpus=ONE, claims=[claim(SIM0)]), "wait"),
    "the CPU is not": (given(gpus=ONE, claims=[claim(SIM0)], num_gpu=0), "go cpu"),
    "not partly while there may be a whole place": (given(gpus=TWO, free={"sim1": 3}, claims=[claim(SIM0)]), "wait"),
    "host memory is claimed": (given(gpus={}, claims=[claim(system=61)]), "wait"),
    "loads count as well": (given(gpus=TWO, claims=[claim(SIM0)], max_loaded=1), "wait"),
    "an idle model goes if it helps at once": (
        given(gpus=TWO, free={"sim1": 2}, claims=[claim(SIM0, sim0=7)], candidates=[held("a", sim1=6)]),
        "evict a",
    ),
    "or if nobody knows what the load will leave": (
        given(gpus=TWO, free={"sim1": 2}, claims=[claim(SIM0)], candidates=[held("a", sim1=6)]),
        "evict a",
    ),
    "but not if the load leaves enough": (
        given(gpus=TWO, free={"sim1": 2}, claims=[claim(SIM0, sim0=4)], candidates=[held("a", sim1=6)]),
        "wait",
    ),
    "nor for room on a claimed device": (
        given(gpus=TWO, free={"sim0": 1, "sim1": 2}, claims=[claim(SIM0, sim0=1)], candidates=[held("a", sim0=6)]),
        "wait",
    ),
    "a busy model stays while a load may end": (
        given(gpus=TWO, free={"sim1": 2}, claims=[claim(SIM0)], candidates=[held("a", BUSY, sim1=6)]),
        "wait",
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", TABLE)
def test_what_a_load_does_next(situation):
    asked, expected = TABLE[situation]
    assert told(ask(**asked)) == expected


def test_a_place_claims_the_devices_it_uses_and_its_host_memory():
    place = ask(TWO, free={"sim0": 5})
    assert place.claim.devices == {SIM1}
    assert place.claim.in_the_end[SIM1] == 4 * GIB
    assert [gpu.id for gpu in place.situation.machine.gpus] == ["sim1"]
    assert place.situation.rules.require_full  # it was to be whole there: elsewhere it may still be
    on_cpu = ask(ONE, num_gpu=0)
    assert (on_cpu.claim.devices, on_cpu.claim.system_bytes) == (set(), 4 * GIB)
    partly = ask(TWO, free={"sim0": 2, "sim1": 1})
    assert partly.claim.devices == {SIM0, SIM1}
    assert not partly.situation.rules.require_full


def test_room_that_is_made_is_claimed_and_why_it_is_made_is_told():
    decision = ask(TWO, free={"sim0": 2, "sim1": 1}, candidates=[held("a", sim0=6), held("b", BUSY, sim1=7)])
    assert (decision.claim.devices, decision.reason) == ({SIM0}, Eviction.MEMORY)
    decision = ask(TWO, max_loaded=1, candidates=[held("a", sim0=6)])
    assert (decision.claim, decision.reason) == (Claim(), Eviction.MAX_MODELS)


# ---- contexts and sequences that are left open ------------------------------------------------

TOKEN = GIB >> 12  # of cache in each layer: 4096 tokens take 4 GiB in all


@pytest.mark.parametrize(
    ("asked", "expected", "num_ctx"),
    [
        (given(gpus={"sim0": 12}), "go sim0:4", 8192),
        (given(gpus={"sim0": 12}, free={"sim0": 5}, candidates=[held("a", sim0=7)]), "evict a", None),
        (given(gpus={"sim0": 12}, free={"sim0": 5}, candidates=[held("a", LEAVING, sim0=7)]), "evict a", None),
        (given(gpus={"sim0": 12}, free={"sim0": 5}, candidates=[held("a", BUSY, sim0=7)]), "go sim0:4", 1024),
        (given(gpus={"sim0": 12}, free={"sim0": 5}, candidates=[held("a", PINNED, sim0=7)]), "go sim0:4", 1024),
        # all that idle ones leave, and no more than that
        (
            given(gpus={"sim0": 12}, free={"sim0": 5}, candidates=[held("a", sim0=1), held("b", BUSY, sim0=6)]),
            "evict a",
            None,
        ),
        (given(gpus={"sim0": 13}, free={"sim0": 12}, candidates=[held("a", sim0=1)]), "go sim0:4", 8192),
        # nothing fits beside busy ones: the default context then, or what there is room for
        (given(gpus={"sim0": 12}, free={"sim0": 3}, candidates=[held("a", BUSY, sim0=9)]), "evict a", None),
        (given(gpus={"sim0": 5}, free={"sim0": 3}, candidates=[held("a", PINNED, sim0=2)]), "evict a", None),
        # while others load
        (given(gpus=TWO, free={"sim1": 5}, claims=[claim(SIM0)], candidates=[held("a", sim1=3)]), "evict a", None),
        (
            given(gpus=TWO, free={"sim1": 5}, claims=[claim(SIM0, sim0=0)], candidates=[held("a", sim1=3)]),
            "wait",
            None,
        ),
    ],
)
def test_idle_models_make_room_for_the_largest_context(asked, expected, num_ctx):
    decision = ask(**asked, num_ctx="auto", num_parallel=1, token_bytes=TOKEN)
    assert told(decision) == expected
    if num_ctx:
        assert decision.situation.request.num_ctx == num_ctx


def test_two_models_that_fit_side_by_side_both_stay_in_the_end():
    """Each takes 5 GiB with one sequence, and 8 of the 10 if it can. Who had to make room for the other comes back."""
    asked = given(num_ctx=1024, token_bytes=TOKEN)
    first = ask({"sim0": 10}, **asked)
    assert first.claim.in_the_end[SIM0] == 8 * GIB
    second = plan(gpus={"sim0": 10}, free={"sim0": 2}, candidates=[held("a", sim0=8)], **asked)
    assert (second.unloads, second.memory.gpus[0].total_bytes) == ((Path("a"),), 5 * GIB)
    third = ask({"sim0": 10}, free={"sim0": 5}, candidates=[held("b", sim0=5)], **asked)
    assert told(third) == "go sim0:4"


# ---- plans -------------------------------------------------------------------------------------


def plan(**asked):
    return ask(**asked, of=plan_beside)


@pytest.mark.parametrize("situation", TABLE)
def test_a_plan_is_where_the_load_goes_in_the_end(situation):
    """One that goes at once has the layout of the decision; one that makes room tells first who goes."""
    asked, expected = TABLE[situation]
    found = plan(**asked)
    if expected.startswith("go"):
        assert told(ask(**asked)) == expected
        assert found.layout == ask(**asked).layout
        assert (found.unloads, found.is_waiting) == ((), False)
    elif expected.startswith("evict"):
        assert [str(path) for path in found.unloads][: expected.count(" ")] == expected.split()[1:]
    else:
        assert found.is_waiting
        assert found.is_whole


def test_a_plan_counts_on_what_those_who_go_hold():
    idle = [held("a", sim0=7), held("b", sim1=6, idle_s=20)]
    found = plan(gpus=TWO, free={"sim0": 1, "sim1": 2}, candidates=idle)
    assert found.unloads == (Path("b"),)
    assert found.is_whole
    assert [len(share.layers) for share in found.layout] == [4]
    assert [gpu.free_bytes // GIB for gpu in found.machine.gpus] == [1, 8]
    assert [gpu.id for gpu in found.memory.gpus] == ["sim0", "sim1"]
    assert [gpu.total_bytes // GIB for gpu in found.memory.gpus] == [0, 4]


def test_the_largest_context_of_a_plan_is_that_of_auto():
    asked = given(
        gpus={"sim0": 12}, free={"sim0": 5}, candidates=[held("a", sim0=1), held("b", BUSY, sim0=6)],
        num_parallel=1, token_bytes=TOKEN,
    )  # fmt: skip
    found = plan(**asked, num_ctx="auto")
    assert (found.request.num_ctx, found.max_num_ctx) == (2048, 2048)
    assert (plan(**asked, num_ctx=99).unloads, plan(**asked, num_ctx=99).max_num_ctx) == ((), 2048)


def test_a_plan_fails_as_the_load_would():
    with pytest.raises(NotOnGPUError):
        plan(gpus={"sim0": 3}, candidates=[held("a", sim0=1)], fail_if_not_gpu=True)
    assert plan(gpus=ONE, free={"sim0": 1}, candidates=[held("a", sim0=7)], fail_if_not_gpu=True).is_whole


def test_main_gpu_means_the_same_device_beside_claims():
    gpus = {"sim0": 8, "sim1": 8, "sim2": 9}
    assert told(ask(gpus, claims=[claim(SIM0)], main_gpu=1)) == "go sim1:4"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (given(gpus={}, system=3), SystemMemoryError),
        (given(gpus={}, system=2, candidates=[held("a", cpu=1)]), SystemMemoryError),
        (given(gpus={"sim0": 3}, num_gpu=4), LayoutNotAllocatedError),
        (given(gpus={"sim0": 3}, candidates=[held("a", sim0=1)], num_gpu=4), LayoutNotAllocatedError),
        (given(gpus={"sim0": 3}, fail_if_not_gpu=True), NotOnGPUError),
        (given(gpus={"sim0": 3}, candidates=[held("a", sim0=1)], fail_if_not_gpu=True), NotOnGPUError),
        (given(gpus={}, fail_if_not_gpu=True), NotOnGPUError),
        (given(gpus=TWO, claims=[claim(SIM1)], candidates=[held("a", sim0=8)], main_gpu=2), SettingsError),
    ],
)
def test_nobody_goes_or_waits_for_what_cannot_be(asked, error):
    with pytest.raises(error):
        ask(**asked)
