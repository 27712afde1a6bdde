"""Caches for kernel tests, of both kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runner.cache_types import cache_row_bytes
from runner.kernels import CacheTensor, _cpu
from runner.kernels.reference import ReferenceKernels
from runner.kernels.reference_cache import ReferenceCache

REFERENCE = ReferenceKernels()


def filled(type_name: str, values: npt.NDArray[np.floating]) -> CacheTensor:
    """A cache whose cell i holds ``values[i]`` (cells, heads, length), written by the reference."""
    num_cells, num_heads, length = values.shape
    storage = np.zeros(num_cells * cache_row_bytes(type_name, num_heads, length), np.uint8)
    ReferenceCache(type_name, num_heads, length, storage).store(np.arange(num_cells), values.astype(np.float32))
    return _cpu.cache(type_name, num_heads, length, storage)


def twin(cache: CacheTensor) -> ReferenceCache:
    """The reference's view of the same storage."""
    return ReferenceCache(cache.type_name, cache.num_heads, cache.length, cache.rows.reshape(-1))


def empty_like(cache: CacheTensor) -> CacheTensor:
    return _cpu.cache(cache.type_name, cache.num_heads, cache.length, np.zeros(cache.nbytes, np.uint8))
