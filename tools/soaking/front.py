"""A server of its own for a soak: ``python -m server serve`` with the fleet, on a port that it finds itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
KEPT = ("SHALE_KERNELS", "SHALE_CPU_ISA")  # a soak can be run on other kernels


class Front:
    """Starts at once, and has a ``url`` once it is up. ``stop`` ends it by SIGTERM, as a service manager would."""

    def __init__(self, models: Path, log: Path, settings: Mapping[str, str]) -> None:
        self.url = ""
        self.log = log
        environment = {name: value for name, value in os.environ.items() if name in KEPT or not _is_setting(name)}
        environment |= {"SHALE_HOST": "127.0.0.1:0", "SHALE_MODELS": str(models), **settings}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "server", "serve"],
                cwd=ROOT,
                env=environment | {"PYTHONPATH": ":".join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    async def wait_until_up(self, http: httpx.AsyncClient) -> None:
        """Raises RuntimeError, with the server's log, if it does not come up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if said := re.search(r"listens on (http://\S+)\n", self.log.read_text()):
                self.url = said[1]
                with contextlib.suppress(httpx.TransportError):
                    await http.get(self.url)
                    return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the server did not come up:\n{self.log.read_text()}")

    def runners(self) -> list[psutil.Process]:
        """The living runner processes."""
        return [child for child in psutil.Process(self.process.pid).children() if model_of(child)]

    async def stop(self) -> int:
        """The exit status. Raises subprocess.TimeoutExpired; then the process has been killed."""
        self.process.terminate()
        try:
            return await asyncio.to_thread(self.process.wait, STOP_TIMEOUT_S)
        finally:
            self.process.kill()
            self.process.wait()


def model_of(process: psutil.Process) -> str:
    """The name of the model that a runner serves; empty for any other process, and for one that has ended."""
    try:
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
    return Path(command[command.index("--model") + 1]).stem if "--model" in command else ""


def _is_setting(name: str) -> bool:
    return name.startswith(("SHALE_", "OLLAMA_"))
