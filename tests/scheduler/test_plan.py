"""Plans: the load loop against the estimate, and the largest context by bisection."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from runner.protocol import LoadRequest, Operation
from scheduler.device_choice import MAX_DEVICES
from scheduler.devices import Machine, SystemMemory
from scheduler.errors import LayoutNotAllocatedError, ModelFileError, SettingsError, SystemMemoryError
from scheduler.estimate import Estimator, device_names
from scheduler.hypothetical import parse_hypothetical
from scheduler.layout import num_placed
from scheduler.options import LoadOptions
from scheduler.plan import largest_num_ctx, layout_notes, make_plan, request_for
from scheduler.rehearsal import Case
from scheduler.settings import SchedulerSettings
from tools.make_gguf import RECIPES, SHAPES, write_model

GIB = 2**30
SETTINGS = SchedulerSettings()


@pytest.fixture(scope="module")
def estimator():
    return Estimator()


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """Files with the header of a real model, by its shape's name."""
    folder = tmp_path_factory.mktemp("headers")

    def write(name):
        path = folder / f"{name}.gguf"
        return path if path.exists() else write_model(path, SHAPES[name], RECIPES["q4_k_m"], header_only=True)

    return write


def machine(devices, system_bytes=64 * GIB):
    return Machine(SystemMemory(system_bytes, system_bytes, 0), parse_hypothetical(devices))


def case(path, devices, system_bytes=64 * GIB, **options):
    return Case(path, LoadOptions(**options), SETTINGS, machine(devices, system_bytes))


def test_two_gpus_of_24_gib_hold_70b(estimator, header):
    plan = make_plan(estimator, case(header("llama-70b"), "24GiB,24GiB"))
    assert plan.is_whole
    assert [len(share.layers) for share in plan.layout] == [41, 40]
    assert plan.request.num_ctx == 4096
    assert 20_000 < plan.max_num_ctx < 30_000
    for gpu, memory in zip(plan.machine.gpus, plan.memory.gpus, strict=True):
        assert 20 * GIB < memory.total_bytes <= gpu.free_bytes - gpu.minimum_bytes


def test_16_gib_hold_most_of_30b_a3b(estimator, header):
    plan = make_plan(estimator, case(header("llama-30b-a3b"), "16GiB"))
    assert not plan.is_whole
    assert 40 <= num_placed(plan.layout) < 49
    assert plan.max_num_ctx is None
    assert plan.memory.cpu.total_bytes > 1.5 * GIB


def test_the_memory_is_that_of_the_layout(estimator, header):
    path = header("llama-70b")
    plan = make_plan(estimator, case(path, "24GiB,12GiB"))
    assert plan.memory == estimator.memory(path, plan.request, device_names(plan.machine.gpus))


def test_the_largest_context_fits_and_one_more_does_not(estimator, header):
    asked = case(header("llama-70b"), "24GiB,24GiB")
    largest = largest_num_ctx(estimator, asked)
    for num_ctx, is_whole in ((largest, True), (largest + 1, False)):
        options = LoadOptions(num_ctx=num_ctx)
        assert make_plan(estimator, replace(asked, options=options)).is_whole is is_whole


def test_more_sequences_and_larger_values_leave_less_context(estimator, header):
    path = header("llama-70b")
    one = largest_num_ctx(estimator, case(path, "24GiB,24GiB"))
    assert largest_num_ctx(estimator, case(path, "24GiB,24GiB", num_parallel=2)) == pytest.approx(one / 2, rel=0.1)
    assert largest_num_ctx(estimator, case(path, "24GiB,24GiB", kv_cache_type="f32")) == pytest.approx(one / 2, rel=0.1)


def test_without_gpus_free_memory_is_the_limit_and_swap_does_not_count(estimator, demo_model):
    asked = case(demo_model, "cpu")
    plan = make_plan(estimator, asked)
    assert plan.is_whole
    assert plan.max_num_ctx == plan.trained_num_ctx == 2048
    small = request_of(estimator, demo_model, num_ctx=500, num_parallel=1)
    system = SystemMemory(GIB, estimator.memory(demo_model, small).total_bytes, GIB)
    assert largest_num_ctx(estimator, replace(asked, machine=Machine(system))) == 500


def request_of(estimator, path, **options):
    return request_for(estimator, case(path, "cpu", **options))


def test_auto_is_the_largest_context_or_else_the_default(estimator, header, demo_model):
    path = header("llama-70b")
    auto = case(path, "24GiB,24GiB", num_ctx="auto")
    assert request_for(estimator, auto).num_ctx == largest_num_ctx(estimator, auto)
    assert make_plan(estimator, auto).request.num_ctx == make_plan(estimator, auto).max_num_ctx
    assert request_for(estimator, case(path, "24GiB,12GiB", num_ctx="auto")).num_ctx == 4096
    assert request_of(estimator, demo_model, num_ctx="auto").num_ctx == 2048
    assert request_of(estimator, demo_model, num_ctx=99).num_ctx == 99


@pytest.mark.parametrize(
    ("devices", "options", "expected"),
    [
        ("24GiB,24GiB", {}, 4),
        ("24GiB,24GiB", {"num_ctx": 8192}, 2),  # 3 would leave layers on the CPU
        ("24GiB,24GiB", {"num_ctx": 16384}, 1),
        ("24GiB,12GiB", {}, 1),  # it does not fit wholly with any number
        ("24GiB,24GiB", {"num_parallel": 7}, 7),
        ("24GiB,24GiB", {"num_gpu": 0}, 1),  # half of the host's 64 GiB do not hold it
    ],
)
def test_as_many_sequences_as_fit_wholly(estimator, header, devices, options, expected):
    assert request_for(estimator, case(header("llama-70b"), devices, **options)).num_parallel == expected


