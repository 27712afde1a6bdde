"""After a model is gone, waits until its memory really appears: drivers give it back some time after the process."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from scheduler.clock import Clock
from scheduler.devices import Machine
from scheduler.reservations import Bytes, device_name

LOG = logging.getLogger("scheduler")

ENOUGH = 0.75  # of what was held: the rest is what the estimate of a driver's own needs was off. Ollama's number
LIMIT_S = 5.0
_POLL_S = 0.05


async def freed_memory_appears(
    look: Callable[[], Awaitable[Machine]], before: Machine, freed: Bytes, clock: Clock
) -> bool:
    """Returns when ``look`` finds three quarters of ``freed`` on every GPU on top of what was free ``before``.

    False: not within 5 s; whoever waits then goes on with what there is. Host memory is not waited for: the kernel has
    it as soon as the process is gone.
    """
    wanted = {
        device_name(gpu): gpu.free_bytes + ENOUGH * freed[device_name(gpu)]
        for gpu in before.gpus
        if freed.get(device_name(gpu))
    }
    begin = clock.monotonic()
    while wanted:
        now = {device_name(gpu): gpu.free_bytes for gpu in (await look()).gpus}
        wanted = {device: free for device, free in wanted.items() if now.get(device, free) < free}
        if wanted and clock.monotonic() - begin >= LIMIT_S:
            LOG.warning("freed memory did not appear on %s within %g s", ", ".join(d.id for d in wanted), LIMIT_S)
            return False
        if wanted:
            await clock.sleep(_POLL_S)
    return True
