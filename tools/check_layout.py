#!/usr/bin/env python3
"""Runs a file of layout situations through ``scheduler.layout`` and counts the right answers.

    tools/check_layout.py [FILE]        (default: ../shared/cases/layout.json.gz)

Prints a line per wrong answer and last ``N of M``; exits 1 unless all are right.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runner.protocol import DeviceMemory, Memory  # noqa: E402
from scheduler.devices import GPU, SystemMemory  # noqa: E402
from scheduler.errors import LayoutError, RequireFullError  # noqa: E402
from scheduler.layout import LayoutRules, create_layout  # noqa: E402

DEFAULT_FILE = ROOT.parent / "shared" / "cases" / "layout.json.gz"


def main(arguments: list[str]) -> int:
    path = Path(arguments[0]) if arguments else DEFAULT_FILE
    cases = read_cases(path)
    num_right = 0
    for i, case in enumerate(cases):
        found = answer(case)
        if found == case["expected"]:
            num_right += 1
        else:
            print(f"case {i}: expected {case['expected']}, found {found}")
    print(f"{num_right} of {len(cases)}")
    return 0 if num_right == len(cases) else 1


def read_cases(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    cases: list[dict[str, Any]] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return cases


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """What ``create_layout`` makes of a case, in the form of the case's ``expected``."""
    gpus = [GPU(g["id"], g["library"], g["free"], g["integrated"], case["minimum_memory"]) for g in case["gpus"]]
    system = SystemMemory(case["system"]["free"], case["system"]["free"], case["system"]["swap"])
    rules = LayoutRules(
        num_gpu=case["num_gpu"],
        require_full=case["require_full"],
        backoff=case["backoff"],
        overhead_bytes=case["overhead"],
        is_spread=case["spread"],
    )
    try:
        layout = create_layout(memory_of(case), gpus, system, rules)
    except LayoutError as error:
        return {"error": "require_full" if isinstance(error, RequireFullError) else "system_memory"}
    return {"layout": [{"id": d.id, "library": d.library, "layers": list(d.layers)} for d in layout]}


def memory_of(case: dict[str, Any]) -> Memory:
    """All layers on the CPU; the GPUs that the runner sees are there with what their graphs hold."""
    layers, zeros = tuple(case["layers"]), (0,) * len(case["layers"])
    return Memory(
        input_weights=case["input_weights"],
        cpu=DeviceMemory(id="cpu", library="cpu", weights=layers, cache=zeros, graph=case["cpu_graph"]),
        gpus=tuple(
            DeviceMemory(id=g["id"], library=g["library"], weights=zeros, cache=zeros, graph=g["graph"])
            for g in case["gpus"]
            if g["reported"]
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
