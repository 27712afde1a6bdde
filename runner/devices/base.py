"""What every device can do, and the one error that says memory is short."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from runner.protocol import DeviceInfo

Bytes = npt.NDArray[np.uint8]


class OutOfMemoryError(RuntimeError):
    """A device could not give the bytes asked for."""

    def __init__(self, device: str, asked_bytes: int, free_bytes: int) -> None:
        super().__init__(f"out of memory on {device}: {asked_bytes} bytes asked, {free_bytes} bytes free")
        self.device = device
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes


class Device(Protocol):
    """One place that holds tensors. Memory is taken in slabs, one per purpose, never from a growing pool."""

    @property
    def id(self) -> str: ...

    @property
    def library(self) -> str: ...

    def info(self) -> DeviceInfo: ...

    def allocate(self, nbytes: int) -> Bytes:
        """A zeroed slab aligned to 64 bytes, freed when the last view of it is gone.

        Raises:
            OutOfMemoryError: the device has fewer bytes free.
        """
        ...

    def resize(self, slab: Bytes, nbytes: int) -> Bytes:
        """A whole slab from ``allocate`` or from here, at another length; what both lengths have keeps its bytes.

        When it gets shorter, the rest is free for others at once. ``slab`` and views of it are not to be used any more,
        but for reading while they last.

        Raises:
            OutOfMemoryError: the device has fewer bytes free than are added (all of them, where the slab has to be
                copied); the slab is as it was.
        """
        ...
