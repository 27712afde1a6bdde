"""The thread pool: every piece runs once, whatever calls it, and an idle pool costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from runner.kernels import _cpu


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("num_pieces", [0, 1, 2, 1000])
def test_every_piece_runs_once(num_threads: int, num_pieces: int) -> None:
    _cpu.set_num_threads(num_threads)
    pieces = _cpu.run_probe(num_pieces)
    assert len(pieces) == num_threads
    assert sum(pieces) == num_pieces


def test_workers_take_part() -> None:
    _cpu.set_num_threads(2)
    for _ in range(100):  # a busy machine may need several jobs until the worker is run
        if min(_cpu.run_probe(200, nanoseconds=50_000)) > 0:
            return
    pytest.fail("the worker ran no piece of 100 jobs of 10 ms")


def test_several_python_threads_share_the_pool() -> None:
    totals: list[int] = []

    def run() -> None:
        totals.append(sum(sum(_cpu.run_probe(7)) for _ in range(500)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert totals == [7 * 500] * 4


def test_resizing_while_other_threads_run_jobs() -> None:
    stop = threading.Event()
    failures: list[int] = []

    def run() -> None:
        while not stop.is_set():
            total = sum(_cpu.run_probe(9))
            if total != 9:
                failures.append(total)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for size in (1, 4, 2, 3, 1, 2) * 5:
        _cpu.set_num_threads(size)
        assert _cpu.num_threads() == size
    stop.set()
    for thread in threads:
        thread.join(timeout=120)
    assert failures == []


def test_an_idle_pool_uses_no_processor_time() -> None:
    _cpu.run_probe(100, nanoseconds=10_000)
    time.sleep(0.01)  # workers spin for less than this before they sleep
    assert min(processor_s_of_a_rest(0.1) for _ in range(10)) < 0.007  # other threads of the tests may be busy


def processor_s_of_a_rest(rest_s: float) -> float:
    before = time.process_time()
    time.sleep(rest_s)
    return time.process_time() - before


def test_more_threads_than_cores_finish_soon() -> None:
    """Workers that are not run are not waited for: 200 short jobs of 16 threads take less than a time slice each."""
    _cpu.set_num_threads(16)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(200):
            assert sum(_cpu.run_probe(32, nanoseconds=1_000)) == 32
        times.append(time.perf_counter() - started)
    assert min(times) < 5


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    script = (
        "import os\n"
        "from runner.kernels import _cpu\n"
        "_cpu.set_num_threads(2)\n"
        "_cpu.run_probe(50, 1000)\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if sum(_cpu.run_probe(50, 1000)) == 50 and _cpu.num_threads() == 2 else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", script], timeout=120, env=environment).returncode == 0


def test_an_unknown_instruction_set_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'altivec' is not available; this machine has portable"):
        _cpu.set_isa("altivec")
    assert _cpu.active_isa() == _cpu.available_isas()[-1]
