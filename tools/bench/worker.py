"""The loop that every measured engine runs in a process of its own: commands on stdin, JSON answers on stdout.

This module, ``measures`` and the llama.cpp worker run under another Python, so they import nothing of the project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is loaded with. ``num_ctx`` is for each of the ``num_parallel`` sequences."""

    num_thread: int
    num_ctx: int = 1024
    num_batch: int = 512
    num_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One completion of a load. It arrives when the first request of the load has generated ``after`` tokens.

    One that runs in the background ends with the last of the others, if it has not ended by then.
    """

    prompt: Sequence[int]
    num_generated: int
    after: int = 0
    is_background: bool = False


Trace = list[float]
"""When each token of one request was there: seconds of ``time.perf_counter``."""


class Embedder(Protocol):
    """What has embeddings. Token ids are from 0 to ``num_vocab`` - 1."""

    num_vocab: int

    def embed(self, inputs: Sequence[Sequence[int]]) -> None:
        """Computes one embedding for each input."""


class Engine(Embedder, Protocol):
    """What is measured."""

    def reset(self) -> None:
        """Forgets the tokens of all sequences."""

    def forward(self, tokens: Sequence[int], sequence: int = 0) -> None:
        """Runs the tokens behind those before; returns when the logits of the last one are there."""

    def num_past(self, sequence: int = 0) -> int:
        """Tokens of a sequence that are there."""

    def rewind(self, num_past: int, sequence: int = 0) -> None:
        """Keeps the first ``num_past`` tokens of a sequence."""

    def complete(self, requests: Sequence[Request]) -> list[Trace]:
        """Serves requests together, each step carrying all that generate; greedy, without end tokens."""


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement; ``measures.KINDS`` says what each kind makes of the numbers."""

    kind: str
    prompt: int = 0  # tokens
    generated: int = 0  # tokens of each sequence
    sequences: int = 1
    depth: int = 0  # tokens that are there before


Figures = dict[str, float]
"""What a measurement found, by unit; ``"p99 ms"`` is a figure in milliseconds with a name before it."""


def serve(description: str, measure: Callable[[Job], Figures]) -> None:
    """Answers one line of JSON a line until stdin ends. Between the lines the process sleeps in read."""
    print(json.dumps({"ready": description}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(Job(**json.loads(line)))), flush=True)
