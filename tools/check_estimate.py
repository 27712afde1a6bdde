#!/usr/bin/env python3
"""Lays the estimate, the runner's fit and what alloc really takes side by side, to the byte.

    tools/check_estimate.py [DIR]       (default: ../shared/oracle/models and the demo model)

For every model of a known architecture: pairs of KV types × contexts × sequences × layouts over the CPU and two
simulated devices. Where the model's heads do not allow a type, all three must refuse it in the same words. Prints a
line per model, a line per difference, and last ``N of M equal``; exits 1 unless all are.
"""

from __future__ import annotations

import gc
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runner.cache_types import CACHE_TYPES, CacheTypeError  # noqa: E402
from runner.devices.base import Bytes  # noqa: E402
from runner.devices.cpu import CpuDevice  # noqa: E402
from runner.devices.sim import SimDevice  # noqa: E402
from runner.kernels import select  # noqa: E402
from runner.load import Loader  # noqa: E402
from runner.model.spec import ModelError  # noqa: E402
from runner.protocol import DeviceLayers, Layout, LoadRequest, Memory, Operation  # noqa: E402
from runner.sim_ledger import SimLedger  # noqa: E402
from scheduler.errors import ModelFileError, SettingsError  # noqa: E402
from scheduler.estimate import Estimator, device_names  # noqa: E402
from scheduler.sim import sim_gpu, sim_id  # noqa: E402

DEFAULT_FOLDER = ROOT.parent / "shared" / "oracle" / "models"
DEMO = ROOT / "demo" / "models" / "shale-demo.gguf"

LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf\Z")

CONTEXTS = (16, 100, 1024)
PARALLEL = (1, 3)
NUM_DEVICES = 2
QUOTA_BYTES = 1 << 40  # layouts are given, so nothing has to be scarce


class CountingCpu(CpuDevice):
    """Host memory that knows how much of it was asked for."""

    def __init__(self) -> None:
        self.taken_bytes = 0

    def allocate(self, nbytes: int) -> Bytes:
        self.taken_bytes += nbytes
        return super().allocate(nbytes)


def described(request: LoadRequest) -> str:
    shares = [(share.id, share.layers) for share in request.layout]
    types = f"{request.key_cache_type} and {request.value_cache_type}"
    return f"{types}, num_ctx {request.num_ctx}, num_parallel {request.num_parallel}, {shares}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One request. ``taken`` are the bytes of alloc on the CPU and each device."""

    request: LoadRequest
    estimate: Memory
    fit: Memory
    alloc: Memory
    taken: tuple[int, ...]

    @property
    def is_equal(self) -> bool:
        told = (
            self.estimate.input_weights + self.estimate.cpu.total_bytes,
            *(gpu.total_bytes for gpu in self.estimate.gpus),
        )
        return self.estimate == self.fit == self.alloc and told == self.taken

    def __str__(self) -> str:
        told = self.estimate.total_bytes, self.fit.total_bytes, self.alloc.total_bytes
        return f"{described(self.request)}: estimate, fit, alloc say {told}; taken were {self.taken}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One request that was refused. A text is empty where it was not."""

    request: LoadRequest
    estimate: str
    fit: str
    alloc: str

    @property
    def is_equal(self) -> bool:
        return self.estimate == self.fit == self.alloc != ""

    def __str__(self) -> str:
        texts = self.estimate, self.fit, self.alloc
        return f"{described(self.request)}: estimate, fit, alloc refuse with {texts}"


def refusal(ask: Callable[[], object]) -> str:
    try:
        ask()
    except (ModelFileError, SettingsError, ModelError, CacheTypeError) as error:
        return str(error).removeprefix("unable to load model: ").removeprefix("kv_cache_type: ")
    return ""


def compare(path: Path, contexts: Sequence[int] = CONTEXTS) -> Iterator[Comparison | Refusal]:
    """All requests for one model. Raises ModelFileError or ModelError for one that no runner takes."""
    estimator = Estimator()
    names = [sim_id(number) for number in range(NUM_DEVICES)]
    gpus = device_names([sim_gpu(name, QUOTA_BYTES, QUOTA_BYTES) for name in names])
    estimator.memory(path, LoadRequest(operation=Operation.FIT))
    with tempfile.TemporaryDirectory(prefix="shale-estimate-") as folder:
        ledgers = [SimLedger(Path(folder), name) for name in names]
        for ledger in ledgers:
            ledger.set_quota(QUOTA_BYTES)
        host = CountingCpu()
        devices = [SimDevice(name, ledger) for name, ledger in zip(names, ledgers, strict=True)]
        loader = Loader(path, select("reference", None, 1), host, devices)
        for request in requests(loader.spec.num_layers, names, contexts):
            take = request.model_copy(update={"operation": Operation.ALLOC})
            refused = refusal(partial(estimator.memory, path, request, gpus))
            if refused or refusal(partial(loader.handle, request)):
                fit_and_alloc = (refusal(partial(loader.handle, each)) for each in (request, take))
                yield Refusal(request, refused, *fit_and_alloc)
                continue
            fit = loader.handle(request).memory
            host.taken_bytes = 0
            alloc = loader.handle(take).memory
            taken = (host.taken_bytes, *(ledger.held_bytes() for ledger in ledgers))
            yield Comparison(request, estimator.memory(path, request, gpus), fit, alloc, taken)
            loader.handle(request.model_copy(update={"operation": Operation.CLOSE}))


def requests(num_layers: int, names: Sequence[str], contexts: Sequence[int]) -> Iterator[LoadRequest]:
    """Input weights are read into memory, not mapped: so all bytes are taken from a device."""
    types = tuple(product(CACHE_TYPES, CACHE_TYPES))
    grid = product(types, contexts, PARALLEL, layouts(num_layers, names))
    for kv_cache_type, num_ctx, num_parallel, layout in grid:
        yield LoadRequest(
            operation=Operation.FIT,
            layout=layout,
            num_ctx=num_ctx,
            num_parallel=num_parallel,
            num_batch=min(64, num_ctx),
            kv_cache_type=kv_cache_type,  # type: ignore[arg-type]
            use_mmap=False,
        )


def layouts(num_layers: int, names: Sequence[str]) -> Iterator[Layout]:
    """All on the CPU, all on one device, without the output layer, split in two, alternating."""
    every = tuple(range(num_layers + 1))
    half = len(every) // 2
    shares: tuple[tuple[tuple[int, ...], ...], ...] = (
        (),
        (every,),
        (every[:-1],),
        (every[:half], every[half:]),
        (every[::2], every[1::2]),
    )
    for share in shares:
        yield tuple(
            DeviceLayers(id=name, library="sim", layers=layers)
            for name, layers in zip(names, share, strict=False)
            if layers
        )


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else DEFAULT_FOLDER
    paths = sorted(path for path in folder.rglob("*.gguf") if not LATER_SHARD.search(path.name))
    num_equal = num_all = 0
    gc.freeze()  # every CLOSE collects garbage, of which there is none among the modules
    for path in [*paths, *([] if arguments else [DEMO])]:
        try:
            found = list(compare(path))
        except (ModelFileError, ModelError) as error:
            print(f"{path.name}: left out: {error}")
            continue
        equal = sum(each.is_equal for each in found)
        num_refused = sum(isinstance(each, Refusal) for each in found)
        print(f"{path.name}: {equal} of {len(found)} equal, {num_refused} of them refused")
        for each in found:
            if not each.is_equal:
                print(f"  {each}")
        num_equal, num_all = num_equal + equal, num_all + len(found)
    print(f"{num_equal} of {num_all} equal")
    return 0 if num_all and num_equal == num_all else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
