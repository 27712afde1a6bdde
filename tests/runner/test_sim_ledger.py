"""Simulated devices: a quota that all processes share and that outlives none of them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.devices.base import OutOfMemoryError
from runner.devices.sim import SimDevice
from runner.sim_ledger import SimLedger, is_locked

HOLDER = """
import sys, time
from pathlib import Path
from runner.sim_ledger import SimLedger
assert SimLedger(Path(sys.argv[1]), "sim0").take(int(sys.argv[2])) is None
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> SimLedger:
    ledger = SimLedger(tmp_path / "ledger", "sim0")
    ledger.set_quota(1000)
    return ledger


def test_taking_and_giving_back(ledger: SimLedger) -> None:
    assert ledger.take(600) is None
    assert ledger.free_bytes() == 400
    assert ledger.take(401) == 400
    ledger.give_back(600)
    assert ledger.free_bytes() == 1000


def test_a_quota_that_shrinks_below_what_is_held_leaves_nothing_free(ledger: SimLedger) -> None:
    assert ledger.take(600) is None
    ledger.set_quota(500)
    assert ledger.free_bytes() == 0
    assert ledger.held_bytes() == 600


def test_what_a_killed_process_held_is_free_at_once(ledger: SimLedger, tmp_path: Path, repository_root: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "ledger"), "700"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=repository_root) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert ledger.free_bytes() == 300
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert ledger.free_bytes() == 1000


def test_a_slab_goes_back_when_its_last_view_is_gone(ledger: SimLedger) -> None:
    device = SimDevice("sim0", ledger)
    slab = device.allocate(512)
    view = slab[10:20]
    del slab
    gc.collect()
    assert device.info().free_bytes == 488
    del view
    gc.collect()
    assert device.info().free_bytes == 1000


def test_more_than_the_quota_is_refused_with_both_numbers(ledger: SimLedger) -> None:
    with pytest.raises(OutOfMemoryError, match="out of memory on sim0: 1001 bytes asked, 1000 bytes free"):
        SimDevice("sim0", ledger).allocate(1001)


def test_what_a_dead_process_of_the_same_number_held_is_not_ours(tmp_path):
    ledger = SimLedger(tmp_path, "sim0")
    ledger.set_quota(10)
    (tmp_path / f"sim0.{os.getpid()}.held").write_text("9")
    assert ledger.free_bytes() == 10
    assert ledger.take(4) is None
    assert ledger.held_bytes() == SimLedger(tmp_path, "sim0").held_bytes() == 4


def test_memory_that_comes_back_in_the_middle_of_a_look_is_not_waited_for(
    ledger: SimLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer may run while its own thread holds the device's lock."""
    assert ledger.take(600) is None
    look = SimLedger._held

    def interrupted(self: SimLedger) -> dict[int, int]:
        monkeypatch.setattr(SimLedger, "_held", look)
        self.give_back(200)
        return look(self)

    monkeypatch.setattr(SimLedger, "_held", interrupted)
    assert ledger.take(100) is None
    assert ledger.held_bytes() == 500


def test_a_file_is_locked_while_the_process_that_locked_it_lives(ledger: SimLedger, tmp_path: Path) -> None:
    assert ledger.take(1) is None
    (own,) = (tmp_path / "ledger").glob("*.held")
    assert is_locked(own)
    (tmp_path / "file").touch()
    assert not is_locked(tmp_path / "file")
    assert not is_locked(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(own)
    with pytest.raises(OSError, match="link"):  # it is not followed: it may be somebody else's trap
        is_locked(tmp_path / "link")
