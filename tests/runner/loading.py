"""Loads a model in process, through the load operations."""

from __future__ import annotations

from pathlib import Path

from runner.kernels import Kernels
from runner.load import LoadedModel, Loader
from runner.protocol import LoadRequest, Operation


def load(path: Path, kernels: Kernels, **request: object) -> LoadedModel:
    """A model that is ready to step."""
    loader = Loader(path, kernels)
    alloc = LoadRequest(operation=Operation.ALLOC, **{"num_ctx": 256, "num_batch": 64, **request})  # type: ignore[arg-type]
    assert loader.handle(alloc).success
    loader.handle(alloc.model_copy(update={"operation": Operation.COMMIT}))
    loader.wait()
    assert loader.model is not None, loader.health().message
    return loader.model
