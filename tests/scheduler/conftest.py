"""A clock, a machine and runners that do what a test says; and a real process without a model."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for real_devices.py

from real_devices import RealDevices, real_devices

from runner.footprint import DeviceName
from runner.protocol import DeviceMemory, Health, LoadRequest, LoadResponse, Memory, Operation, Status
from scheduler.client import RunnerClient
from scheduler.devices import GPU, Machine, SystemMemory
from scheduler.loading import PROCESS_BYTES
from scheduler.options import LoadOptions, ModelFile, ModelHeader
from scheduler.process import RunnerProcess
from scheduler.resident import RunningModel
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.spawn import Started

GIB = 2**30
NO_OPTIONS = LoadOptions()
FAKE_RUNNER = Path(__file__).with_name("fake_runner.py")


class ScriptedClock:
    """Time stands still until ``advance``, or until somebody sleeps: that takes no time but moves the clock."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.timers: list[ScriptedTimer] = []

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> ScriptedTimer:
        timer = ScriptedTimer(self.seconds + seconds, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        for timer in sorted(self.timers, key=lambda t: t.due):
            if timer.due <= self.seconds and not timer.is_over:
                timer.is_over = True
                timer.callback()


class ScriptedTimer:
    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.is_over = False

    def cancel(self) -> None:
        self.is_over = True


class ScriptedProcess(RunnerProcess):
    """A process that exists only here."""

    taken_bytes = 0

    def own_bytes(self) -> int:
        return PROCESS_BYTES + self.taken_bytes

    async def stop(self, grace_s: float = 0) -> None:
        self.die(-15)

    def die(self, returncode: int, *words: str) -> None:
        for line in words:
            self._words.hear(line)
        if self.returncode is None:
            self.returncode = returncode
        self._ended.set()


class ScriptedClient:
    """Answers load operations with what the model takes; says its ``progress``, and is ready once ``gate`` is set."""

    def __init__(
        self, measure: Callable[[LoadRequest], Memory], gate: asyncio.Event, failure: Exception | None = None
    ) -> None:
        self.measure = measure
        self.memory: Memory | None = None  # what it has taken
        self.gate = gate
        self.failure = failure
        self.requests: list[LoadRequest] = []
        self.is_closed = False
        self.progress: list[float] = []

    async def load(self, request: LoadRequest) -> LoadResponse:
        self.requests.append(request)
        if self.failure is not None and request.operation == Operation.ALLOC:
            raise self.failure
        memory = self.measure(request)
        self.memory = {Operation.FIT: None, Operation.CLOSE: None}.get(request.operation, memory)
        return LoadResponse(success=True, memory=memory)

    async def health(self) -> Health:
        if not self.requests:
            return Health(status=Status.LAUNCHED)
        if self.progress:
            return Health(status=Status.LOADING, progress=self.progress.pop(0))
        await self.gate.wait()
        return Health(status=Status.READY, progress=1.0)

    async def aclose(self) -> None:
        self.is_closed = True


class Recorder:
    """An observer that keeps what it is told: the call's name, then its arguments."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.events.append((name, *arguments))

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] in names]


class World:
    """A scheduler on a machine of 64 GiB, with runners that take what ``sizes`` says (1 GiB unless told).

    ``gpus`` are bytes by id; a model there is ``NUM_LAYERS`` layers of equal size. ``late_looks``: so often the machine
    still shows the memory of a dead process as taken.
    """

    def __init__(self, gpus: dict[str, int] | None = None, **settings: Any) -> None:
        self.clock = ScriptedClock()
        self.total_bytes = 64 * GIB
        self.gpus = dict(gpus or {})
        self.late_looks = 0
        self.num_looks = 0
        self.at_start: Callable[[str], None] = lambda name: None
        self.sizes: dict[str, int] = {}
        self.taken: dict[str, int] = {}  # of host memory, where it is not all at once
        self.trained: dict[str, int] = {}
        self.failures: dict[str, Exception] = {}
        self.progress: dict[str, list[float]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.started: list[tuple[str, Started]] = []
        self.observer = Recorder()
        self.scheduler = Scheduler(
            SchedulerSettings(**settings),
            spawn=self.spawn,
            clock=self.clock,
            estimates=self,
            machine=self.machine,
            observer=self.observer,
        )

    @staticmethod
    def model(name: str) -> ModelFile:
        return ModelFile(name, Path("/models") / f"{name}.gguf", digest=name, size_bytes=1)

    async def use(
        self,
        name: str,
        options: LoadOptions = NO_OPTIONS,
        keep_alive_s: float | None = None,
    ) -> RunningModel:
        """One request that takes no time."""
        async with self.scheduler.acquire(self.model(name), options, keep_alive_s) as running:
            return running

    def start(self, name: str, *rest: Any) -> asyncio.Task[RunningModel]:
        """``use``, while the test goes on."""
        return asyncio.create_task(self.use(name, *rest))

    def committed(self) -> set[str]:
        """Models that have their memory."""
        return {name for name, started in self.started if started.client.memory and started.client.requests}

    @staticmethod
    def devices(running: RunningModel) -> list[str]:
        """Ids of the GPUs that have a layer."""
        return [share.id for share in running.layout]

    def hold(self, name: str) -> asyncio.Event:
        """The next load of this model is not done before the event is set."""
        self.gates[name] = asyncio.Event()
        return self.gates[name]

    def processes(self, name: str) -> list[ScriptedProcess]:
        return [started.process for started_name, started in self.started if started_name == name]

    def num_alive(self) -> int:
        return sum(started.process.is_alive for _, started in self.started)

    def names(self) -> list[str]:
        return sorted(running.model.name for running in self.scheduler.running())

    # ---- what the scheduler asks ---------------------------------------------------------------

    def header(self, path: Path) -> ModelHeader:
        return ModelHeader("llama", self.trained.get(path.stem, 8192))

    def memory(self, path: Path, request: LoadRequest, devices: Sequence[DeviceName] = ()) -> Memory:
        size = self.sizes.get(path.stem, GIB)
        return layered_memory(size, request, [device.id for device in devices]) if self.gpus else memory_of(size)

    def machine(self) -> Machine:
        self.num_looks += 1
        used: Counter[str] = Counter()
        for name, started in self.started:
            if started.process.is_alive or self.num_looks <= self.late_looks:
                used.update(self._used(name, started))
        system = SystemMemory(self.total_bytes, self.total_bytes - used["cpu"], 0)
        gpus = (GPU(id, "sim", size - used[id], minimum_bytes=0, total_bytes=size) for id, size in self.gpus.items())
        return Machine(system, tuple(gpus))

    def _used(self, name: str, started: Started) -> dict[str, int]:
        if not self.gpus:
            return {"cpu": self.taken.get(name, self.sizes.get(name, GIB))}
        memory = started.client.memory
        return {} if memory is None else {device.id: device.total_bytes for device in (memory.cpu, *memory.gpus)}

    async def spawn(self, model: ModelFile, settings: SchedulerSettings) -> Started:
        gate = self.gates.pop(model.name, None)
        if gate is None:
            gate = asyncio.Event()
            gate.set()
        self.at_start(model.name)
        names = [DeviceName(id, "sim") for id in self.gpus]
        client = ScriptedClient(lambda request: self.memory(model.path, request, names), gate)
        client.failure = self.failures.get(model.name)
        client.progress = self.progress.get(model.name, [])
        process = ScriptedProcess(model.name, 0, "")
        process.taken_bytes = self.taken.get(model.name, 0 if self.gpus else self.sizes.get(model.name, GIB))
        started = Started(process, client)
        self.started.append((model.name, started))
        return started


def memory_of(num_bytes: int) -> Memory:
    cpu = DeviceMemory(id="cpu", library="cpu", weights=(num_bytes, 0), cache=(0, 0), graph=0)
    return Memory(input_weights=0, cpu=cpu)


NUM_LAYERS = 4


def layered_memory(num_bytes: int, request: LoadRequest, gpus: Iterable[str]) -> Memory:
    """``num_bytes`` in equal layers where the layout has them; no cache and no graph."""
    where = {layer: share.id for share in request.layout for layer in share.layers}

    def on(id: str, library: str) -> DeviceMemory:
        weights = tuple(num_bytes // NUM_LAYERS if where.get(i, "cpu") == id else 0 for i in range(NUM_LAYERS))
        return DeviceMemory(id=id, library=library, weights=weights, cache=(0,) * NUM_LAYERS, graph=0)

    return Memory(input_weights=0, cpu=on("cpu", "cpu"), gpus=tuple(on(id, "sim") for id in gpus))


@pytest.fixture
async def new_world() -> AsyncIterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**settings: Any) -> World:
        worlds.append(World(**settings))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.scheduler.close()
        assert world.num_alive() == 0


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Returns when the condition holds; fails after a time in which it would have come to hold on any machine."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    return wait


@pytest.fixture
def on() -> Callable[[str], AbstractAsyncContextManager[RealDevices]]:
    """``async with on("sim:9MiB,sim:9MiB") as world``: a scheduler with real runners."""
    return real_devices


class Fake:
    """A real process that speaks the runner's HTTP; see fake_runner.py for what a script can say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Started] = []

    async def __call__(self, **script: Any) -> Started:
        path = self._folder / f"script{len(self._made)}.json"
        path.write_text(json.dumps(script))
        process = await RunnerProcess.start(
            path.name, lambda fd: [sys.executable, "-S", str(FAKE_RUNNER), "--model", str(path), "--fd", str(fd)], {}
        )
        # The end of a process is noticed at once, but for a while in which this one is not run.
        self._made.append(Started(process, RunnerClient(process.port, process.token, partial(process.obituary, 4.0))))
        return self._made[-1]

    async def stop(self) -> None:
        for started in self._made:
            started.process.kill()
            await started.stop()


@pytest.fixture
async def start_fake(tmp_path: Path) -> AsyncIterator[Fake]:
    fake = Fake(tmp_path)
    yield fake
    await fake.stop()
