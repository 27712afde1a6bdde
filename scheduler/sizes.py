"""Byte counts as people write them. Units are binary: 1 GiB = 2**30 bytes."""

from __future__ import annotations

import re

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)")


def human_bytes(num_bytes: int) -> str:
    """``5.2 GiB``: one decimal in the largest unit up to GiB, as Ollama writes sizes in its errors."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} B"


def parse_bytes(text: str) -> int:
    """The number of bytes that ``900KiB``, ``8 GiB``, ``1.5GiB`` or ``1024`` stand for.

    Raises ValueError for anything else, decimal units (GB) included: they are mistaken too often.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"size {text!r} is not understood; allowed: a number and B, KiB, MiB, GiB or TiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
