"""Where one layer keeps the keys and values of past tokens."""

from __future__ import annotations

from dataclasses import dataclass

from runner.kernels import CacheTensor


@dataclass(slots=True)
class CacheLayer:
    """One layer's keys and values of all cells.

    A resize puts other tensors here, so whoever computes with them looks here each time.
    """

    keys: CacheTensor
    values: CacheTensor
