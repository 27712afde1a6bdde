"""Tiny models and the two kernel sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.kernels import Kernels, select
from tools.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Paths of generated models by architecture, type and changes; each is written once."""
    folder = tmp_path_factory.mktemp("models")
    written: dict[str, Path] = {}

    def path_of(architecture: str, type_name: str = "F16", **changes: object) -> Path:
        name = f"{architecture}-{type_name}-{'-'.join(f'{k}={v}' for k, v in sorted(changes.items()))}.gguf"
        if name not in written:
            written[name] = write_tiny_model(folder / name, architecture, type_name, **changes)
        return written[name]

    return path_of


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return select("reference", None, 1)


@pytest.fixture(scope="session")
def fast() -> Kernels:
    return select("fast", None, 2)
