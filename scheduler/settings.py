"""What the scheduler is told once, at the start of the server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """All values are final: ``server.__main__`` reads the environment, nobody here does."""

    keep_alive_s: float = 300.0  # after the last request; 0: unload at once, negative or inf: never
    num_parallel: int = 0  # sequences that one runner works on at a time; 0: as many as fit, at most 4
    load_timeout_s: float = 300.0  # without any progress; <= 0: wait for ever
    max_loaded_models: int = 0  # 0: automatic, 3 for each GPU and at least 3
    max_queue: int = 512  # requests that wait for a model to load
    context_length: int = 0  # tokens per sequence when a request does not say; 0: 4096
    kv_cache_type: str | tuple[str, str] = "f16"  # where a request does not say: of both, or of keys and of values
    fail_if_not_gpu: bool = False  # an error where layers would stay on the CPU
    kernels: str | None = None  # "fast" or "reference"; None: the runner's default
    cpu_isa: str | None = None  # instruction set of the CPU kernels; None: the best one
    devices: str = ""  # "", "auto", "cpu" or "sim:8GiB,sim:6GiB"
    sim_ledger: Path | None = None  # folder in which simulated devices are counted; None: one is made
    is_spread: bool = False  # over all GPUs even if fewer would do
    gpu_overhead_bytes: int = 0  # of each GPU that no model gets, on top of its minimum
    debug: bool = False  # runner output at level DEBUG of the runner

    @property
    def default_num_ctx(self) -> int:
        return self.context_length or 4096
