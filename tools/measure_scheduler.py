#!/usr/bin/env python3
"""How much time the scheduler adds: to a request for a loaded model, and until the first token of one that is not.

    python tools/measure_scheduler.py [--model FILE] [--loads N]

Prints both, with the goals: under 1 ms, and under 1.5 s for a tiny model.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runner.protocol import CompletionRequest, SamplingOptions  # noqa: E402
from scheduler.scheduler import LoadOptions, ModelFile, Scheduler, SchedulerSettings  # noqa: E402

DEMO = ROOT / "demo" / "models" / "shale-demo.gguf"
GOAL_LOADED_US = 1000
GOAL_UNLOADED_S = 1.5
NUM_ACQUIRES = 5000


async def first_token_s(scheduler: Scheduler, model: ModelFile) -> float:
    """From the request to its first line; afterwards the model is unloaded."""
    begin = time.perf_counter()
    async with scheduler.acquire(model, LoadOptions()) as running:
        options = SamplingOptions(temperature=0, num_predict=1, ignore_eos=True)
        lines = await running.client.completion(CompletionRequest(prompt="a", options=options))
        await anext(aiter(lines))
        seconds = time.perf_counter() - begin
        await lines.aclose()
    await scheduler.unload(model)
    return seconds


async def acquire_us(scheduler: Scheduler, model: ModelFile) -> list[float]:
    """From ``acquire`` to its yield, for a loaded model, with options that have to be compared."""
    durations = []
    async with scheduler.acquire(model, LoadOptions()):
        for _ in range(NUM_ACQUIRES):
            begin = time.perf_counter()
            async with scheduler.acquire(model, LoadOptions(num_ctx=1024, num_batch=512)):
                durations.append((time.perf_counter() - begin) * 1e6)
    return sorted(durations)


async def measure(path: Path, num_loads: int) -> bool:
    model = ModelFile(path.stem, path)
    scheduler = Scheduler(SchedulerSettings(devices="cpu"))
    try:
        loads = [await first_token_s(scheduler, model) for _ in range(num_loads)]
        waits = await acquire_us(scheduler, model)
    finally:
        await scheduler.close()
    worst = waits[int(len(waits) * 0.99)]
    print(f"loaded model, acquire to yield: median {median(waits):.0f} µs, 99 % {worst:.0f} µs (goal {GOAL_LOADED_US})")
    each = ", ".join(f"{seconds:.2f}" for seconds in loads)
    print(f"unloaded model, request to first token: median {median(loads):.2f} s of {each} (goal {GOAL_UNLOADED_S})")
    return worst < GOAL_LOADED_US and median(loads) < GOAL_UNLOADED_S


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--loads", type=int, default=3)
    given = parser.parse_args()
    return 0 if asyncio.run(measure(given.model, given.loads)) else 1


if __name__ == "__main__":
    sys.exit(main())
