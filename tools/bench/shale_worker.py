"""Measures this engine in process: python -m tools.bench.shale_worker MODEL NUM_THREAD NUM_CTX NUM_BATCH."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from runner.kernels import KernelName, select
from runner.load import Loader
from runner.protocol import LoadRequest, Operation, Status
from runner.sequence import Sequence
from tools.bench.worker import serve


class ShaleEngine:
    """A loaded model and its one open sequence."""

    def __init__(self, path: Path, num_thread: int, num_ctx: int, num_batch: int) -> None:
        """Raises RuntimeError when the model cannot be loaded."""
        isa = os.environ.get("SHALE_CPU_ISA", "auto")
        name: KernelName = "reference" if os.environ.get("SHALE_KERNELS") == "reference" else "fast"
        kernels = select(name, None if isa == "auto" else isa, num_thread)
        self._loader = Loader(path, kernels)
        for operation in (Operation.FIT, Operation.ALLOC, Operation.COMMIT):
            request = LoadRequest(
                operation=operation, num_ctx=num_ctx, num_batch=num_batch, num_thread=num_thread, num_parallel=1
            )
            response = self._loader.handle(request)
            if not response.success:
                raise RuntimeError(f"{operation.name.lower()}: {response.message}")
        self._loader.wait()
        if self._loader.model is None or self._loader.health().status != Status.READY:
            raise RuntimeError(f"not loaded: {self._loader.health()}")
        self._model = self._loader.model
        self._sequence = self._open()
        self.description = f"shale, {kernels.name} kernels, {kernels.isa}"

    def _open(self) -> Sequence:
        sequence = self._model.cache.open()
        if sequence is None:
            raise RuntimeError("no free sequence")
        return sequence

    def reset(self) -> None:
        self._model.cache.close(self._sequence, keep=False)
        self._sequence = self._open()

    def forward(self, tokens: Iterable[int]) -> None:
        run = list(tokens)
        self._model.forward([(self._sequence, run, "last")])


if __name__ == "__main__":
    serve(ShaleEngine(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
