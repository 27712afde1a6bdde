"""Layouts: the original's golden vectors, 160 recorded situations, and properties."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.protocol import DeviceMemory, Memory
from scheduler.devices import GPU, MINIMUM_GPU_BYTES, SystemMemory
from scheduler.errors import RequireFullError, SystemMemoryError
from scheduler.layout import LayoutRules, create_layout, layer_bytes, num_placed, unknown_memory

MIB = 2**20
SYSTEM = SystemMemory(512 * MIB, 512 * MIB, 256 * MIB)
PLENTY = SystemMemory(2**60, 2**60, 0)


def gpu(name, free_mib, library="CUDA", *, is_integrated=False, minimum=MINIMUM_GPU_BYTES, room_for_minimum=True):
    extra = minimum if room_for_minimum else 0
    return GPU(name, library, free_mib * MIB + extra, is_integrated, minimum)


def memory(layers, gpus, *, graphs=None, unit=MIB):
    zeros = (0,) * len(layers)
    return Memory(
        input_weights=0,
        cpu=DeviceMemory(id="cpu", library="cpu", weights=tuple(n * unit for n in layers), cache=zeros, graph=0),
        gpus=tuple(
            DeviceMemory(id=g.id, library=g.library, weights=zeros, cache=zeros, graph=(graphs or {}).get(g.id, 0))
            for g in gpus
        ),
    )


def layout_of(gpus, layers, system=SYSTEM, **rules):
    found = create_layout(memory(layers, gpus), gpus, system, LayoutRules(**rules))
    return {device.id: list(device.layers) for device in found}


ONE = [gpu("g0", 256)]
TWO = [gpu("g0", 128), gpu("g1", 256)]
MIXED = [gpu("g0", 128), gpu("g1", 256, is_integrated=True)]


@pytest.mark.parametrize(
    ("gpus", "layers", "rules", "expected"),
    [
        ([], [50] * 3, {"require_full": True}, {}),
        (ONE, [50] * 3, {}, {"g0": [0, 1, 2]}),
        (ONE, [100] * 4, {}, {"g0": [1, 2]}),  # the output layer is left out
        (ONE, [50] * 3, {"num_gpu": 1}, {"g0": [1]}),
        (ONE, [50] * 3, {"num_gpu": 0}, {}),
        (ONE, [100] * 4, {"num_gpu": 999}, {"g0": [0, 1, 2, 3]}),
        (TWO, [50] * 3, {}, {"g1": [0, 1, 2]}),
        (TWO, [256, 50, 50], {}, {"g1": [0], "g0": [1, 2]}),
        (TWO, [256, 256, 50], {}, {"g1": [1]}),
        (TWO, [50] * 3, {"num_gpu": 1}, {"g1": [1]}),
        (TWO, [256, 50, 50], {"num_gpu": 2}, {"g1": [0], "g0": [1]}),
        (TWO, [256, 256, 50], {"num_gpu": 999}, {"g1": [0, 1], "g0": [2]}),
        ([gpu("g0", 128), gpu("g1", 256, "ROCm")], [128, 128, 50], {}, {"g1": [0, 1]}),
        ([gpu("g0", 256, is_integrated=True)], [50] * 3, {}, {"g0": [0, 1, 2]}),
        (MIXED, [50] * 3, {}, {"g1": [0], "g0": [1, 2]}),
        (MIXED, [50] * 2, {}, {"g0": [0, 1]}),
        (MIXED, [100] * 4, {}, {"g1": [0, 1], "g0": [2]}),
        (MIXED, [100] * 4, {"num_gpu": 1}, {"g0": [2]}),
        (MIXED, [100] * 4, {"num_gpu": 999}, {"g0": [0], "g1": [1, 2, 3]}),
    ],
)
def test_golden_vectors(gpus, layers, rules, expected):
    assert layout_of(gpus, layers, **rules) == expected


@pytest.mark.parametrize(
    ("gpus", "rules"),
    [
        (ONE, {"require_full": True}),
        ([gpu("g0", 256, room_for_minimum=False)], {"require_full": True, "num_gpu": 4}),
    ],
)
def test_golden_vectors_that_end_in_an_error(gpus, rules):
    with pytest.raises(RequireFullError, match="unable to load full model on GPU"):
        layout_of(gpus, [100] * 4, **rules)


def test_recorded_situations(shared, repository_root):
    spec = importlib.util.spec_from_file_location("check_layout", repository_root / "tools" / "check_layout.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    cases = tool.read_cases(shared / "cases" / "layout.json.gz")
    wrong = [i for i, case in enumerate(cases) if tool.answer(case) != case["expected"]]
    assert len(cases) >= 160
    assert wrong == []


def test_unknown_memory_puts_everything_on_the_largest_gpu():
    found = create_layout(unknown_memory(5), TWO, PLENTY, LayoutRules())
    assert [(device.id, device.layers) for device in found] == [("g1", (0, 1, 2, 3, 4))]


def test_a_gpu_that_already_has_a_graph_stays_in_use():
    assert layout_of(TWO, [50] * 3) == {"g1": [0, 1, 2]}
    found = create_layout(memory([50] * 3, TWO, graphs={"g0": MIB}), TWO, PLENTY, LayoutRules())
    assert [(device.id, device.layers) for device in found] == [("g1", (0, 1)), ("g0", (2,))]


def test_spread_uses_every_gpu():
    assert set(layout_of(TWO, [50] * 3, is_spread=True)) == {"g0", "g1"}


def test_backoff_leaves_its_share_alone():
    assert layout_of(ONE, [50] * 4, backoff=0.0) == {"g0": [0, 1, 2, 3]}
    assert num_of(ONE, [50] * 4, backoff=0.3) < 4  # 0.3 of all that is free, the minimum included
    assert num_of(ONE, [50] * 4, backoff=1.0) == 0


def num_of(gpus, layers, **rules):
    return sum(map(len, layout_of(gpus, layers, **rules).values()))


def test_system_memory_and_swap_bound_what_stays_on_the_cpu():
    assert layout_of([], [400, 300]) == {}  # 700 of 512 + 256
    with pytest.raises(SystemMemoryError) as caught:
        layout_of([], [400, 400])
    assert str(caught.value) == "model requires more system memory (800.0 MiB) than is available (768.0 MiB)"
    with pytest.raises(RequireFullError, match=r"more system memory \(700.0 MiB\) than is currently available"):
        layout_of([], [400, 300], require_full=True)  # swap does not count


def test_a_forced_count_on_hardly_any_memory_ends():
    """The original's search never ends here: float32 has no value between its two bounds."""
    tiny = [gpu("g0", 1, minimum=0)]
    assert layout_of(tiny, [100] * 5, PLENTY, num_gpu=5) == {"g0": [0, 1, 2, 3, 4]}


