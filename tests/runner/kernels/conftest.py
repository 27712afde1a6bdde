"""What kernel tests run with: instruction sets and threads, which belong to the process, so every test sets them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runner.kernels import _cpu

ISAS = _cpu.available_isas()
FUSED_ISAS = [isa for isa in ISAS if isa != "portable"]


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    """Every test starts with the best instruction set and two threads."""
    _cpu.set_isa(ISAS[-1])
    _cpu.set_num_threads(2)
    yield
    _cpu.set_isa(ISAS[-1])


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine has, in use."""
    _cpu.set_isa(request.param)
    return str(request.param)


@pytest.fixture
def fused_isas() -> list[str]:
    """The instruction sets with a fused multiply-add, which give the same bits; skipped where there is one at most."""
    if len(FUSED_ISAS) < 2:
        pytest.skip(f"this machine has {ISAS}: nothing to compare")
    return FUSED_ISAS
