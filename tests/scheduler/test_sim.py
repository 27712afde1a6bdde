"""The ledger folder of simulated devices: made, removed, and gone with the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

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


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, of this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    tempfile.tempdir = None


def start_owner(repository_root: Path) -> tuple[subprocess.Popen[str], Path]:
    script = "from scheduler.sim import SimGPUs; s = SimGPUs([1]); print(s.folder, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=repository_root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return child, Path(child.stdout.readline().strip())


def test_what_a_killed_process_left_goes_with_the_next_start_and_what_a_living_one_has_stays(
    temporary: Path, repository_root: Path
):
    (temporary / "shale-sim-without-an-owner").mkdir()
    killed, abandoned = start_owner(repository_root)
    living, used = start_owner(repository_root)
    with killed, living:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert abandoned.is_dir()
        sims = SimGPUs([KIB])
        assert not abandoned.exists()
        assert used.is_dir()
        assert (temporary / "shale-sim-without-an-owner").is_dir()  # we cannot know
        living.communicate("")
    assert not used.exists()
    sims.close()
    assert [path.name for path in temporary.iterdir()] == ["shale-sim-without-an-owner"]
