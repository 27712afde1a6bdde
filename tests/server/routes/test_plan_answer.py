"""A plan as JSON: its notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scheduler.devices import Machine, SystemMemory
from scheduler.estimate import Estimator
from scheduler.hypothetical import parse_hypothetical
from scheduler.options import LoadOptions
from scheduler.plan import make_plan
from scheduler.rehearsal import Case
from scheduler.settings import SchedulerSettings
from server.routes.plan_answer import WAITING_NOTE, plan_answer

GIB = 2**30


def test_notes_say_what_was_not_done_as_asked_and_who_goes(demo_model: Path) -> None:
    machine = Machine(SystemMemory(GIB, GIB, 0), parse_hypothetical("sim:2MiB"))
    options = LoadOptions(num_ctx=9999, num_gpu=5)
    plan = make_plan(Estimator(), Case(demo_model, options, SchedulerSettings(), machine))
    changed = [
        "num_ctx 9999 was clamped to 2048, the length the model was trained for",
        "num_gpu 5: 0 of 7 layers are on GPUs, more do not fit",
    ]
    assert plan_answer("demo", options, plan)["notes"] == changed
    beside = replace(plan, unloads=(Path("/models/a.gguf"), Path("/models/b.gguf")), is_waiting=True)
    names = {Path("/models/a.gguf"): "a:latest"}
    assert plan_answer("demo", options, beside, names)["notes"] == [
        *changed, "unloads a:latest", "unloads b", WAITING_NOTE,
    ]  # fmt: skip
