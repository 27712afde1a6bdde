#!/usr/bin/env python3
"""Lets a real server live through random requests, shrinking devices and killed runners, and then counts.

    tools/soak.py [--steps 200] [--seed N] [--clients 6] [--keep DIR]

Six tiny models on three simulated devices that hold about half of them. Every answer must equal, byte for byte, that
of a quiet server on the CPU; an error must have a cause that the soak made; whenever nothing is loading, the devices
must hold exactly the bytes that /api/ps reports, and none once everything is unloaded; no process may be left.
Prints the seed, a table, and every problem; exits 1 if there is one. The seed decides the steps, not their timing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.soaking.accounts import Accounts  # noqa: E402
from tools.soaking.asking import Answer, ask_all  # noqa: E402
from tools.soaking.front import Front  # noqa: E402
from tools.soaking.models import Question, questions, write_fleet  # noqa: E402
from tools.soaking.steps import QUOTAS, make_steps  # noqa: E402
from tools.soaking.storm import Report, Storm  # noqa: E402


async def soak(folder: Path, seed: int, num_steps: int, num_clients: int = 6) -> Report:
    """Everything in order. ``folder`` takes models, ledgers and logs. Raises RuntimeError where it cannot begin."""
    models, ledger = folder / "models", folder / "ledger"
    models.mkdir(parents=True)
    write_fleet(models)
    async with httpx.AsyncClient(timeout=None, trust_env=False, limits=httpx.Limits(max_connections=None)) as http:
        devices = ",".join(f"sim:{quota}" for quota in QUOTAS)
        settings = {"SHALE_DEVICES": devices, "SHALE_SIM_LEDGER": str(ledger)}
        front = Front(models, folder / "server.log", settings)
        try:
            truth = await _quiet_answers(http, models, folder / "reference.log")
            await front.wait_until_up(http)
            storm = Storm(http, front, Accounts(ledger, len(QUOTAS)), truth)
            await storm.rage(make_steps(seed, num_steps), num_clients)
            await storm.calm_down()
        finally:
            status = await front.stop()
    storm.look_back(status)
    return storm.report


async def _quiet_answers(http: httpx.AsyncClient, models: Path, log: Path) -> dict[Question, Answer]:
    front = Front(models, log, {"SHALE_DEVICES": "cpu", "SHALE_MAX_LOADED_MODELS": "9"})
    try:
        await front.wait_until_up(http)
        return await ask_all(http, front.url, questions())
    finally:
        await front.stop()


def table(report: Report) -> str:
    """The requests by outcome, what was done to the server, and its own counts."""
    blocks = (
        {**dict(sorted(report.labels.items())), "requests": sum(report.labels.values())},
        dict(sorted(report.troubles.items())),
        report.figures,
        {"quiet moments with exact accounts": report.num_balances, "most bytes held at one": report.most_bytes},
    )
    width = max(len(name) for block in blocks for name in block)
    return "\n\n".join(
        "\n".join(f"  {name:<{width}}  {count:>9,}" for name, count in block.items()) for block in blocks
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="requests to send (200)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="random by default")
    parser.add_argument("--clients", type=int, default=6, help="requests at a time (6)")
    parser.add_argument("--keep", type=Path, help="a new folder for models, ledgers and logs, which stay there")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.steps} steps, {given.clients} at a time", flush=True)
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shale-soak-") as temporary:
        report = asyncio.run(soak(given.keep or Path(temporary), given.seed, given.steps, given.clients))
    print(table(report))
    for problem in report.problems:
        print(f"\nPROBLEM {problem}")
    verdict = f"{len(report.problems)} problems" if report.problems else "passed"
    print(f"\n{verdict}, {time.monotonic() - began_at:.1f} s")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
