"""A simulated GPU: host memory behind a quota that all processes share, computing with the CPU kernels."""

from __future__ import annotations

import weakref

from runner.devices.base import Bytes, OutOfMemoryError
from runner.devices.cpu import map_zeroed
from runner.protocol import DeviceInfo
from runner.sim_ledger import SimLedger


class SimDevice:
    """Gives out host memory, but no more than its quota, over all processes that use the same ledger."""

    library = "sim"

    def __init__(self, id: str, ledger: SimLedger) -> None:
        self.id = id
        self._ledger = ledger

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
        free_bytes = self._ledger.take(nbytes)
        if free_bytes is not None:
            raise OutOfMemoryError(self.id, nbytes, free_bytes)
        mapping, slab = map_zeroed(nbytes)
        weakref.finalize(mapping, self._ledger.give_back, nbytes)
        return slab
