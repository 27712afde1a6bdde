"""What a soak does, decided before it starts: the same seed gives the same steps (not the same timing)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.soaking.models import CONTEXT_LENGTH, EMBED, FLEET, LONG, MIN_NUM_CTX, Question, questions

QUOTAS: tuple[int, ...] = (5 << 20, 4 << 20, 3 << 20)
"""Bytes of the simulated devices: all models with their largest contexts take half as much again."""

NUM_CTX = (None, None, MIN_NUM_CTX, 1024, CONTEXT_LENGTH)  # not "auto": it may come to less than an answer needs
NUM_BATCH = 64  # keeps the graphs small beside weights and caches
NUM_GPU = (None,) * 12 + (0, 1, 3)
KEEP_ALIVE = (None, 0, 0, 0, 0.3, "500ms", 1, 2, -1, -1, "-1m")
QUOTA_FACTORS = (0.0, 0.3, 0.5, 0.8, 1.0, 1.0, 1.5)  # of what it was at the start

P_LOAD, P_UNLOAD = 0.1, 0.1  # else: a question
P_STREAM, P_LEAVE = 0.6, 0.2
P_KILL, P_QUOTA, P_KILL_MIDWAY = 0.08, 0.2, 0.3
MAX_PAUSE_S = 0.15


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL for one of the runners, some time after the step has begun; ``choice`` (0 … 1) picks which."""

    after_s: float
    choice: float


@dataclass(frozen=True, slots=True)
class KillMidway:
    """SIGKILL for the runner of the step's own model, once so many lines of its answer have come."""

    lines: int


@dataclass(frozen=True, slots=True)
class Resize:
    """A device becomes this large, whatever is held of it."""

    device: int
    quota_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One request, and the trouble that comes with it."""

    number: int
    model: str
    action: str  # "ask", "load" or "unload"
    question: Question | None = None
    is_streamed: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: float | str | None = None
    leave_after_lines: int | None = None
    leave_after_s: float | None = None
    pause_s: float = 0.0
    trouble: Kill | KillMidway | Resize | None = None


def make_steps(seed: int, count: int) -> list[Step]:
    """``count`` steps; the first of them are the same for any larger count."""
    rng = random.Random(seed)
    asked = questions()
    return [_step(rng, number, asked) for number in range(count)]


def _step(rng: random.Random, number: int, asked: tuple[Question, ...]) -> Step:
    model = rng.choice(list(FLEET))
    chance = rng.random()
    common: dict[str, Any] = {
        "number": number,
        "model": model,
        "loading": dict(_loading(rng)),
        "keep_alive": rng.choice(KEEP_ALIVE),
        "pause_s": rng.uniform(0, MAX_PAUSE_S),
        "trouble": _trouble(rng),
    }
    if chance < P_LOAD:
        return Step(action="load", **common | {"keep_alive": common["keep_alive"] or None})  # 0 would unload
    if chance < P_LOAD + P_UNLOAD:
        return Step(action="unload", **common)
    question = rng.choice([each for each in asked if each.model == model])
    if question.text == LONG and rng.random() < P_KILL_MIDWAY:
        common["trouble"] = KillMidway(rng.randint(1, 100))
        return Step(action="ask", question=question, is_streamed=True, **common)
    is_streamed = question.route != EMBED and rng.random() < P_STREAM
    return Step(action="ask", question=question, is_streamed=is_streamed, **_leaving(rng, is_streamed), **common)


def _loading(rng: random.Random) -> Iterator[tuple[str, Any]]:
    for name, values in (("num_ctx", NUM_CTX), ("num_batch", (NUM_BATCH,)), ("num_gpu", NUM_GPU)):
        if (value := rng.choice(values)) is not None:
            yield name, value


def _leaving(rng: random.Random, is_streamed: bool) -> dict[str, Any]:
    if rng.random() >= P_LEAVE:
        return {}
    if is_streamed and rng.random() < 0.6:
        return {"leave_after_lines": rng.randint(1, 100)}
    return {"leave_after_s": rng.uniform(0.01, 0.8)}


def _trouble(rng: random.Random) -> Kill | Resize | None:
    chance, after_s, choice = rng.random(), rng.uniform(0, 0.5), rng.random()
    device, factor = rng.randrange(len(QUOTAS)), rng.choice(QUOTA_FACTORS)
    if chance < P_KILL:
        return Kill(after_s, choice)
    if chance < P_KILL + P_QUOTA:
        return Resize(device, int(QUOTAS[device] * factor))
    return None
