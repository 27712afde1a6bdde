#!/usr/bin/env python3
"""Runs a file of layout situations through ``scheduler.layout`` and counts the right answers.

    tools/check_layout.py [FILE]        (default: ../shared/cases/layout.json.gz)

Prints a line per wrong answer, and per case that is none, and last ``N of M``; exits 1 unless there are cases and all
are right.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runner.protocol import DeviceMemory, Memory  # noqa: E402
from scheduler.devices import GPU, SystemMemory  # noqa: E402
from scheduler.errors import LayoutError, RequireFullError  # noqa: E402
from scheduler.layout import LayoutRules, create_layout  # noqa: E402

DEFAULT_FILE = ROOT.parent / "shared" / "cases" / "layout.json.gz"

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, struct.error)
"""What comes of a case that lacks something or has a value of another kind."""


def main(arguments: list[str]) -> int:
    path = Path(arguments[0]) if arguments else DEFAULT_FILE
    try:
        cases = read_cases(path)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        print(f"{path} cannot be read: {error}")
        return 1
    wrong = [what for i, case in enumerate(cases) if (what := complaint(i, case))]
    for what in wrong:
        print(what)
    print(f"{len(cases) - len(wrong)} of {len(cases)}")
    return 0 if cases and not wrong else 1


def read_cases(path: Path) -> list[Any]:
    """Raises OSError, EOFError, zlib.error, ValueError."""
    data = path.read_bytes()
    cases = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    if not isinstance(cases, list):
        raise ValueError(f"a list of cases is wanted, found {type(cases).__name__}")
    return cases


def complaint(number: int, case: Any) -> str:
    """What is wrong with the answer to a case, or with the case itself; empty where nothing is."""
    try:
        expected, found = case["expected"], answer(case)
    except MALFORMED as error:
        return f"case {number}: malformed: {type(error).__name__}: {' '.join(str(error).split())}"
    return "" if found == expected else f"case {number}: expected {expected}, found {found}"


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
