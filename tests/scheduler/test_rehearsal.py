"""Rehearsals of a load: on which GPUs it would come to lie, and when layers on the CPU are an error."""

from __future__ import annotations

import pytest

from scheduler.devices import Machine, SystemMemory
from scheduler.errors import NotOnGPUError, SettingsError
from scheduler.estimate import Estimator
from scheduler.hypothetical import parse_hypothetical
from scheduler.options import LoadOptions
from scheduler.plan import make_plan
from scheduler.rehearsal import Case
from scheduler.settings import SchedulerSettings

GIB = 2**30


@pytest.fixture
def plan(demo_model):
    """What loading the demo model would come to, on these devices, with these options."""

    def make(devices, settings=SchedulerSettings(), **options):  # noqa: B008
        machine = Machine(SystemMemory(GIB, GIB, 0), parse_hypothetical(devices))
        return make_plan(Estimator(), Case(demo_model, LoadOptions(num_ctx=128, **options), settings, machine))

    return make


def test_main_gpu_is_tried_first(plan):
    assert [share.id for share in plan("sim:32MiB,sim:16MiB", main_gpu=1).layout] == ["sim1"]
    assert [share.id for share in plan("sim:32MiB", main_gpu=0).layout] == ["sim0"]
    assert plan("cpu", main_gpu=7).layout == ()


@pytest.mark.parametrize(
    ("devices", "number", "text"),
    [
        ("sim:32MiB,sim:16MiB", 2, "main_gpu must be less than 2, found 2; the GPUs are sim0, sim1"),
        ("sim:32MiB", 10**18, f"main_gpu must be less than 1, found {10**18}; the GPUs are sim0"),
    ],
)
def test_a_main_gpu_that_is_not_there_is_an_error(plan, devices, number, text):
    with pytest.raises(SettingsError, match=f"^{text}$"):
        plan(devices, main_gpu=number)


def test_a_model_on_its_main_gpu_has_an_entry_for_every_device(plan):
    """As a runner's memory has: the plan's rows are those of a loaded model."""
    found = plan("sim:32MiB,sim:32MiB,sim:32MiB", main_gpu=1)
    assert [gpu.id for gpu in found.memory.gpus] == ["sim0", "sim1", "sim2"]
    assert [gpu.total_bytes > 0 for gpu in found.memory.gpus] == [False, True, False]


@pytest.mark.parametrize("where", ["option", "setting"])
def test_layers_on_the_cpu_are_the_error_that_a_load_would_end_with(plan, where):
    settings = SchedulerSettings(fail_if_not_gpu=where == "setting")
    asked = {"fail_if_not_gpu": True} if where == "option" else {}
    text = r"^fail_if_not_gpu: \d of 7 layers fit, .* of layers would stay on the CPU; free: 2.0 MiB on sim0$"
    with pytest.raises(NotOnGPUError, match=text):
        plan("sim:2MiB", settings, **asked)
    with pytest.raises(NotOnGPUError, match=r"^fail_if_not_gpu: there is no GPU that can be used$"):
        plan("cpu", settings, **asked)
    assert plan("sim:32MiB", settings, **asked).is_whole
    assert not plan("sim:2MiB", settings, fail_if_not_gpu=False).is_whole


def test_a_model_is_spread_over_all_gpus_where_the_setting_says_so(plan):
    devices = "sim:32MiB,sim:32MiB"
    assert len(plan(devices).layout) == 1
    spread = plan(devices, SchedulerSettings(is_spread=True))
    assert len(spread.layout) == 2
    assert spread.is_whole


def test_the_overhead_of_each_gpu_is_left_alone(plan):
    whole = plan("sim:32MiB")
    taken = whole.memory.gpu_bytes
    assert plan(f"sim:{taken + 2**20}", SchedulerSettings(gpu_overhead_bytes=2**20), num_parallel=1).is_whole
    less = plan(f"sim:{taken}", SchedulerSettings(gpu_overhead_bytes=taken // 2), num_parallel=1)
    assert 0 < less.memory.gpu_bytes <= taken - taken // 2
    assert plan("sim:32MiB", SchedulerSettings(gpu_overhead_bytes=2**30)).layout == ()
