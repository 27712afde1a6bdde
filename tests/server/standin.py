"""A scheduler whose models answer from a script: HTTP behaviour is tested without a runner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson

from runner import protocol
from scheduler.devices import Machine, SystemMemory
from scheduler.scheduler import LoadOptions, ModelFile, ModelState

MEMORY = protocol.Memory(
    input_weights=10, cpu=protocol.DeviceMemory(id="cpu", library="cpu", weights=(5,), cache=(3,), graph=2)
)
STATS = protocol.RunnerStats(
    num_waiting=5, num_active=3, num_parallel=4, num_steps=10, num_batch_sequences=20, num_batch_tokens=700,
    cache=protocol.CacheStats(
        num_cells=1000, num_used=370, num_shared=40, num_cached=50, fragmentation=0.25, num_defragmentations=2,
        moved_bytes=4096, num_prefixes=6, num_hits=7, num_misses=8, num_reused_tokens=90,
    ),
    step=protocol.Histogram(bounds=(0.01, 0.1), counts=(4, 5, 1), total_s=0.75),
)  # fmt: skip
END = {
    "done": True, "done_reason": "stop", "prompt_eval_count": 3, "prompt_eval_cached": 1, "prompt_eval_duration": 5,
    "eval_count": 2, "eval_duration": 6, "prompt_tokens": [1, 2, 3],
}  # fmt: skip


def word(number: int, text: str) -> dict[str, Any]:
    token = {"id": number, "token": text, "bytes": list(text.encode()), "logprob": -0.5}
    return {"content": text, "tokens": [number], "logprobs": [{**token, "top_logprobs": [token]}]}


def without_logprobs(line: Any) -> Any:
    return {name: value for name, value in line.items() if name != "logprobs"} if isinstance(line, dict) else line


class Lines:
    """A completion's lines; an exception among them is raised in its place, a function asked for what it is."""

    def __init__(self, script: Sequence[Any]) -> None:
        self._script = iter(script)
        self.is_closed = False

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        line = next(self._script, None)
        if callable(line):
            line = line()
            if line is None:
                return await self.__anext__()
        if line is None:
            raise StopAsyncIteration
        if isinstance(line, Exception):
            raise line
        return orjson.dumps(line)

    async def aclose(self) -> None:
        self.is_closed = True


class StandInScheduler:
    """``script`` is what completions answer, ``error`` what a load fails with; what was asked is kept."""

    def __init__(self) -> None:
        self.script: list[Any] = [word(7, "he"), word(8, "llo"), END]
        self.error: Exception | None = None
        self.num_ctx = 4096
        self.requests: list[protocol.CompletionRequest] = []
        self.embeddings: list[protocol.EmbeddingRequest] = []
        self.acquired: list[tuple[str, LoadOptions, float | None]] = []
        self.unloaded: list[str] = []
        self.streams: list[Lines] = []
        self.num_held = 0
        self.loading: list[ModelState] = []
        self.num_parallel = 4
        self.stats_answer: Any = STATS  # or an exception
        self.is_closed = False

    @asynccontextmanager
    async def acquire(
        self, model: ModelFile, options: LoadOptions, keep_alive_s: float | None
    ) -> AsyncIterator[SimpleNamespace]:
        self.acquired.append((model.name, options, keep_alive_s))
        if self.error:
            raise self.error
        self.num_held += 1
        try:
            yield self._running(model)
        finally:
            self.num_held -= 1

    async def unload(self, model: ModelFile) -> None:
        self.unloaded.append(model.name)

    def running(self) -> list[SimpleNamespace]:
        return [self._running(ModelFile(*each)) for each in (("gone", None, "00", 1),)]

    def residents(self) -> list[ModelState]:
        ready = [ModelState(r.model, "ready", 1.0, r.expires_at, r.num_ctx, r) for r in self.running()]
        return [*ready, *self.loading]

    async def machine(self) -> Machine:
        return Machine(SystemMemory(total_bytes=1000, free_bytes=600, swap_bytes=0))

    def _running(self, model: ModelFile) -> SimpleNamespace:
        moment = datetime(2030, 1, 2, tzinfo=UTC)
        return SimpleNamespace(
            model=model, client=self, memory=MEMORY, layout=(), num_ctx=self.num_ctx, expires_at=moment,
            num_parallel=self.num_parallel,
        )  # fmt: skip

    # ---- RunnerClient: a token is a byte ---------------------------------------------------------

    async def completion(self, request: protocol.CompletionRequest) -> Lines:
        self.requests.append(request)
        with_logprobs = request.top_logprobs is not None
        self.streams.append(Lines([line if with_logprobs else without_logprobs(line) for line in self.script]))
        return self.streams[-1]

    async def stats(self) -> protocol.RunnerStats:
        if isinstance(self.stats_answer, Exception):
            raise self.stats_answer
        return self.stats_answer

    async def tokenize(self, request: protocol.TokenizeRequest) -> protocol.TokenizeResponse:
        return protocol.TokenizeResponse(tokens=tuple(request.text.encode()))

    async def detokenize(self, request: protocol.DetokenizeRequest) -> protocol.DetokenizeResponse:
        return protocol.DetokenizeResponse(text=bytes(request.tokens).decode())

    async def embedding(self, request: protocol.EmbeddingRequest) -> protocol.EmbeddingResponse:
        self.embeddings.append(request)
        num_inputs = len(request.inputs)
        return protocol.EmbeddingResponse(
            embeddings=((0.6, 0.0, 0.8),) * num_inputs, prompt_eval_counts=(2,) * num_inputs
        )
