"""What can be measured: suites of cases, each of which compares two sides on one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tools.bench.worker import Job, Settings

SHALE, LLAMACPP, SERVER = "shale", "llamacpp", "server"


@dataclass(frozen=True, slots=True)
class Case:
    """A job of each side; ``name`` is what a reader is told."""

    name: str
    first: tuple[str, Job]
    second: tuple[str, Job]

    @classmethod
    def against_llamacpp(cls, name: str, job: Job) -> Case:
        return cls(name, (SHALE, job), (LLAMACPP, job))

    @classmethod
    def within(cls, name: str, first: Job, second: Job, engine: str = SHALE) -> Case:
        return cls(name, (engine, first), (engine, second))


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases that need the same settings. ``sides`` are the table's columns."""

    about: str
    models: tuple[str, ...]  # SHAPE:TYPE; the first is taken when there is little time
    settings: Settings
    cases: tuple[Case, ...]
    sides: tuple[str, str] = ("Shale", "llama.cpp")

    @property
    def engines(self) -> tuple[str, ...]:
        """Whose processes are needed."""
        return tuple(dict.fromkeys(name for case in self.cases for name, _ in (case.first, case.second)))


def _models(*shapes: str) -> tuple[str, ...]:
    return tuple(f"{shape}:{recipe}" for shape in shapes for recipe in ("q4_k_m", "q4_0", "q8_0"))


_BOTH = Case.against_llamacpp

SUITES: Mapping[str, Suite] = {
    "one": Suite(
        "one sequence",
        _models("llama-1b", "qwen3-0.6b"),
        Settings(0),
        (
            _BOTH("decode 48", Job("decode", prompt=16, generated=48)),
            _BOTH("prefill 512", Job("prefill", prompt=512)),
        ),
    ),
    "many": Suite(
        "sequences side by side, through the engine, tokens of all of them",
        ("llama-1b:q4_k_m", "qwen3-0.6b:q4_k_m", "llama-1b:q8_0"),
        Settings(0, num_parallel=16),
        (
            *(
                _BOTH(f"decode, {n} sequences", Job("together", prompt=32, generated=32, sequences=n))
                for n in (1, 4, 8, 16)
            ),
            _BOTH("4 decode, 3 prompts of 512 arrive", Job("mixed", prompt=512, generated=48, sequences=4)),
        ),
    ),
    "attention": Suite(
        "behind 8192 tokens: what attention adds",
        ("llama-1b:q4_k_m", "qwen3-0.6b:q4_k_m"),
        Settings(0, num_ctx=9216, num_parallel=2),
        (_BOTH("at 8192", Job("deep", prompt=512, generated=8, depth=8192)),),
    ),
    "latency": Suite(
        "between two tokens of a running sequence",
        ("llama-1b:q4_k_m",),
        Settings(0, num_ctx=4608, num_parallel=2),
        (
            Case.within(
                "quiet, and while 4000 tokens are evaluated",
                Job("gaps", generated=200),
                Job("gaps", prompt=4000, generated=1000),
            ),
        ),
        sides=("quiet", "busy"),
    ),
    "prefix": Suite(
        "first token of a prompt of 2000 tokens, of which 1984 are cached",
        ("llama-1b:q4_k_m",),
        Settings(0, num_ctx=2560, num_parallel=2),
        (Case.within("first token", Job("first_token", prompt=2000, depth=1984), Job("first_token", prompt=2000)),),
        sides=("cached", "not cached"),
    ),
    "embed": Suite(
        "64 inputs of about 100 tokens in one call",
        ("minilm-l6:q8_0", "bge-small:q8_0", "minilm-l6:f16"),
        Settings(0, num_ctx=512),
        (_BOTH("64 in one call", Job("embed", prompt=100, sequences=64)),),
    ),
    "embed-http": Suite(
        "embeddings of texts of about 100 tokens through /api/embed of a server",
        ("minilm-l6:q8_0", "bge-small:q8_0"),
        Settings(0, num_ctx=512),
        (
            Case.within(
                "64 texts",
                Job("embed", prompt=100, sequences=64),
                Job("embed_singly", prompt=100, sequences=64),
                SERVER,
            ),
        ),
        sides=("one request", "64 requests"),
    ),
}
