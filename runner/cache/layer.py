"""Where one layer keeps the keys and values of past tokens."""

from __future__ import annotations

from dataclasses import dataclass

from runner import cache_types
from runner.kernels import CacheTensor


@dataclass(slots=True)
class CacheLayer:
    """One layer's keys and values of all cells.

    A resize puts other tensors here, so whoever computes with them looks here each time.
    """

    keys: CacheTensor
    values: CacheTensor
    is_sliding: bool = False
    """Whether the layer sees only the last tokens, those of the model's window."""

    @property
    def is_rotated(self) -> bool:
        """Whether keys are stored behind a Hadamard rotation, and queries have to be turned likewise."""
        return cache_types.is_rotated(self.keys.type_name, self.keys.length)
