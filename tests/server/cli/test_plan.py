"""The picture and the sentences of ``shale plan``, and the table of ``shale devices``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.cli import plan
from server.cli.client import CommandError
from server.cli.devices import device_table
from server.schemas.plan import PlanRequest

GIB = 2**30


def drawn(*things: Any, answer: Any = None) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    if answer is not None:
        plan.draw(answer, console)
    for thing in things:
        console.print(thing)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


@pytest.fixture
def answer(demo_model: Path) -> Any:
    return plan.plan_file(
        demo_model, PlanRequest(model="demo", devices="sim:8MiB,sim:6MiB", num_ctx=256, system_memory="1GiB")
    )


def test_the_picture(answer: Any) -> None:
    head, _, cpu, first, second, legend, *rest = drawn(answer=answer).splitlines()
    assert head.startswith("shale-demo.gguf: ")
    assert head.endswith(" with num_ctx 256, 2 sequences, KV cache f16")
    assert cpu.startswith("cpu     ·")
    assert cpu.endswith("of 1.0 GiB")
    assert first.startswith("sim0    ██")
    assert first.endswith("of 8.0 MiB")
    assert second.startswith(("sim1    ·", "sim1    █"))
    assert legend.split() == ["█", "weights", "▓", "cache", "▒", "graph", "·", "free"]
    assert "all 7 layers are on GPUs; the CPU keeps the token embedding (1.1 MiB)" in rest
    assert any(line.startswith("the largest context with which it fits wholly is ") for line in rest)


def test_a_part_stays_on_the_cpu(demo_model: Path) -> None:
    body = PlanRequest(model="demo", devices="sim:8MiB", num_ctx=1500, num_batch=64, system_memory="1GiB")
    text = drawn(answer=plan.plan_file(demo_model, body))
    assert " of 7 layers on GPUs; the CPU keeps layers 0-" in text
    assert "the model does not fit wholly with any context" not in text  # a smaller one does


def test_real_gpus_keep_some_for_the_driver(demo_model: Path) -> None:
    text = drawn(answer=plan.plan_file(demo_model, PlanRequest(model="demo", devices="1GiB", num_ctx="auto")))
    assert "░ driver" in text
    assert 'num_ctx "auto" is 2048' in text
    assert "is 2048 tokens (all that the model was trained for)" in text


def test_without_gpus(demo_model: Path) -> None:
    assert "all 7 layers are on the CPU: there is no GPU" in drawn(
        answer=plan.plan_file(demo_model, PlanRequest(model="demo", devices="cpu"))
    )


def test_errors_are_the_scheduler_s(demo_model: Path) -> None:
    with pytest.raises(CommandError, match="kv_cache_type must be one of f16, bf16"):
        plan.plan_file(demo_model, PlanRequest(model="demo", kv_cache_type="q5_1"))
    with pytest.raises(CommandError, match="No such file"):
        plan.ask("none.gguf", {})


@pytest.mark.parametrize(
    ("layers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 7], "0-2, 7"), ([5, 6, 9, 10, 11], "5-6, 9-11")]
)
def test_spans(layers: list[int], text: str) -> None:
    assert plan.spans(layers) == text


@pytest.mark.parametrize(
    ("parts", "whole", "expected"),
    [([50, 25, 25], 100, [5, 3, 2]), ([1, 1, 1], 30, [0, 1, 0]), ([0, 0], 0, [0, 0]), ([100], 100, [10])],
)
def test_cells_round_running_sums(parts: list[int], whole: int, expected: list[int]) -> None:
    assert plan.cells(parts, whole, 10) == expected


def test_the_table_of_devices() -> None:
    sizes = {"total_bytes": 24 * GIB, "free_bytes": 20 * GIB}
    devices = [
        {"id": "cpu", "library": "cpu", "name": "CPU", **sizes, "usable": True, "reason": ""},
        {"id": "GPU-1", "library": "cuda", "name": "RTX", **sizes, "compute_capability": "8.9", "usable": False,
         "reason": "no runner"},
    ]  # fmt: skip
    head, cpu, gpu = drawn(device_table(devices)).splitlines()
    assert head.split() == ["ID", "LIBRARY", "NAME", "TOTAL", "FREE", "COMPUTE", "USABLE"]
    assert cpu.split() == ["cpu", "cpu", "CPU", "24.0", "GiB", "20.0", "GiB", "-", "yes"]
    assert gpu.endswith("8.9       no: no runner")