def test_eight_gpus_and_two_hundred_layers_are_quick():
    gpus = [gpu(f"g{i}", 3000 + 100 * i) for i in range(8)]
    model = memory([110] * 200, gpus)
    durations = []
    for _ in range(5):
        begin = time.thread_time()
        create_layout(model, gpus, PLENTY, LayoutRules())
        durations.append(time.thread_time() - begin)
    assert min(durations) < 0.01


gpus_strategy = st.lists(st.integers(0, 3000), min_size=1, max_size=4).map(
    lambda sizes: [gpu(f"g{i}", size, is_integrated=size % 5 == 0) for i, size in enumerate(sizes)]
)
layers_strategy = st.lists(st.integers(0, 400), min_size=1, max_size=12)


@given(gpus_strategy, layers_strategy, st.booleans())
def test_never_over_capacity(gpus, layers, is_spread):
    found = create_layout(memory(layers, gpus), gpus, PLENTY, LayoutRules(is_spread=is_spread))
    free = {g.id: g.free_bytes - g.minimum_bytes for g in gpus}
    placed = [layer for device in found for layer in device.layers]
    assert len(placed) == len(set(placed))
    for device in found:
        used = sum(layers[i] * MIB for i in device.layers)
        assert used <= free[device.id] * (1 + 2**-22)  # float32 may round a GPU's free memory up


@given(st.integers(0, 3000), st.integers(0, 500), layers_strategy)
def test_more_memory_on_one_device_never_places_fewer_layers(free, more, layers):
    assert num_of([gpu("g0", free + more)], layers, system=PLENTY) >= num_of([gpu("g0", free)], layers, system=PLENTY)


@given(st.sets(st.integers(0, 3000), min_size=2, max_size=4), layers_strategy, st.randoms())
def test_the_order_in_which_gpus_are_listed_does_not_matter(sizes, layers, random):
    gpus = [gpu(f"g{size}", size) for size in sizes]
    shuffled = random.sample(gpus, len(gpus))
    assert layout_of(gpus, layers, PLENTY) == layout_of(shuffled, layers, PLENTY)


def test_layer_bytes_add_up_over_devices():
    cpu = DeviceMemory(id="cpu", library="cpu", weights=(1, 2), cache=(10, 20), graph=5)
    other = DeviceMemory(id="g0", library="CUDA", weights=(100, 200), cache=(1000, 2000), graph=7)
    assert layer_bytes(Memory(input_weights=9, cpu=cpu, gpus=(other,))) == [1111, 2222]


def test_num_placed_counts_layers():
    assert num_placed(create_layout(unknown_memory(3), ONE, PLENTY, LayoutRules())) == 3


def test_the_tool_says_how_many_are_right(shared, repository_root, capsys):
    spec = importlib.util.spec_from_file_location("check_layout", repository_root / "tools" / "check_layout.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main([str(Path(shared) / "cases" / "layout.json.gz")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "160 of 160"
