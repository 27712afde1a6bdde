"""Plain columns for the terminal and for pipes, and the units in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
PERIODS = (
    (31_536_000, "year"),
    (2_592_000, "month"),
    (604_800, "week"),
    (86_400, "day"),
    (3600, "hour"),
    (60, "minute"),
)
UNKNOWN = "-"
BAR_WIDTH = 16
FOREVER_S = 3_153_600_000  # a hundred years


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below a header, each column as wide as its widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "    ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def human_bytes(number: int) -> str:
    """Decimal units, two or three digits: 6712345 → ``6.7 MB``."""
    for unit, name in UNITS:
        if number >= unit:
            value = number / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{number} B"


def loading(progress: float) -> str:
    """``loading [####            ] 25%``; ASCII, for it goes into pipes as well."""
    return f"loading [{('#' * int(progress * BAR_WIDTH)).ljust(BAR_WIDTH)}] {int(progress * 100)}%"


def cache_use(cache: Mapping[str, int] | None) -> str:
    """``37%`` of the cells of a KV cache are in use; cached prefixes, which give way when cells are needed, count."""
    return UNKNOWN if cache is None else f"{round(100 * cache['used'] / cache['cells'])}%"


def sequences(numbers: Mapping[str, int] | None) -> str:
    """``2 of 4``, and ``+3`` where completions wait."""
    if numbers is None:
        return UNKNOWN
    waiting = f" +{numbers['waiting']}" if numbers["waiting"] else ""
    return f"{numbers['active']} of {numbers['parallel']}{waiting}"


def human_period(seconds: float) -> str:
    for unit, name in PERIODS:
        if seconds >= unit:
            number = int(seconds // unit)
            return f"{number} {name}{'s' if number > 1 else ''}"
    return "less than a minute"


def since(moment: str) -> str:
    return f"{human_period((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())} ago"


def until(moment: str) -> str:
    seconds = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    return "forever" if seconds > FOREVER_S else f"{human_period(max(seconds, 0))} from now"
