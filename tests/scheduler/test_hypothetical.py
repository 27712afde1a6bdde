from __future__ import annotations

import pytest

from scheduler.devices import GPU, Machine, SystemMemory
from scheduler.errors import SettingsError
from scheduler.hypothetical import hypothetical_machine, parse_hypothetical

GIB = 2**30
REAL = Machine(SystemMemory(8 * GIB, 5 * GIB, GIB), (GPU("sim0", "sim", 3),))


def test_sizes_are_gpus_under_the_rules_of_real_ones():
    first, second = parse_hypothetical("24GiB, 12GiB")
    assert (first.id, first.library, first.free_bytes, first.total_bytes) == ("gpu0", "gpu", 24 * GIB, 24 * GIB)
    assert (second.id, second.free_bytes, second.minimum_bytes) == ("gpu1", 12 * GIB, 457 * 2**20)


def test_simulated_devices_and_none():
    assert [(gpu.id, gpu.minimum_bytes) for gpu in parse_hypothetical("sim:8MiB,sim:6MiB")] == [
        ("sim0", 0),
        ("sim1", 0),
    ]
    assert parse_hypothetical("cpu") == ()


def test_what_is_not_understood():
    with pytest.raises(SettingsError, match=r"^devices: '24GB' is not understood; allowed: cpu; or "):
        parse_hypothetical("12GiB,24GB")


def test_what_is_not_given_is_the_real_machine_s():
    assert hypothetical_machine(None, None, REAL) == REAL
    assert hypothetical_machine("cpu", None, REAL) == Machine(REAL.system)
    thought = hypothetical_machine(None, "64GiB", REAL)
    assert thought == Machine(SystemMemory(64 * GIB, 64 * GIB, 0), REAL.gpus)
    with pytest.raises(SettingsError, match=r"^system_memory: size '64GB' is not understood"):
        hypothetical_machine(None, "64GB", REAL)
