"""One model that works alone and some that work for many, for tests that compare what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.kernels import Kernels
from runner.load import LoadedModel
from tests.runner.loading import load

NUM_CTX = 80
SHAPES = (
    {"num_parallel": 1, "num_batch": 64},
    {"num_parallel": 3, "num_batch": 7},
    {"num_parallel": 4, "num_batch": 32},
)

QuietAndBusy = tuple[LoadedModel, list[LoadedModel]]


def quiet_and_busy(path: Path, kernels: Kernels, **options: Any) -> QuietAndBusy:
    """One that answers alone with its prompt in one piece, and one of each of ``SHAPES``."""
    quiet = load(path, kernels, num_ctx=NUM_CTX, num_batch=NUM_CTX, num_parallel=1, **options)
    return quiet, [load(path, kernels, num_ctx=NUM_CTX, **shape, **options) for shape in SHAPES]


def deliver(deliveries: Any) -> None:
    """At once, on the engine's thread."""
    for receive, line in deliveries:
        receive(line)
