"""Answers the four load operations: fit, alloc, commit, close.

fit computes what ``runner.footprint`` says; alloc takes exactly those slabs; commit reads the weights on a thread
of its own; close gives everything back. A request that differs from the previous one in more than its operation
starts over.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runner.allocation import Allocation, allocate
from runner.cache.kv_cache import KVCache
from runner.devices.base import Device, OutOfMemoryError
from runner.devices.cpu import CpuDevice
from runner.footprint import DeviceName, cells_per_sequence, footprint
from runner.gguf import GGUFFile, open_gguf
from runner.kernels import Float32Array, Kernels
from runner.model.spec import ModelSpec, read_spec
from runner.model.stage import Place
from runner.model.transformer import Transformer
from runner.model.weights import Weights, load
from runner.protocol import Health, LoadRequest, LoadResponse, Memory, Operation, Status
from runner.sequence import Batch, Output, Sequence
from runner.tensor_storage import converted_tensors
from runner.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class OperationOrderError(RuntimeError):
    """A load operation came when it cannot be done."""


class _StopError(Exception):
    """close came while the weights were being read."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything the engine steps with."""

    spec: ModelSpec
    tokenizer: Tokenizer
    transformer: Transformer
    cache: KVCache
    request: LoadRequest
    kernels: Kernels

    def forward(self, runs: Seq[tuple[Sequence, npt.ArrayLike, Output]]) -> Float32Array:
        """Places, computes and notes down the next tokens of each sequence: a whole step without an engine.

        Returns the logits that are asked for, shape (their number, num_vocab), until the next pass. Raises what
        ``KVCache.place`` and ``Transformer.forward`` raise.
        """
        counted = [(sequence, np.asarray(tokens, np.int32)) for sequence, tokens, _ in runs]
        self.cache.place([(sequence, tokens.size) for sequence, tokens in counted])
        logits = self.transformer.forward(Batch.of(runs))
        for sequence, tokens in counted:
            self.cache.advance(sequence, tokens)
        return logits


class Loader:
    """Holds one model file and takes it through the load operations. Safe to call from several threads."""

    def __init__(self, path: Path, kernels: Kernels, host: Device | None = None, others: Seq[Device] = ()) -> None:
        """``host`` is the CPU, ``others`` the devices beside it that a layout may name.

        Raises GGUFError or ModelError if the file is not a model that can run.
        """
        self.gguf: GGUFFile = open_gguf(path)
        self.spec = read_spec(self.gguf)
        self.model: LoadedModel | None = None
        self._kernels = kernels
        self._devices = {DeviceName(d.id, d.library): d for d in (host or CpuDevice(), *others)}
        self._lock = threading.Lock()
        self._allocation: Allocation | None = None
        self._reader: threading.Thread | None = None
        self._stopping = threading.Event()
        self._health = Health(status=Status.LAUNCHED)
        for tensor in converted_tensors(self.gguf, self.spec):
            logger.info("%s: %s is computed as %s", tensor.name, tensor.source.type.name, tensor.type.name)

    def health(self) -> Health:
        return self._health

    def handle(self, request: LoadRequest) -> LoadResponse:
        """Does one operation.

        Raises:
            OperationOrderError: commit before alloc, or anything but close once the weights are being read.
            ModelError: the layout, or the type of the KV cache, is not one for this model and these devices.
        """
        with self._lock:
            if self._reader is not None and request.operation != Operation.CLOSE:
                raise OperationOrderError("the model is already loaded; close it first")
            return _OPERATIONS[request.operation](self, request)

    def wait(self) -> None:
        """Returns when a commit has read the weights, or failed."""
        if self._reader is not None:
            self._reader.join()

    def _memory(self, request: LoadRequest) -> Memory:
        return footprint(self.gguf, request, tuple(self._devices)[1:])

    def _fit(self, request: LoadRequest) -> LoadResponse:
        self._release()
        return LoadResponse(success=True, memory=self._memory(request))

    def _alloc(self, request: LoadRequest) -> LoadResponse:
        memory = self._memory(request)
        if not self._is_allocated_for(request):
            self._release()
            try:
                self._allocation = allocate(self.gguf, self.spec, request, self._devices, self._kernels)
            except OutOfMemoryError as error:
                return LoadResponse(success=False, memory=memory, message=str(error))
        return LoadResponse(success=True, memory=memory)

    def _commit(self, request: LoadRequest) -> LoadResponse:
        allocation = self._allocation
        if allocation is None or not self._is_allocated_for(request):
            raise OperationOrderError("commit needs an alloc of the same request before it")
        self._kernels.set_num_thread(request.num_thread)
        self._stopping.clear()
        self._health = Health(status=Status.LOADING)
        self._reader = threading.Thread(target=self._read, args=(allocation,), name="weights", daemon=True)
        self._reader.start()
        return LoadResponse(success=True, memory=self._memory(request))

    def _close(self, request: LoadRequest) -> LoadResponse:
        self._stopping.set()
        if self._reader is not None:
            self._reader.join()
        self._reader = None
        self._release()
        self._health = Health(status=Status.LAUNCHED)
        return LoadResponse(success=True, memory=self._memory(request))

    def _release(self) -> None:
        if self._allocation is not None:
            self.model = self._allocation = None
            gc.collect()  # memory goes back when nothing refers to it; a cycle must not delay that

    def _is_allocated_for(self, request: LoadRequest) -> bool:
        if self._allocation is None:
            return False
        wanted = request.model_copy(update={"operation": self._allocation.request.operation})
        return self._allocation.request == wanted

    def _read(self, allocation: Allocation) -> None:
        try:
            self.model = self._build(allocation)
            self._health = Health(status=Status.READY, progress=1.0)
        except _StopError:
            logger.info("loading was stopped")
        except Exception as error:  # the thread's edge: whatever went wrong is told through health
            logger.exception("error loading model")
            self._health = Health(status=Status.ERROR, message=f"error loading model: {error}")

    def _build(self, allocation: Allocation) -> LoadedModel:
        tokenizer = Tokenizer.from_metadata(self.gguf.metadata)
        done = 0
        total = max(1, sum(p.tensor.source.nbytes for p in allocation.placed))

        def advance(nbytes: int) -> None:
            nonlocal done
            if self._stopping.is_set():
                raise _StopError
            done += nbytes
            self._health = Health(status=Status.LOADING, progress=done / total)

        weights = Weights(self.spec, load(self.gguf, allocation.placed, self._kernels, advance))
        devices = {name: Place(self._kernels, buffers) for name, buffers in allocation.buffers.items()}
        host = next(iter(devices.values()))
        return LoadedModel(
            spec=self.spec,
            tokenizer=tokenizer,
            transformer=Transformer(
                self.spec, weights, allocation.cache.layers, host, [devices[name] for name in allocation.places]
            ),
            cache=self._cache(allocation),
            request=allocation.request,
            kernels=self._kernels,
        )

    def _cache(self, allocation: Allocation) -> KVCache:
        spec, request = self.spec, allocation.request
        sliding = [i for i in range(spec.num_layers) if spec.window(i)]
        return KVCache(
            allocation.cache.layers,
            num_ctx=request.num_ctx,
            num_parallel=request.num_parallel,
            window=spec.window(sliding[0]) if sliding else 0,
            window_cells=cells_per_sequence(spec, request, sliding[0]) if sliding else 0,
            can_shift=spec.can_shift,
            storage=allocation.cache,
        )


_OPERATIONS = {
    Operation.FIT: Loader._fit,
    Operation.ALLOC: Loader._alloc,
    Operation.COMMIT: Loader._commit,
    Operation.CLOSE: Loader._close,
}
