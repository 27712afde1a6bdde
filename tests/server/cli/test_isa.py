"""``SHALE_CPU_ISA`` is compared with the machine before anything is served."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from runner.kernels import _cpu
from server.cli.client import CommandError
from server.cli.isa import available_isas, check_isa
from server.settings import SettingError, Settings


def nobody() -> Sequence[str]:
    raise AssertionError("the kernels were asked")


def test_the_kernels_say_what_there_is() -> None:
    assert available_isas() == list(_cpu.available_isas())


def test_kernels_that_do_not_answer_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.cli.isa.PROGRAM", "raise OSError('no such kernels')")
    with pytest.raises(CommandError, match="do not say which instruction sets there are: OSError: no such kernels"):
        available_isas()


def test_what_the_cpu_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(SettingError) as caught:
        check_isa(Settings(cpu_isa="amx"), lambda: ["portable", "avx2"])
    assert str(caught.value) == ("SHALE_CPU_ISA='amx' cannot be used; allowed on this machine: auto, portable, avx2")


def test_what_the_cpu_has_is_taken() -> None:
    check_isa(Settings(cpu_isa="avx2"), lambda: ["portable", "avx2"])


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(cpu_isa="portable"), Settings(cpu_isa="amx", kernels="reference")]
)
def test_nobody_is_asked_where_it_does_not_matter(settings: Settings) -> None:
    check_isa(settings, nobody)
