"""``CUDA_VISIBLE_DEVICES`` by CUDA's rules."""

from __future__ import annotations

import pytest

from scheduler.gpu import GPU
from scheduler.nvml import MigInstance, PhysicalGPU
from scheduler.visible_gpus import visible_gpus


def gpu(name):
    return GPU(name, "cuda", free_bytes=1)


PLAIN = [PhysicalGPU(gpu(name)) for name in ("GPU-aa11", "GPU-aa22", "GPU-bb33")]
MIG = PhysicalGPU(
    gpu("GPU-cc44"),
    is_mig=True,
    instances=(MigInstance(gpu("MIG-1111"), "MIG-GPU-cc44/1/0"), MigInstance(gpu("MIG-2222"), "MIG-GPU-cc44/2/0")),
)
EMPTY_MIG = PhysicalGPU(gpu("GPU-dd55"), is_mig=True)
FOUND = [*PLAIN, MIG, EMPTY_MIG]


@pytest.mark.parametrize(
    ("variable", "ids"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "GPU-bb33", "MIG-1111", "MIG-2222"]),
        ("", []),
        ("-1", []),
        ("2,0", ["GPU-bb33", "GPU-aa11"]),
        (" 1 , 0 ", ["GPU-aa22", "GPU-aa11"]),
        ("0,9,1", ["GPU-aa11"]),  # an unknown entry ends the list
        ("0,-1,1", ["GPU-aa11"]),
        ("0,,1", ["GPU-aa11"]),
        ("none", []),
        ("NoDevFiles", []),
        ("0,0", []),  # twice empties it
        ("0,GPU-aa11", []),
        ("GPU-bb33,GPU-aa22", ["GPU-bb33", "GPU-aa22"]),
        ("GPU-bb", ["GPU-bb33"]),
        ("GPU-aa", []),  # not unique
        ("GPU-ee,0", []),
        ("MIG-2222", ["MIG-2222"]),
        ("MIG-2", ["MIG-2222"]),
        ("MIG-GPU-cc44/1/0,0", ["MIG-1111", "GPU-aa11"]),
        ("3", ["MIG-1111"]),  # CUDA shows the first instance
        ("GPU-cc44", ["MIG-1111"]),
        ("4", []),  # no instance was made
        ("1abc", ["GPU-aa22"]),  # read as by strtoul
        ("99999999999999999999", []),
    ],
)
def test_visible_gpus(variable, ids):
    assert [found.id for found in visible_gpus(FOUND, variable)] == ids