def test_a_model_for_which_others_had_to_go_has_one_sequence(estimator, demo_model):
    asked = case(demo_model, "sim:64MiB")
    assert request_for(estimator, asked).num_parallel == 4
    assert request_for(estimator, replace(asked, is_at_others_expense=True)).num_parallel == 1
    named = replace(case(demo_model, "sim:64MiB", num_parallel=3), is_at_others_expense=True)
    assert request_for(estimator, named).num_parallel == 3


def test_without_gpus_sequences_take_at_most_half_of_free_memory(estimator, demo_model):
    one = request_of(estimator, demo_model, num_parallel=1)
    for number in (1, 2, 3):
        request = one.model_copy(update={"num_parallel": number})
        system = SystemMemory(GIB, 2 * estimator.memory(demo_model, request).total_bytes, 0)
        asked = replace(case(demo_model, "cpu"), machine=Machine(system))
        assert request_for(estimator, asked).num_parallel == number


def test_num_gpu_is_kept_and_fits_wholly_means_that_many(estimator, header):
    plan = make_plan(estimator, case(header("llama-70b"), "24GiB,24GiB", num_gpu=20))
    assert num_placed(plan.layout) == 20
    assert not plan.is_whole
    assert plan.max_num_ctx == 131072


@pytest.mark.parametrize(
    ("devices", "options", "notes"),
    [
        ("sim:2MiB", {"num_gpu": 999}, ["num_gpu 999: 0 of 7 layers are on GPUs, more do not fit"]),
        ("sim:2MiB", {"num_gpu": 2}, ["num_gpu 2: 0 of 7 layers are on GPUs, more do not fit"]),
        ("sim:2MiB", {"num_gpu": 0}, []),
        ("sim:2MiB", {"num_gpu": -1}, []),
        ("sim:2MiB", {}, []),
        ("sim:64MiB", {"num_gpu": 999}, []),
        ("sim:64MiB", {"num_gpu": 2, "main_gpu": 0}, []),
        ("cpu", {"num_gpu": 5}, ["num_gpu 5 has no effect: there is no GPU"]),
        ("cpu", {"main_gpu": 3}, ["main_gpu 3 has no effect: there is no GPU"]),
        ("cpu", {"num_gpu": 0}, []),
        ("cpu", {"num_gpu": -1}, []),
    ],
)
def test_layers_that_are_not_where_they_were_asked_for_are_told(estimator, demo_model, devices, options, notes):
    """On 2 MiB there is not even room for the graph."""
    asked = case(demo_model, devices, num_batch=512, **options)
    plan = make_plan(estimator, asked)
    assert list(layout_notes(asked.options, plan.memory, plan.layout)) == notes


def test_a_forced_count_that_cannot_be_allocated_fails_as_the_load_would(estimator, header):
    with pytest.raises(LayoutNotAllocatedError, match=r"num_gpu = 999: out of memory on gpu0: \d+ bytes asked"):
        make_plan(estimator, case(header("llama-70b"), "24GiB", num_gpu=999))


def test_too_little_host_memory_fails_as_the_load_would(estimator, header):
    with pytest.raises(SystemMemoryError, match="requires more system memory"):
        make_plan(estimator, case(header("llama-70b"), "24GiB", system_bytes=GIB))


def test_bad_options_and_files(estimator, demo_model, tmp_path):
    with pytest.raises(SettingsError, match=r"kv_cache_type must be one of f16, .*, found 'q5_1'"):
        make_plan(estimator, case(demo_model, "cpu", kv_cache_type="q5_1"))
    with pytest.raises(ModelFileError):
        make_plan(estimator, case(tmp_path / "none.gguf", "cpu"))


def test_a_plan_takes_milliseconds(estimator, header):
    asked = case(header("llama-70b"), "24GiB,24GiB")
    make_plan(estimator, asked)
    times = []
    for _ in range(5):
        begin = time.thread_time()
        make_plan(estimator, asked)
        times.append(time.thread_time() - begin)
    assert min(times) < 0.1


def test_a_plan_for_as_many_devices_as_there_may_be_does_not_take_long(estimator, header):
    """They hold nearly all of the model: that takes the most tries."""
    asked = case(header("llama-70b"), ",".join(["3400MiB"] * MAX_DEVICES))
    times = []
    for _ in range(5):
        begin = time.thread_time()
        assert not make_plan(estimator, asked).is_whole
        times.append(time.thread_time() - begin)
    assert min(times) < 1.5


def test_a_plan_starts_with_the_estimate_of_no_layout(estimator, demo_model):
    """So it goes the way of a real load, whose first layout is made before a runner exists."""
    asked: list[LoadRequest] = []

    class Spy:
        def header(self, path):
            return estimator.header(path)

        def memory(self, path, request, devices=()):
            asked.append(request)
            return estimator.memory(path, request, devices)

    make_plan(Spy(), case(demo_model, "sim:9MiB,sim:8MiB"))
    assert asked[0].layout == ()
    assert asked[0].operation == Operation.FIT
