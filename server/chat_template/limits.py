"""What a template may use. A template comes from a downloaded file: it is a stranger's program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one rendering; they are far above what any real conversation needs."""

    seconds: float = 5.0  # by the clock, so that a busy machine does not fail an honest template
    output_characters: int = 16 * 2**20
    memory_bytes: int = 512 * 2**20  # of the whole rendering process, address space
