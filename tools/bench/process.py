"""A measured engine in its own process, as the measuring process sees it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tools.bench.worker import Figures, Job, Settings

ROOT = Path(__file__).resolve().parents[2]
LOG_FOLDER = ROOT / "build"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine is: its name, the Python that runs it, and its module."""

    name: str
    python: str
    module: str


class Worker:
    """One engine in its own process. Leaving the context ends it."""

    def __init__(self, place: Place, model: Path, settings: Settings) -> None:
        """Raises RuntimeError with what the process wrote last when it does not get ready."""
        self.name = place.name
        command = [place.python, "-m", place.module, str(model), json.dumps(asdict(settings))]
        LOG_FOLDER.mkdir(exist_ok=True)
        self._log_path = LOG_FOLDER / f"bench-{place.name}.log"
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True
            )
        self.description = str(self._answer()["ready"])

    def measure(self, job: Job) -> Figures:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return Figures(self._answer())

    def cpu_s(self) -> float:
        """Processor time that the process has used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            words = self._log_path.read_text("utf-8")[-2000:]
            raise RuntimeError(f"{self.name} ended with status {self._process.returncode}; its last words:\n{words}")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the process; it leaves when its standard input does."""
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def idle_shares(workers: Sequence[Worker], sleep_s: float) -> dict[str, float]:
    """The share of a core that each engine takes while nothing is asked of it for ``sleep_s``."""
    before = {worker.name: worker.cpu_s() for worker in workers}
    time.sleep(sleep_s)
    return {worker.name: (worker.cpu_s() - before[worker.name]) / sleep_s for worker in workers}
