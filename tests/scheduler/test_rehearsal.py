"""Rehearsals of a load: on which GPUs it would come to lie, and when layers on the CPU are an error."""

from __future__ import annotations

import pytest

from scheduler.devices import Machine, SystemMemory
from scheduler.errors import NotOnGPUError
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
    assert [share.id for share in plan("sim:32MiB,sim:16MiB", main_gpu=7).layout] == ["sim0"]


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
