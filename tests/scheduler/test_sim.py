"""The ledger folder of simulated devices: made, removed, and gone with the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scheduler.sim import SimGPUs

KIB = 2**10


def test_the_folder_is_made_and_removed():
    sims = SimGPUs([KIB, 2 * KIB])
    assert [gpu.total_bytes for gpu in sims.gpus()] == [KIB, 2 * KIB]
    assert sims.folder.is_dir()
    sims.close()
    assert not sims.folder.exists()


def test_two_servers_have_two_folders():
    first, second = SimGPUs([KIB]), SimGPUs([KIB])
    assert first.folder != second.folder
    first.close()
    second.close()


def test_the_folder_goes_with_the_process(repository_root: Path):
    script = "from scheduler.sim import SimGPUs; sims = SimGPUs([1]); print(sims.folder)"
    child = subprocess.run([sys.executable, "-c", script], cwd=repository_root, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert not Path(child.stdout.strip()).exists()
