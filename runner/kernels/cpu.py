"""The fast kernels: the C++ extension ``runner.kernels._cpu`` behind the facade of ``runner.kernels.Kernels``.

Operations are the extension's own functions, not wrapped, so that a call costs what the binding costs. Instruction
set and threads belong to the process: the instance made last decides for all.
"""

from __future__ import annotations

from runner.ggml_types import TYPES
from runner.kernels import _cpu
from runner.kernels.cores import usable_cores
from runner.tensor_storage import stored_type


class FastKernels:
    name = "fast"

    def __init__(self, isa: str | None = None, num_thread: int = 0) -> None:
        """Raises ValueError that names the available instruction sets when the machine lacks ``isa``, or when
        ``num_thread`` is negative. 0 threads: one for each usable core."""
        _cpu.set_isa(isa or _cpu.available_isas()[-1])
        self.set_num_thread(num_thread)

    @property
    def isa(self) -> str:
        return _cpu.active_isa()

    @property
    def num_thread(self) -> int:
        return _cpu.num_threads()

    def set_num_thread(self, num_thread: int) -> None:
        """0: one for each usable core. Waits for a running call. Raises ValueError when it is negative."""
        if num_thread < 0:
            raise ValueError(f"num_thread is {num_thread}; 0 or more is allowed")
        _cpu.set_num_threads(num_thread or usable_cores())

    def accepts(self, type_id: int) -> bool:
        return type_id in TYPES and stored_type(TYPES[type_id]) == TYPES[type_id]

    pack = staticmethod(_cpu.pack)
    linear = staticmethod(_cpu.linear)
    embed = staticmethod(_cpu.embed)
    rms_norm = staticmethod(_cpu.rms_norm)
    add_rms_norm = staticmethod(_cpu.add_rms_norm)
    layer_norm = staticmethod(_cpu.layer_norm)
    add = staticmethod(_cpu.add)
    rope = staticmethod(_cpu.rope)
    cache = staticmethod(_cpu.cache)
    store_kv = staticmethod(_cpu.store_kv)
    hadamard = staticmethod(_cpu.hadamard)
    shift_keys = staticmethod(_cpu.shift_keys)
    attention = staticmethod(_cpu.attention)
    swiglu = staticmethod(_cpu.swiglu)
    geglu = staticmethod(_cpu.geglu)
    gelu = staticmethod(_cpu.gelu)
    top_k = staticmethod(_cpu.top_k)
    log_sum_exp = staticmethod(_cpu.log_sum_exp)
