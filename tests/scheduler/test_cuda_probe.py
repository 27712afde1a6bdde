"""The child that asks CUDA, with a stand-in for CuPy on its path."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scheduler import cuda_probe
from scheduler.cuda_probe import ask_cuda

CUPY = """
class runtime:
    current = 0
    getDeviceCount = staticmethod(lambda: 2)
    deviceGetPCIBusId = staticmethod(lambda number: f"0000:{number}")
    @staticmethod
    def getDeviceProperties(number):
        return {"uuid": bytes(range(16)), "name": b"card %d" % number, "major": 8, "minor": 6, "integrated": number}
    @classmethod
    def setDevice(cls, number):
        cls.current = number
    @classmethod
    def memGetInfo(cls):
        return 100 + cls.current, 200

class cuda:
    runtime = runtime
"""


@pytest.fixture
def cupy(tmp_path, monkeypatch):
    """Writes what ``import cupy`` finds, here and in a child."""

    def write(source):
        (tmp_path / "cupy.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(str(tmp_path))

    return write


def test_what_cuda_says(cupy):
    cupy(CUPY)
    first, second = ask_cuda()
    assert (first.id, first.library, first.name) == ("GPU-00010203-0405-0607-0809-0a0b0c0d0e0f", "cuda", "card 0")
    assert (first.compute_capability, first.pci_id, first.is_integrated) == ("8.6", "0000:0", False)
    assert (second.free_bytes, second.total_bytes, second.is_integrated) == (101, 200, True)
    assert "cupy" not in sys.modules


def test_no_driver(cupy, caplog):
    cupy("raise RuntimeError('cudaErrorInsufficientDriver')")
    with caplog.at_level("INFO"):
        assert ask_cuda() == ()
    assert "CUDA shows no GPU: RuntimeError: cudaErrorInsufficientDriver" in caplog.text


def test_a_child_that_hangs_or_talks_nonsense(cupy, caplog):
    cupy("import time; time.sleep(60)")
    assert ask_cuda(timeout_s=0.3) == ()
    cupy("print('hello')\n" + CUPY)
    assert ask_cuda() == ()
    assert caplog.text.count("CUDA could not be asked") == 2


def test_without_cupy_no_child_is_started(monkeypatch):
    monkeypatch.setattr(cuda_probe.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", None)
    assert ask_cuda() == ()
