"""The machine as loads see it."""

from __future__ import annotations

from runner.footprint import CPU, DeviceName
from runner.protocol import DeviceMemory, Memory
from scheduler.devices import GPU, Machine, SystemMemory
from scheduler.reservations import (
    Claim,
    after_claims,
    bytes_of,
    less_promised,
    only,
    total,
    with_freed,
    without_claims,
)

SIM0, SIM1 = DeviceName("sim0", "sim"), DeviceName("sim1", "sim")


def gpu(id, free, size=100):
    return GPU(id, "sim", free, minimum_bytes=0, total_bytes=size)


MACHINE = Machine(SystemMemory(1000, 800, 50), (gpu("sim0", 90), gpu("sim1", 70)))


def free(machine):
    return machine.system.free_bytes, {g.id: g.free_bytes for g in machine.gpus}


def test_claimed_devices_are_not_there_and_claimed_host_memory_is_not_free():
    claims = [Claim(frozenset({SIM0}), 300), Claim(frozenset(), 600)]
    assert free(without_claims(MACHINE, claims[:1])) == (500, {"sim1": 70})
    assert free(without_claims(MACHINE, claims)) == (0, {"sim1": 70})
    assert without_claims(MACHINE, []) == MACHINE


def test_what_a_load_has_taken_of_its_claim_is_not_claimed_any_more():
    claim = Claim(frozenset({SIM0}), 300)
    assert claim.less(100) == Claim(frozenset({SIM0}), 200)
    assert claim.less(400).system_bytes == 0


def test_the_machine_after_the_loads_under_way():
    """Of the 100 bytes of sim0 others hold 5, the load that has it will hold 60: what it has by now does not matter."""
    claim = Claim(frozenset({SIM0}), 300, in_the_end={CPU: 300, SIM0: 60})
    for free_now in (95, 40):
        now = Machine(MACHINE.system, (gpu("sim0", free_now), MACHINE.gpus[1]))
        assert free(after_claims(now, [claim], {SIM0: 5, SIM1: 9})) == (500, {"sim0": 35, "sim1": 70})
    assert free(after_claims(MACHINE, [claim], {SIM0: 50})) == (500, {"sim0": 0, "sim1": 70})
    assert free(after_claims(MACHINE, [Claim(frozenset({SIM0, SIM1}))], {})) == (800, {"sim0": 0, "sim1": 0})
    unknown = Machine(MACHINE.system, (gpu("sim0", 90, size=0),))
    assert free(after_claims(unknown, [claim], {})) == (500, {"sim0": 30})


def test_what_loaded_models_were_promised_is_not_free_whatever_the_system_says():
    assert free(less_promised(MACHINE, {CPU: 150, SIM0: 5, SIM1: 60})) == (800, {"sim0": 90, "sim1": 40})
    assert free(less_promised(MACHINE, {CPU: 500, SIM0: 200})) == (500, {"sim0": 0, "sim1": 70})
    unknown = Machine(MACHINE.system, (gpu("sim0", 90, size=0),))
    assert free(less_promised(unknown, {SIM0: 80})) == (800, {"sim0": 90})


def test_freed_bytes_are_free_but_never_more_than_there_is():
    assert free(with_freed(MACHINE, {CPU: 100, SIM1: 20})) == (900, {"sim0": 90, "sim1": 90})
    assert free(with_freed(MACHINE, {CPU: 999, SIM0: 999})) == (1000, {"sim0": 100, "sim1": 70})


def test_only_some_devices():
    assert only(MACHINE, frozenset({SIM1})).gpus == MACHINE.gpus[1:]
    assert only(MACHINE, frozenset()).gpus == ()


def test_bytes_of_models_add_up():
    def device(id, library, weights):
        return DeviceMemory(id=id, library=library, weights=(weights, 0), cache=(1, 0), graph=2)

    memory = Memory(input_weights=7, cpu=device("cpu", "cpu", 10), gpus=(device("sim0", "sim", 20),))
    assert bytes_of(memory) == {CPU: 20, SIM0: 23}
    assert sum(bytes_of(memory).values()) == memory.total_bytes
    assert total([bytes_of(memory), {SIM0: 1, SIM1: 2}]) == {CPU: 20, SIM0: 24, SIM1: 2}
