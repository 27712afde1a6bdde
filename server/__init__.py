"""The front server: public HTTP APIs, the model store and the command line."""

from __future__ import annotations

from functools import cache


@cache
def version() -> str:
    """Shale's version, from the installed distribution; ``0.0.0`` for a checkout that was never installed."""
    from importlib import metadata

    try:
        return metadata.version("shale")
    except metadata.PackageNotFoundError:
        return "0.0.0"
