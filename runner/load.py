"""Answers the four load operations: fit, alloc, commit, close.

fit computes what ``runner.footprint`` says; alloc takes exactly those slabs; commit reads the weights on a thread
of its own; close gives everything back. A request that differs from the previous one in more than its operation
starts over.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.devices.base import Bytes, Device, OutOfMemoryError
from runner.devices.cpu import CpuDevice
from runner.footprint import cache_bytes, cells_per_sequence, converted_tensors, footprint, workspace
from runner.gguf import GGUFFile, open_gguf
from runner.kernels import Kernels
from runner.kv_cache import CacheLayer, KVCache
from runner.model.spec import ModelSpec, read_spec
from runner.model.stage import Place
from runner.model.step import Buffers
from runner.model.transformer import Transformer
from runner.model.weights import Placed, Weights, allocate, load
from runner.protocol import Health, LoadRequest, LoadResponse, Memory, Operation, Status
from runner.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

CACHE_DTYPES = {"f16": np.float16, "f32": np.float32}


class OperationOrderError(RuntimeError):
    """A load operation came when it cannot be done."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything the engine steps with."""

    spec: ModelSpec
    tokenizer: Tokenizer
    transformer: Transformer
    cache: KVCache
    request: LoadRequest
    kernels: Kernels


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory that alloc took."""

    request: LoadRequest
    memory: Memory
    placed: tuple[Placed, ...]
    cache: tuple[CacheLayer, ...]
    workspace: Bytes


class _StopError(Exception):
    """close came while the weights were being read."""


class Loader:
    """Holds one model file and takes it through the load operations. Safe to call from several threads."""

    def __init__(self, path: Path, kernels: Kernels, device: Device | None = None) -> None:
        """Raises GGUFError, ModelError or TokenizerError if the file is not a model that can run."""
        self.gguf: GGUFFile = open_gguf(path)
        self.spec = read_spec(self.gguf)
        self.model: LoadedModel | None = None
        self._kernels = kernels
        self._device = device or CpuDevice()
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
            ModelError: the file is not a model that can run.
        """
        with self._lock:
            if self._reader is not None and request.operation != Operation.CLOSE:
                raise OperationOrderError("the model is already loaded; close it first")
            return _OPERATIONS[request.operation](self, request)

    def wait(self) -> None:
        """Returns when a commit has read the weights, or failed."""
        if self._reader is not None:
            self._reader.join()

    def _fit(self, request: LoadRequest) -> LoadResponse:
        self._release()
        return LoadResponse(success=True, memory=footprint(self.gguf, request))

    def _alloc(self, request: LoadRequest) -> LoadResponse:
        if self._is_allocated_for(request):
            assert self._allocation is not None
            return LoadResponse(success=True, memory=self._allocation.memory)
        self._release()
        memory = footprint(self.gguf, request)
        try:
            self._allocation = self._allocate(request, memory)
        except OutOfMemoryError as error:
            return LoadResponse(success=False, memory=memory, message=str(error))
        return LoadResponse(success=True, memory=memory)

    def _commit(self, request: LoadRequest) -> LoadResponse:
        if not self._is_allocated_for(request):
            raise OperationOrderError("commit needs an alloc of the same request before it")
        assert self._allocation is not None
        self._stopping.clear()
        self._health = Health(status=Status.LOADING)
        self._reader = threading.Thread(target=self._read, args=(self._allocation,), name="weights", daemon=True)
        self._reader.start()
        return LoadResponse(success=True, memory=self._allocation.memory)

    def _close(self, request: LoadRequest) -> LoadResponse:
        self._stopping.set()
        if self._reader is not None:
            self._reader.join()
        self._reader = None
        self._release()
        self._health = Health(status=Status.LAUNCHED)
        return LoadResponse(success=True, memory=footprint(self.gguf, request))

    def _release(self) -> None:
        self.model = None
        self._allocation = None

    def _is_allocated_for(self, request: LoadRequest) -> bool:
        allocated = self._allocation
        return allocated is not None and allocated.request == request.model_copy(update={"operation": Operation.ALLOC})

    def _allocate(self, request: LoadRequest, memory: Memory) -> Allocation:
        spec = self.spec
        placed = allocate(self.gguf, spec, self._device, use_mmap=request.use_mmap)
        cache = tuple(self._cache_layer(request, i) for i in range(spec.num_layers if spec.is_causal else 0))
        slab = self._device.allocate(workspace(spec, request).nbytes)
        return Allocation(request, memory, placed, cache, slab)

    def _cache_layer(self, request: LoadRequest, layer: int) -> CacheLayer:
        spec = self.spec
        cells = request.num_parallel * cells_per_sequence(spec, request, layer)
        dtype = CACHE_DTYPES[request.kv_cache_type]
        key_bytes, value_bytes = cache_bytes(spec, request, layer)
        slab = self._device.allocate(key_bytes + value_bytes)

        def heads(part: Bytes, length: int) -> np.ndarray:
            count = cells * spec.num_kv_heads * length
            return part.view(dtype)[:count].reshape(cells, spec.num_kv_heads, length)

        return CacheLayer(heads(slab[:key_bytes], spec.key_length), heads(slab[key_bytes:], spec.value_length))

    def _cache(self, allocation: Allocation) -> KVCache:
        spec, request = self.spec, allocation.request
        sliding = [i for i in range(spec.num_layers) if spec.window(i)]
        window_cells = cells_per_sequence(spec, request, sliding[0]) if sliding else 0
        return KVCache(
            allocation.cache, num_ctx=request.num_ctx, num_parallel=request.num_parallel, window_cells=window_cells
        )

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

        request = allocation.request
        weights = Weights(self.spec, load(self.gguf, allocation.placed, self._kernels, advance))
        place = Place(self._kernels, Buffers(workspace(self.spec, request), allocation.workspace))
        return LoadedModel(
            spec=self.spec,
            tokenizer=tokenizer,
            transformer=Transformer(self.spec, weights, allocation.cache, place, (place,) * (self.spec.num_layers + 1)),
            cache=self._cache(allocation),
            request=request,
            kernels=self._kernels,
        )


_OPERATIONS = {
    Operation.FIT: Loader._fit,
    Operation.ALLOC: Loader._alloc,
    Operation.COMMIT: Loader._commit,
    Operation.CLOSE: Loader._close,
}
