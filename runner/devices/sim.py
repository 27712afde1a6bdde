"""A simulated GPU: host memory behind a quota that all processes share, computing with the CPU kernels."""

from __future__ import annotations

import mmap
import weakref

from runner.devices.base import Bytes, OutOfMemoryError
from runner.devices.cpu import capacity, copied, map_zeroed, mapping_of, resized
from runner.protocol import DeviceInfo
from runner.sim_ledger import SimLedger


class SimDevice:
    """Gives out host memory, but no more than its quota, over all processes that use the same ledger."""

    library = "sim"

    def __init__(self, id: str, ledger: SimLedger) -> None:
        self.id = id
        self._ledger = ledger
        self._returns: weakref.WeakKeyDictionary[mmap.mmap, weakref.finalize[..., mmap.mmap]]
        self._returns = weakref.WeakKeyDictionary()  # by a slab's mapping: gives back to the quota what it holds

    def info(self) -> DeviceInfo:
        return DeviceInfo(
            id=self.id,
            library=self.library,
            name="simulated GPU",
            total_bytes=self._ledger.quota_bytes(),
            free_bytes=self._ledger.free_bytes(),
        )

    def allocate(self, nbytes: int) -> Bytes:
        """A zeroed slab; its bytes go back to the quota when the last view of it is gone."""
        self._take(nbytes)
        mapping, slab = map_zeroed(nbytes)
        self._returns[mapping] = weakref.finalize(mapping, self._ledger.give_back, nbytes)
        return slab

    def resize(self, slab: Bytes, nbytes: int) -> Bytes:
        if nbytes > capacity(slab):
            return copied(slab, self.allocate(nbytes))
        mapping, more = mapping_of(slab), nbytes - slab.nbytes
        if more > 0:
            self._take(more)
        result = resized(slab, nbytes)
        self._returns[mapping].detach()
        self._returns[mapping] = weakref.finalize(mapping, self._ledger.give_back, nbytes)
        if more < 0:
            self._ledger.give_back(-more)
        return result

    def _take(self, nbytes: int) -> None:
        free_bytes = self._ledger.take(nbytes)
        if free_bytes is not None:
            raise OutOfMemoryError(self.id, nbytes, free_bytes)
