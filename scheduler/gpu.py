"""What is known of one device beside the CPU."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.sizes import MIB

MINIMUM_GPU_BYTES = 457 * MIB  # drivers and libraries need it beside the model; Ollama's number


@dataclass(frozen=True, slots=True)
class GPU:
    """One device, with what is free on it now.

    A device with a ``reason`` is shown to people but never offered to a layout: runners cannot use it.
    """

    id: str  # a GPU's UUID, or "sim0"
    library: str  # "cuda" or "sim"; a model never runs on two
    free_bytes: int
    is_integrated: bool = False
    minimum_bytes: int = MINIMUM_GPU_BYTES
    total_bytes: int = 0
    name: str = ""
    compute_capability: str | None = None  # "9.0"
    pci_id: str | None = None
    reason: str = ""  # why it cannot be used

    @property
    def is_usable(self) -> bool:
        return not self.reason
