"""One model that has, is about to get, or is giving up a runner: who uses it, and when it may go."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property

from runner.protocol import Layout, LoadRequest, Memory
from scheduler.client import RunnerClient
from scheduler.clock import Clock, Timer
from scheduler.events import Unload
from scheduler.keep_alive import FOREVER_S, expiry
from scheduler.layout import num_placed
from scheduler.options import LoadOptions, ModelFile, ModelHeader, OnGPUs
from scheduler.spawn import Started


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A loaded model as it is at one moment."""

    model: ModelFile
    client: RunnerClient
    memory: Memory  # measured by the runner
    layout: Layout
    num_ctx: int
    """Tokens per sequence that it was loaded with, or fewer if the request that got this asked for fewer."""
    num_parallel: int
    expires_at: datetime  # if no request comes; centuries away when it is kept for ever
    load_duration_ns: int
    """How long the request that got this waited: microseconds for a loaded model. In ``running()``: the load itself."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model in whatever state, at one moment. What is not known yet is None."""

    model: ModelFile
    state: str  # "loading" (also while it waits for its turn), "ready" or "stopping"
    progress: float  # of its weights, 0 … 1
    expires_at: datetime  # while it loads: as if it were ready now
    num_ctx: int | None
    running: RunningModel | None  # unless it is loading


class State(Enum):
    WAITING = "waiting"  # for its turn to load
    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"  # takes no new requests; stops when the last one is done
    STOPPING = "stopping"
    GONE = "gone"


class Resident:
    """Everything about one model that changes: in ``Scheduler``, ``Loads`` and ``Unloads``, on their event loop."""

    def __init__(self, model: ModelFile, options: LoadOptions, keep_alive_s: float, clock: Clock) -> None:
        self.model = model
        self.options = options
        self.keep_alive_s = keep_alive_s
        self.state = State.WAITING
        self.num_users = 0
        self.last_used_s = clock.monotonic()
        self.load_duration_ns = 0
        self.began_at_s = 0.0  # when its turn to load came
        self.phases: Mapping[str, float] = {}  # seconds of the load by part
        self.unload = Unload.SHUTDOWN  # why it ends; set when it has to
        self.progress = 0.0  # of its weights, 0 … 1
        self.started: Started | None = None
        self.header: ModelHeader | None = None  # set while LOADING, as are the next four
        self.request: LoadRequest | None = None
        self.num_gpus = 0
        self.memory: Memory | None = None
        self.layout: Layout = ()
        self.timer: Timer | None = None
        self.is_at_others_expense = False  # models had to go for it, because there was not memory for all
        self.looked_at_s = 0.0  # when it was last found out how large a context would fit
        self.neighbours: Sequence[asyncio.Event] = ()  # ``gone`` of the models that were there at that time
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(_look_at_exception)
        self.gone = asyncio.Event()
        self._clock = clock

    @property
    def is_idle(self) -> bool:
        return self.num_users == 0

    @property
    def is_pinned(self) -> bool:
        return self.keep_alive_s == FOREVER_S

    @property
    def is_usable(self) -> bool:
        """Loaded, and its process lives."""
        return self.state is State.READY and self.started is not None and self.started.process.is_alive

    @cached_property
    def on_gpus(self) -> OnGPUs:
        """What of it is on GPUs, once it is loaded."""
        assert self.memory is not None
        return OnGPUs(self.num_gpus, len(self.memory.cpu.weights), num_placed(self.layout))

    @property
    def is_on_its_way_out(self) -> bool:
        return self.state in (State.LEAVING, State.STOPPING, State.GONE)

    @property
    def has_process(self) -> bool:
        return self.started is not None and self.state is not State.GONE

    def enter(self) -> None:
        """One more request uses it: no timer runs meanwhile."""
        self.num_users += 1
        self.cancel_timer()

    def leave(self) -> None:
        self.num_users -= 1
        self.last_used_s = self._clock.monotonic()

    def set_progress(self, progress: float) -> None:
        self.progress = progress

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def snapshot(self, load_duration_ns: int | None = None) -> RunningModel:
        assert self.started is not None
        assert self.request is not None
        assert self.memory is not None
        idle_s = 0.0 if self.num_users else self._clock.monotonic() - self.last_used_s
        return RunningModel(
            model=self.model,
            client=self.started.client,
            memory=self.memory,
            layout=self.layout,
            num_ctx=self.request.num_ctx,
            num_parallel=self.request.num_parallel,
            expires_at=expiry(self._clock.now(), max(0.0, self.keep_alive_s - idle_s)),
            load_duration_ns=self.load_duration_ns if load_duration_ns is None else load_duration_ns,
        )

    def describe(self) -> ModelState:
        is_loading = self.state in (State.WAITING, State.LOADING)
        running = None if is_loading else self.snapshot()
        return ModelState(
            model=self.model,
            state="loading" if is_loading else "ready" if self.is_usable else "stopping",
            progress=self.progress if is_loading else 1.0,
            expires_at=running.expires_at if running else expiry(self._clock.now(), max(0.0, self.keep_alive_s)),
            num_ctx=self.request.num_ctx if self.request else None,
            running=running,
        )


def _look_at_exception(ready: asyncio.Future[None]) -> None:
    """Every waiter may have left before the load failed; asyncio would complain that nobody looked."""
    if not ready.cancelled():
        ready.exception()
