"""How long a model stays loaded after its last request, as clients and settings write it.

A number means seconds; a text is a duration of Go's ``time.ParseDuration`` ("5m", "1h30m", "-1m"). Negative
means for ever, 0 means not at all.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

from scheduler.errors import SettingsError

FOREVER_S = math.inf

_MAX_S = (2**63 - 1) / 1e9  # a Go duration is 64-bit nanoseconds: 292 years
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_keep_alive(value: object) -> float | None:
    """Seconds: 0 unloads at once, ``FOREVER_S`` (inf) never; None stays None (the server's default).

    Raises SettingsError for anything but a number, a duration or None.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _error(value)
    seconds = _parse_duration(value) if isinstance(value, str) else _of_number(value)
    return FOREVER_S if seconds < 0 or seconds >= _MAX_S else seconds


def parse_keep_alive_setting(text: str) -> float:
    """Like ``parse_keep_alive``, for an environment variable: there a bare number is text as well."""
    stripped = text.strip()
    try:
        number: float | str = float(stripped)
    except ValueError:
        number = stripped
    seconds = parse_keep_alive(number)
    assert seconds is not None  # only None gives None
    return seconds


def expiry(now: datetime, keep_alive_s: float) -> datetime:
    """When a model that is idle from ``now`` on is unloaded; for ever is Go's 292 years."""
    return now + timedelta(seconds=min(keep_alive_s, _MAX_S))


def _of_number(value: float) -> float:
    if isinstance(value, float) and math.isnan(value):
        raise _error(value)
    return float(max(min(value, _MAX_S), -1))  # bounded first: float(10**400) overflows


def _parse_duration(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    terms = _TERM.findall(rest)
    if not terms or "".join(number + unit for number, unit in terms) != rest:
        raise _error(text)
    return sign * math.fsum(float(number) * _UNIT_S[unit] for number, unit in terms)


def _error(value: object) -> SettingsError:
    return SettingsError(
        f'invalid keep_alive {repr(value)[:80]}; allowed: seconds as a number, or a duration such as "5m" or "-1m"'
    )
