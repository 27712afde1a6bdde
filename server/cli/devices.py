"""``shale devices``: what layers could be placed on, and what not, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from scheduler.sizes import human_bytes

COLUMNS = ("ID", "LIBRARY", "NAME", "TOTAL", "FREE", "COMPUTE", "USABLE")
RIGHT = ("TOTAL", "FREE")


def device_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    """A table of the answer of ``/api/devices``."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in RIGHT else "left", overflow="fold")
    for device in devices:
        sizes = (human_bytes(device["total_bytes"]), human_bytes(device["free_bytes"]))
        usable = "yes" if device["usable"] else f"no: {device['reason']}"
        compute = device.get("compute_capability") or "-"
        table.add_row(device["id"], device["library"], device["name"], *sizes, compute, usable)
    return table
