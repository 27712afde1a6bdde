"""Run as a script: prints what CUDA says of the GPUs, as JSON, and ends; the context ends with it.

Started by ``scheduler.cuda_probe`` where NVML is missing. Imports nothing of this package.
"""

from __future__ import annotations

import importlib
import json
from typing import Any


def describe(runtime: Any) -> list[dict[str, Any]]:
    """Every GPU that CUDA shows to this process; ``runtime`` is ``cupy.cuda.runtime``."""
    return [_describe(runtime, number) for number in range(runtime.getDeviceCount())]


def _describe(runtime: Any, number: int) -> dict[str, Any]:
    properties = runtime.getDeviceProperties(number)
    runtime.setDevice(number)
    free_bytes, total_bytes = runtime.memGetInfo()
    return {
        "id": _uuid(properties["uuid"]),
        "name": properties["name"].decode(errors="replace"),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "pci_id": runtime.deviceGetPCIBusId(number),
        "is_integrated": bool(properties["integrated"]),
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
    }


def _uuid(raw: bytes) -> str:
    digits = raw[:16].hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


if __name__ == "__main__":
    print(json.dumps(describe(importlib.import_module("cupy").cuda.runtime)))
