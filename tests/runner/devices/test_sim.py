"""A simulated device's quota follows the length of its slabs."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from runner.devices.base import OutOfMemoryError
from runner.devices.sim import SimDevice
from runner.sim_ledger import SimLedger


@pytest.fixture
def device(tmp_path: Path) -> SimDevice:
    ledger = SimLedger(tmp_path, "sim0")
    ledger.set_quota(10_000)
    return SimDevice("sim0", ledger)


def test_a_shorter_slab_gives_back_the_rest_and_its_end_gives_back_what_is_left(device: SimDevice) -> None:
    slab = device.allocate(8000)
    slab[:] = np.arange(8000) % 251
    slab = device.resize(slab, 3000)
    assert device.info().free_bytes == 7000
    assert np.array_equal(slab, np.arange(3000) % 251)
    slab = device.resize(slab, 6000)
    assert device.info().free_bytes == 4000
    assert np.array_equal(slab[:3000], np.arange(3000) % 251)
    del slab
    gc.collect()
    assert device.info().free_bytes == 10_000


def test_growing_into_what_others_hold_is_refused(device: SimDevice) -> None:
    slab = device.resize(device.allocate(8000), 2000)
    slab[:] = 5
    other = device.allocate(7000)
    with pytest.raises(OutOfMemoryError, match="out of memory on sim0: 6000 bytes asked, 1000 bytes free"):
        device.resize(slab, 8000)
    assert slab.all()
    assert device.info().free_bytes == 1000
    assert other.size == 7000


def test_a_slab_that_has_to_be_copied_needs_room_for_both(device: SimDevice) -> None:
    slab = device.allocate(4000)
    slab[:] = 5
    with pytest.raises(OutOfMemoryError, match="6001 bytes asked, 6000 bytes free"):
        device.resize(slab, 6001)
    slab = device.resize(slab, 6000)
    gc.collect()
    assert slab[:4000].all()
    assert not slab[4000:].any()
    assert device.info().free_bytes == 4000
