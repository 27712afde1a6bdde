"""Importing the application is cheap: what only a runner, a template or the command line needs stays out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.errors import SettingsError
from server.app import create_app, scheduler_settings
from server.settings import Settings

HEAVY = (
    "tokenizers",
    "gguf",
    "jinja2",
    "typer",
    "torch",
    "cupy",
    "runner.kernels",
    "runner.tokenizer",
    "runner.engine",
)


def test_heavy_modules_are_not_imported(repository_root: Path) -> None:
    program = f"import sys, server.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=repository_root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_scheduler_is_told_what_the_environment_says() -> None:
    environment = {
        "SHALE_KERNELS": "reference",
        "SHALE_KEEP_ALIVE": "10",
        "SHALE_NUM_PARALLEL": "3",
        "SHALE_DEVICES": "cpu",
        "SHALE_KV_CACHE_TYPE": "q8_0,f16",
        "OLLAMA_SCHED_SPREAD": "1",
        "OLLAMA_GPU_OVERHEAD": "1073741824",
    }
    told = scheduler_settings(Settings.from_environment(environment))
    assert (told.kernels, told.keep_alive_s, told.num_parallel, told.devices) == ("reference", 10, 3, "cpu")
    assert told.kv_cache_type == ("q8_0", "f16")
    assert told.cpu_isa is None
    assert (told.is_spread, told.gpu_overhead_bytes) == (True, 2**30)


def test_devices_that_cannot_be_used_are_refused_before_anything_runs() -> None:
    with pytest.raises(SettingsError, match="nonsense"):
        create_app(Settings(devices="nonsense"))
