"""Simulated GPUs: host memory behind quotas, counted in a folder of files that the runners share."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from runner.sim_ledger import SimLedger
from scheduler.gpu import GPU

LIBRARY = "sim"
NAME = "simulated GPU"


class SimGPUs:
    """Devices ``sim0``, ``sim1``, … of the given sizes, whose ledger lives as long as this object.

    Without a ``folder`` it makes one and removes it on ``close``, or when the process ends. One that is given stays.
    """

    def __init__(self, quotas: Sequence[int], folder: Path | None = None) -> None:
        """``quotas``: the devices' sizes in bytes. Raises OSError if the folder cannot be written."""
        self._removal: weakref.finalize[..., SimGPUs] | None = None
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="shale-sim-"))
            self._removal = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = folder
        self._ledgers = {sim_id(number): SimLedger(self.folder, sim_id(number)) for number in range(len(quotas))}
        for ledger, quota in zip(self._ledgers.values(), quotas, strict=True):
            ledger.set_quota(quota)

    def gpus(self) -> tuple[GPU, ...]:
        """The devices with what all runners together have left of them."""
        return tuple(
            sim_gpu(id, total_bytes=ledger.quota_bytes(), free_bytes=ledger.free_bytes())
            for id, ledger in self._ledgers.items()
        )

    def close(self) -> None:
        """May be called again."""
        if self._removal is not None:
            self._removal()


def sim_id(number: int) -> str:
    return f"{LIBRARY}{number}"


def sim_gpu(id: str, total_bytes: int, free_bytes: int) -> GPU:
    """No driver, so nothing that must stay free."""
    return GPU(id=id, library=LIBRARY, free_bytes=free_bytes, minimum_bytes=0, total_bytes=total_bytes, name=NAME)
