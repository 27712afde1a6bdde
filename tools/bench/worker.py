"""The loop that every measured engine runs in a process of its own: commands on stdin, JSON answers on stdout.

This module and the llama.cpp worker run under another Python, so they import nothing of the project.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Engine(Protocol):
    """What is measured: one sequence that starts empty and takes tokens."""

    description: str

    def reset(self) -> None:
        """Forget all tokens."""

    def forward(self, tokens: Sequence[int]) -> None:
        """Run the tokens behind those before; returns when the logits of the last one are there."""


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement: ``prompt`` tokens in one batch, not counted for decode, then ``generated`` ones, one by one."""

    kind: str  # "prefill" or "decode"
    prompt: int
    generated: int = 0


FIRST_TOKEN = 5


def measure(engine: Engine, job: Job) -> float:
    """Tokens per second."""
    engine.reset()
    prompt = range(FIRST_TOKEN, FIRST_TOKEN + job.prompt)
    started = time.perf_counter()
    engine.forward(prompt)
    if job.kind == "prefill":
        return job.prompt / (time.perf_counter() - started)
    started = time.perf_counter()
    for token in range(job.generated):
        engine.forward((FIRST_TOKEN + token,))
    return job.generated / (time.perf_counter() - started)


def serve(engine: Engine) -> None:
    """Answers one line of JSON a line until stdin ends. Between the lines the process sleeps in read."""
    print(json.dumps({"ready": engine.description}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"tokens_per_s": measure(engine, Job(**json.loads(line)))}), flush=True)
