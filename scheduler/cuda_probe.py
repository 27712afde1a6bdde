"""Asks CUDA for the GPUs in a short-lived child, for machines without NVML: this process opens no CUDA context."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

from scheduler.gpu import GPU

LOG = logging.getLogger("scheduler.cuda_probe")

LIBRARY = "cuda"
TIMEOUT_S = 30.0
CHILD = Path(__file__).with_name("cuda_child.py")


def ask_cuda(timeout_s: float = TIMEOUT_S) -> tuple[GPU, ...]:
    """The GPUs that CUDA shows (``CUDA_VISIBLE_DEVICES`` is CUDA's to respect); none without CuPy or a driver.

    Blocking: the child takes a second or two.
    """
    if importlib.util.find_spec("cupy") is None:
        return ()
    try:
        child = subprocess.run(
            [sys.executable, "-P", str(CHILD)], capture_output=True, text=True, timeout=timeout_s, check=True
        )
        return tuple(GPU(library=LIBRARY, **found) for found in json.loads(child.stdout))
    except subprocess.CalledProcessError as error:
        LOG.info("CUDA shows no GPU: %s", error.stderr.strip().rpartition("\n")[2])
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError) as error:
        LOG.warning("CUDA could not be asked for GPUs: %s", error)
    return ()
