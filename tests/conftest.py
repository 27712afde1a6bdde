"""What every test folder may use: where things lie, how hypothesis tries its examples, what is garbage."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Examples are not timed: one that is not given the processor for a while is as good as the others.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """A runner collects garbage when it unloads; thousands of tests need not be looked through each time."""
    gc.collect()
    gc.freeze()


_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The checkout that the tests run in."""
    return _ROOT


@pytest.fixture(scope="session")
def shared(repository_root: Path) -> Path:
    """The folder of reference data beside the checkout; a test that needs it is skipped where there is none."""
    path = repository_root.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}")
    return path


@pytest.fixture(scope="session")
def demo_model(repository_root: Path) -> Path:
    """The trained model of the repository: Llama architecture, Q8_0, its own BPE vocabulary and chat template."""
    path = repository_root / "demo" / "models" / "shale-demo.gguf"
    assert path.is_file(), f"{path} is missing: the demo model is part of the repository"
    return path
