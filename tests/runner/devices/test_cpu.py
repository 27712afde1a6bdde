"""Slabs of host memory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from runner.devices.base import OutOfMemoryError
from runner.devices.cpu import HUGE_PAGE_BYTES, CpuDevice


@pytest.mark.parametrize("nbytes", [1, 64, 4097, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5])
def test_a_slab_is_zeroed_aligned_and_as_large_as_asked(nbytes: int) -> None:
    slab = CpuDevice().allocate(nbytes)
    assert slab.size == nbytes
    assert slab.ctypes.data % (HUGE_PAGE_BYTES if nbytes >= HUGE_PAGE_BYTES else 64) == 0
    assert not slab.any()
    slab[-1] = 1


def test_nothing_asked_is_nothing_taken() -> None:
    assert CpuDevice().allocate(0).size == 0


def test_more_than_there_is_names_both_numbers() -> None:
    with pytest.raises(OutOfMemoryError, match=r"out of memory on cpu: \d+ bytes asked, \d+ bytes free") as caught:
        CpuDevice().allocate(1 << 60)
    assert caught.value.asked_bytes == 1 << 60
    assert caught.value.free_bytes > 0


def test_the_device_tells_what_it_has() -> None:
    info = CpuDevice().info()
    assert 0 < info.free_bytes <= info.total_bytes
    assert np.isfinite(info.total_bytes)


def test_a_slab_at_another_length_keeps_its_bytes() -> None:
    device = CpuDevice()
    slab = device.allocate(3 * HUGE_PAGE_BYTES + 5)
    slab[:] = np.arange(slab.size) % 251
    for nbytes in (HUGE_PAGE_BYTES + 7, 2 * HUGE_PAGE_BYTES, 4097, 9 * HUGE_PAGE_BYTES, 0, 100):
        kept = min(nbytes, slab.size)
        before = slab[:kept].copy()
        slab = device.resize(slab, nbytes)
        assert slab.size == nbytes
        assert np.array_equal(slab[:kept], before)
        slab[kept:] = 7


def test_a_shorter_slab_gives_its_memory_back_to_the_system() -> None:
    process = psutil.Process()
    device = CpuDevice()
    slab = device.allocate(64 << 20)
    slab[:] = 1
    full = process.memory_info().rss
    slab = device.resize(slab, 1 << 20)
    assert full - process.memory_info().rss > 60 << 20
    slab = device.resize(slab, 64 << 20)
    assert slab[: 1 << 20].all()
    assert not slab[2 << 20 :].any()


def test_a_slab_that_cannot_grow_stays_as_it_is() -> None:
    slab = CpuDevice().allocate(5000)
    slab[:] = 9
    with pytest.raises(OutOfMemoryError, match="out of memory on cpu"):
        CpuDevice().resize(slab, 1 << 60)
    assert slab.all()


def test_a_slab_that_was_shortened_grows_again_only_into_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CpuDevice()
    slab = device.resize(device.allocate(3 * HUGE_PAGE_BYTES), HUGE_PAGE_BYTES)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=HUGE_PAGE_BYTES))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=5))
    with pytest.raises(OutOfMemoryError, match=f"{HUGE_PAGE_BYTES + 6} bytes asked, {HUGE_PAGE_BYTES + 5} bytes free"):
        device.resize(slab, 2 * HUGE_PAGE_BYTES + 6)
    assert device.resize(slab, 2 * HUGE_PAGE_BYTES + 5).size == 2 * HUGE_PAGE_BYTES + 5
