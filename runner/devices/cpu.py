"""Host memory, in huge pages where the system gives them."""

from __future__ import annotations

import mmap

import numpy as np
import psutil

from runner.devices.base import Bytes, OutOfMemoryError
from runner.protocol import DeviceInfo

HUGE_PAGE_BYTES = 2 << 20


class CpuDevice:
    """The memory that the CPU kernels compute in."""

    id = "cpu"
    library = "cpu"

    def info(self) -> DeviceInfo:
        memory = psutil.virtual_memory()
        return DeviceInfo(
            id=self.id, library=self.library, name="CPU", total_bytes=memory.total, free_bytes=memory.available
        )

    def allocate(self, nbytes: int) -> Bytes:
        free_bytes = psutil.virtual_memory().available + psutil.swap_memory().free
        if nbytes > free_bytes:
            raise OutOfMemoryError(self.id, nbytes, free_bytes)
        try:
            return map_zeroed(nbytes)[1]
        except OSError as error:
            raise OutOfMemoryError(self.id, nbytes, free_bytes) from error


def map_zeroed(nbytes: int) -> tuple[mmap.mmap, Bytes]:
    """An anonymous mapping, and a zeroed slab of ``nbytes`` in it that keeps it alive.

    Large slabs start at a 2 MiB boundary and ask for huge pages: reading weights through them is about 10 % faster.

    Raises:
        OSError: the system refuses.
    """
    is_large = nbytes >= HUGE_PAGE_BYTES
    slack = HUGE_PAGE_BYTES if is_large else 0
    mapping = mmap.mmap(-1, max(1, nbytes + slack), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    slab = np.frombuffer(mapping, np.uint8)
    start = -slab.ctypes.data % HUGE_PAGE_BYTES if is_large else 0
    if is_large and hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping, slab[start : start + nbytes]
