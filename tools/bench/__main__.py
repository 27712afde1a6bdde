"""Measures Shale against llama.cpp on the same files with the same threads, interleaved in one run.

    python -m tools.bench [--quick] [--model SHAPE:TYPE ...] [--rounds N] [--threads N] [--out FILE]

Each engine runs in its own process, which loads the file once and sleeps while the other is measured. A round measures
both, in an order that alternates; what counts is the median over the rounds of the ratio within a round.
SHALE_PEER_PYTHON names a Python that has llama_cpp. Files of random weights with real shapes are written to
bench-models/ once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tools.bench.machine import Machine
from tools.bench.worker import Job
from tools.make_gguf import RECIPES, SHAPES, write_model

ROOT = Path(__file__).resolve().parents[2]
MODELS_FOLDER = ROOT / "bench-models"
LOG_FOLDER = ROOT / "build"
DEFAULT_OUT = LOG_FOLDER / "bench.json"
MODELS = tuple(f"{shape}:{recipe}" for shape in ("llama-1b", "qwen3-0.6b") for recipe in ("q4_k_m", "q4_0", "q8_0"))
JOBS = (Job("decode", prompt=16, generated=48), Job("prefill", prompt=512))
QUICK_JOBS = (Job("decode", prompt=16, generated=24), Job("prefill", prompt=512))
NUM_CTX, NUM_BATCH = 1024, 512
SETTLE_S = 0.3  # between two measurements: OpenMP's workers spin for some milliseconds before they sleep


class Worker:
    """One engine in its own process. Leaving the context ends it."""

    def __init__(self, name: str, python: str, module: str, model: Path, num_thread: int) -> None:
        """Raises RuntimeError with what the process wrote last when it does not get ready."""
        self.name = name
        command = [python, "-m", module, str(model), str(num_thread), str(NUM_CTX), str(NUM_BATCH)]
        LOG_FOLDER.mkdir(exist_ok=True)
        self._log_path = LOG_FOLDER / f"bench-{name}.log"
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True
            )
        self.description = str(self._answer()["ready"])

    def measure(self, job: Job) -> float:
        """Tokens per second."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["tokens_per_s"])

    def cpu_s(self) -> float:
        """Processor time that the process has used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            words = self._log_path.read_text("utf-8")[-2000:]
            raise RuntimeError(f"{self.name} ended with status {self._process.returncode}; its last words:\n{words}")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the process; it leaves when its standard input does."""
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: medians over the rounds in tokens per second, and the median of the ratios."""

    model: str
    job: str
    shale: float
    llamacpp: float
    ratio: float
    ratio_range: tuple[float, float]
    rounds: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, model: str, job: Job, rounds: Sequence[tuple[float, float]]) -> Row:
        ratios = [shale / peer for shale, peer in rounds]
        name = f"{job.kind} {job.prompt if job.kind == 'prefill' else job.generated}"
        return cls(
            model, name, median(a for a, _ in rounds), median(b for _, b in rounds), median(ratios),
            (min(ratios), max(ratios)), tuple(rounds),
        )  # fmt: skip


def model_file(model: str) -> Path:
    """The file of SHAPE:TYPE, written when it is not there."""
    shape, recipe = model.split(":")
    path = MODELS_FOLDER / f"{shape}-{recipe}.gguf"
    if not path.exists():
        print(f"writing {path}", flush=True)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        write_model(partial, SHAPES[shape], RECIPES[recipe]).rename(path)
    return path


def interleave(workers: tuple[Worker, Worker], job: Job, num_rounds: int) -> list[tuple[float, float]]:
    """(first, second) tokens per second for each round, after one round that does not count."""
    rounds = []
    for number in range(-1, num_rounds):
        speeds = {}
        for worker in workers if number % 2 else reversed(workers):
            time.sleep(SETTLE_S)
            speeds[worker.name] = worker.measure(job)
        if number >= 0:
            rounds.append((speeds[workers[0].name], speeds[workers[1].name]))
    return rounds


def idle_share(workers: tuple[Worker, Worker], seconds: float = 1.0) -> dict[str, float]:
    """The share of a core that each engine takes while nothing is asked of it."""
    time.sleep(SETTLE_S)
    before = {worker.name: worker.cpu_s() for worker in workers}
    time.sleep(seconds)
    return {worker.name: (worker.cpu_s() - before[worker.name]) / seconds for worker in workers}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    models: tuple[str, ...]
    jobs: tuple[Job, ...]
    num_rounds: int
    num_thread: int


def measure(plan: Plan, peer_python: str) -> Iterator[tuple[list[Row], dict[str, object]]]:
    """For each model its rows, and what the two engines say of themselves."""
    for model in plan.models:
        path = model_file(model)
        with ExitStack() as stack:
            places = (
                ("shale", sys.executable, "tools.bench.shale_worker"),
                ("llamacpp", peer_python, "tools.bench.llamacpp_worker"),
            )
            first, second = (stack.enter_context(Worker(*place, path, plan.num_thread)) for place in places)
            rows = [Row.of(model, job, interleave((first, second), job, plan.num_rounds)) for job in plan.jobs]
            about = {worker.name: worker.description for worker in (first, second)}
            yield rows, {"engines": about, "idle_cores": idle_share((first, second))}


HEAD = ("| model | | Shale, tokens/s | llama.cpp, tokens/s | ratio (median; range) |", "|---|---|---|---|---|")


def line(row: Row) -> str:
    """The row in Markdown."""
    ratio = f"**{row.ratio:.2f}** ({row.ratio_range[0]:.2f} to {row.ratio_range[1]:.2f})"
    return f"| {row.model} | {row.job} | {row.shale:.1f} | {row.llamacpp:.1f} | {ratio} |"


def parse(arguments: Sequence[str]) -> tuple[Plan, Path]:
    parser = argparse.ArgumentParser(
        prog="tools.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one model, three rounds")
    parser.add_argument("--model", action="append", help=f"SHAPE:TYPE, may be repeated; default: {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=Machine.here().num_cores)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    given = parser.parse_args(arguments)
    models = tuple(given.model or (MODELS[:1] if given.quick else MODELS))
    for model in models:
        shape, _, recipe = model.partition(":")
        if shape not in SHAPES or recipe not in RECIPES:
            parser.error(f"{model}: SHAPE is one of {', '.join(SHAPES)}, TYPE one of {', '.join(RECIPES)}")
    rounds = given.rounds or (3 if given.quick else 7)
    return Plan(models, QUICK_JOBS if given.quick else JOBS, rounds, given.threads), given.out


def main() -> None:
    plan, out = parse(sys.argv[1:])
    peer_python = os.environ.get("SHALE_PEER_PYTHON", sys.executable)
    machine = Machine.here()
    print(f"{machine.cpu}, {plan.num_thread} threads of {machine.num_cores} cores, {machine.day}")
    print(" ".join(machine.flags))
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    about: dict[str, object] = {}
    print("\n".join(HEAD))
    for more, engines in measure(plan, peer_python):
        print("\n".join(line(row) for row in more), flush=True)
        rows += more
        about = engines
    report = {"machine": asdict(machine), "plan": asdict(plan), **about, "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(report, indent=1), "utf-8")
    print(f"{json.dumps(about, indent=1)}\n{out}")


if __name__ == "__main__":
    main()
