"""Measures Shale against llama.cpp on the same files with the same threads, and against itself, interleaved in one run.

    python -m tools.bench [--quick] [--only SUITE,...] [--model SHAPE:TYPE ...] [--rounds N] [--threads N] [--out FILE]

Each engine runs in its own process, which loads the file once and sleeps while the other is measured. A round measures
both sides, in an order that alternates; what counts is the median over the rounds of the ratio within a round.
SHALE_PEER_PYTHON names a Python that has llama_cpp. Files of random weights with real shapes are written to
bench-models/ once. All of it takes about an hour on two cores, --quick a quarter of one; on a busy machine the figures
of both engines are worthless, and llama.cpp's, whose threads wait for each other, most of all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tools.bench.compare import SETTLE_S, Row, interleave, rows
from tools.bench.machine import Machine
from tools.bench.process import LOG_FOLDER, ROOT, Place, Worker, idle_shares
from tools.bench.suites import LLAMACPP, SERVER, SHALE, SUITES, Suite
from tools.make_gguf import RECIPES, SHAPES, write_model

MODELS_FOLDER = ROOT / "bench-models"
DEFAULT_OUT = LOG_FOLDER / "bench.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: suites by name, each with its models."""

    suites: Mapping[str, tuple[str, ...]]
    num_rounds: int
    num_thread: int


def places(peer_python: str) -> Mapping[str, Place]:
    """Where each engine runs."""
    return {
        SHALE: Place(SHALE, sys.executable, "tools.bench.shale_worker"),
        SERVER: Place(SERVER, sys.executable, "tools.bench.server_worker"),
        LLAMACPP: Place(LLAMACPP, peer_python, "tools.bench.llamacpp_worker"),
    }


def model_file(model: str) -> Path:
    """The file of SHAPE:TYPE, written when it is not there."""
    shape, recipe = model.split(":")
    path = MODELS_FOLDER / f"{shape}-{recipe}.gguf"
    if not path.exists():
        print(f"writing {path}", flush=True)
        path.parent.mkdir(exist_ok=True)
        partial_path = path.with_suffix(".partial")
        write_model(partial_path, SHAPES[shape], RECIPES[recipe]).rename(path)
    return path


def measure(suite: Suite, model: str, plan: Plan, peer_python: str) -> Iterator[tuple[list[Row], dict[str, object]]]:
    """For each case its rows, and what the engines say of themselves."""
    settings = replace(suite.settings, num_thread=plan.num_thread)
    with ExitStack() as stack:
        known = places(peer_python)
        workers = {n: stack.enter_context(Worker(known[n], model_file(model), settings)) for n in suite.engines}
        about: dict[str, object] = {name: worker.description for name, worker in workers.items()}
        for case in suite.cases:
            first, second = (partial(workers[name].measure, job) for name, job in (case.first, case.second))
            yield rows(model, case.name, interleave(first, second, plan.num_rounds)), about
        time.sleep(SETTLE_S)
        about["idle_cores"] = idle_shares(list(workers.values()), 1.0)


def head(suite: Suite) -> str:
    """The first lines of a suite's table."""
    first, second = suite.sides
    return f"\n{suite.about}\n\n| model | | {first} | {second} | | times better |\n|---|---|---|---|---|---|"


def parse(arguments: Sequence[str]) -> tuple[Plan, Path]:
    parser = argparse.ArgumentParser(
        prog="tools.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one model of each suite, three rounds")
    parser.add_argument("--only", help=f"suites, separated by commas: {', '.join(SUITES)}; default: all of them")
    parser.add_argument("--model", action="append", help="SHAPE:TYPE in place of the suites' own; may be repeated")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=Machine.here().num_cores)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    given = parser.parse_args(arguments)
    for name in (chosen := given.only.split(",") if given.only else list(SUITES)):
        if name not in SUITES:
            parser.error(f"suite {name} is not known; there are {', '.join(SUITES)}")
    for model in given.model or ():
        shape, _, recipe = model.partition(":")
        if shape not in SHAPES or recipe not in RECIPES:
            parser.error(f"{model}: SHAPE is one of {', '.join(SHAPES)}, TYPE one of {', '.join(RECIPES)}")
    suites = {n: tuple(given.model or SUITES[n].models[: 1 if given.quick else None]) for n in chosen}
    return Plan(suites, given.rounds or (3 if given.quick else 7), given.threads), given.out


def main() -> None:
    plan, out = parse(sys.argv[1:])
    peer_python = os.environ.get("SHALE_PEER_PYTHON", sys.executable)
    machine = Machine.here()
    print(f"{machine.cpu}, {plan.num_thread} threads of {machine.num_cores} cores, {machine.day}")
    print(" ".join(machine.flags))
    out.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {"machine": asdict(machine), "plan": asdict(plan)}
    for name, models in plan.suites.items():
        print(head(SUITES[name]))
        found: list[object] = []
        for model in models:
            for more, about in measure(SUITES[name], model, plan, peer_python):
                print("\n".join(row.line() for row in more), flush=True)
                found += [asdict(row) for row in more]
                report[f"{name} engines"] = about
        report[name] = found
        out.write_text(json.dumps(report, indent=1), "utf-8")
    print(out)


if __name__ == "__main__":
    main()
