"""Measures llama.cpp: python -m tools.bench.llamacpp_worker MODEL NUM_THREAD NUM_CTX NUM_BATCH.

Runs under the Python that has llama_cpp. Only the C API is called: of llama-cpp-python's own Python nothing is timed
but one ctypes call a forward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import llama_cpp

from tools.bench.worker import serve


class LlamaCppEngine:
    """A llama.cpp context over one file."""

    def __init__(self, path: str, num_thread: int, num_ctx: int, num_batch: int) -> None:
        """Raises RuntimeError when llama.cpp does not load the file."""
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_ctx
        params.n_batch = params.n_ubatch = num_batch
        params.n_threads = params.n_threads_batch = num_thread
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        flags = llama_cpp.llama_print_system_info().decode().replace(" = 1", "").replace(" |", "").split()
        self.description = f"llama.cpp (llama-cpp-python {llama_cpp.__version__}), {' '.join(flags)}"

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)

    def forward(self, tokens: Sequence[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        llama_cpp.llama_synchronize(self._context)


if __name__ == "__main__":
    serve(LlamaCppEngine(sys.argv[1], *map(int, sys.argv[2:5])))
