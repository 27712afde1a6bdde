"""Whether what the server says it holds is what the simulated devices say is held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from runner.sim_ledger import SimLedger
from tools.soaking.front import Front

QUIET_TIMEOUT_S = 60.0
PATIENCE = 30  # looks at a difference before it counts: a busy machine may take seconds to notice an end
PAUSE_S = 0.1

Bytes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Balance:
    """One look at a server whose models are all ready."""

    held: Bytes  # by device, as the ledgers say
    reported: Bytes  # by device, as /api/ps says
    num_models: int
    num_runners: int

    @property
    def problems(self) -> list[str]:
        found = [
            f"{device}: {self.held[device]} bytes are held, /api/ps reports {self.reported.get(device, 0)}"
            for device in self.held
            if self.held[device] != self.reported.get(device, 0)
        ]
        if self.num_models != self.num_runners:
            found.append(f"/api/ps lists {self.num_models} models, {self.num_runners} runners live")
        return found


class Accounts:
    """The ledgers of all simulated devices of one server."""

    def __init__(self, folder: Path, num_devices: int) -> None:
        self._folder = folder
        self.ledgers = {f"sim{number}": SimLedger(folder, f"sim{number}") for number in range(num_devices)}

    def held(self) -> dict[str, int]:
        return {id: ledger.held_bytes() for id, ledger in self.ledgers.items()}

    def resize(self, quotas: Sequence[int]) -> None:
        for ledger, quota in zip(self.ledgers.values(), quotas, strict=True):
            ledger.set_quota(quota)

    def leftovers(self) -> list[str]:
        """Files of processes that hold something, or are counted as if they did."""
        self.held()  # removes those of dead processes
        return sorted(path.name for path in self._folder.glob("*.held"))

    async def balance(self, http: httpx.AsyncClient, front: Front) -> Balance:
        """Waits for a moment in which nothing loads or ends. Raises TimeoutError if there is none."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        looks = 0
        while True:
            before = await loaded(http, front.url)
            held, num_runners = self.held(), len(front.runners())
            if _is_quiet(before) and before == await loaded(http, front.url):
                balance = Balance(held, _reported(before), len(before), num_runners)
                looks += 1
                if not balance.problems or looks == PATIENCE:
                    return balance
            if time.monotonic() > deadline:
                raise TimeoutError(f"no quiet moment within {QUIET_TIMEOUT_S} s; /api/ps: {before}")
            await asyncio.sleep(PAUSE_S)


async def loaded(http: httpx.AsyncClient, url: str) -> list[dict[str, Any]]:
    """The models of /api/ps by name, without what changes from moment to moment."""
    models = (await http.get(f"{url}/api/ps")).json()["models"]
    kept = [{key: value for key, value in model.items() if key != "expires_at"} for model in models]
    return sorted(kept, key=lambda model: str(model["name"]))


def _is_quiet(models: list[dict[str, Any]]) -> bool:
    return all(model["state"] == "ready" for model in models)


def _reported(models: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in (row for model in models for row in model["devices"]):
        total[row["id"]] = total.get(row["id"], 0) + row["total_bytes"]
    return total
