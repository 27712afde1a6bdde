"""Simulated GPUs: host memory behind quotas, counted in a folder of files that the runners share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from runner.sim_ledger import SimLedger, is_locked
from scheduler.gpu import GPU

LIBRARY = "sim"
NAME = "simulated GPU"

_PREFIX = "shale-sim-"
_OWNER = "owner"  # a file in the folder that its process keeps locked while it lives


class SimGPUs:
    """Devices ``sim0``, ``sim1``, … of the given sizes, whose ledger lives as long as this object.

    Without a ``folder`` it makes one, after removing those of processes that were killed; its own goes on ``close``, or
    when the process ends. One that is given stays.
    """

    def __init__(self, quotas: Sequence[int], folder: Path | None = None) -> None:
        """``quotas``: the devices' sizes in bytes. Raises OSError if the folder cannot be written."""
        self._removal: weakref.finalize[..., SimGPUs] | None = None
        if folder is None:
            _remove_abandoned()
            folder, lock = _make_folder()
            self._removal = weakref.finalize(self, _remove, folder, lock)
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


# ---- the folder --------------------------------------------------------------------------------


def _make_folder() -> tuple[Path, int]:
    """A new folder, and the descriptor that keeps its owner's file locked."""
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))  # others do not look at it before it has an owner
    lock = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder.rename(folder.with_name(folder.name[1:])), lock


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's; or another server is doing the same
            owner = folder / _OWNER
            if owner.exists() and not is_locked(owner):  # it lives no more
                shutil.rmtree(folder)
