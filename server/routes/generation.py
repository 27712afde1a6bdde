"""From a request to the pieces of its completions, the same for both API families."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from runner.protocol import CompletionRequest
from scheduler.options import load_notes
from scheduler.plan import layout_notes
from scheduler.scheduler import LoadOptions, RunningModel
from server.catalog import Entry
from server.errors import ApiError
from server.routes.merge import merged
from server.routes.service import Service

SEQUENCES_AHEAD = 2
"""Completions of one request that are with the runner, for each sequence of it: one computes, one is ready to follow.
More would hold connections, and stand there before the requests of others."""


class EngineError(ApiError):
    """The runner reported that the engine failed while it worked on the request."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One completion, ready to be sent to the runner, and what had to be left out of its prompt."""

    request: CompletionRequest
    truncated_messages: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What to load and what to run on it. ``prepare`` is called with the loaded model, for it may count tokens.

    It gives the completions of the first prompt, ``num_choices`` of them, then those of the next.
    """

    entry: Entry
    loading: Mapping[str, Any]
    keep_alive_s: float | None
    prepare: Callable[[RunningModel], Awaitable[Sequence[Prepared]]]
    num_choices: int = 1


@dataclass(frozen=True, slots=True)
class Final:
    """How one completion ended. Durations in nanoseconds."""

    done_reason: str
    prompt_eval_count: int
    prompt_eval_cached: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int
    load_duration: int
    total_duration: int
    prompt_tokens: Sequence[int]
    notes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of one choice; the last piece of each choice has ``final``."""

    choice: int
    text: str = ""
    tokens: Sequence[int] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()
    final: Final | None = None


@dataclass(slots=True)
class Whole:
    """All pieces of one choice together."""

    final: Final | None = None
    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.tokens.extend(piece.tokens)
        self.logprobs.extend(piece.logprobs)
        self.final = piece.final or self.final

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def end(self) -> Final:
        """The final piece. Raises EngineError where the runner's stream had none."""
        if self.final is None:
            raise EngineError("the runner's answer ended without its final line")
        return self.final


async def run(service: Service, job: Job) -> AsyncGenerator[Piece, None]:
    """Load the model, run the job's completions side by side, and yield their pieces as they come.

    Closing the generator stops the work. Raises what the scheduler raises, and EngineError.
    """
    started = time.perf_counter_ns()
    async with service.acquire(job.entry, job.loading, job.keep_alive_s) as running:
        work = _Work(running, started, time.perf_counter_ns(), context_notes(job.entry, job.loading, running))
        async with aclosing(work.all_pieces(await job.prepare(running))) as pieces:
            async for piece in pieces:
                if (end := piece.final) is not None:
                    is_first = piece.choice % job.num_choices == 0  # a prompt with several choices counts once
                    num_prompt = end.prompt_eval_count if is_first else 0
                    service.metrics.tokens(job.entry.name, num_prompt, end.eval_count)
                yield piece


@dataclass(frozen=True, slots=True)
class _Work:
    """What the completions of one job have in common. Times of ``time.perf_counter_ns``."""

    running: RunningModel
    started_ns: int
    loaded_ns: int
    notes: Mapping[str, Any]

    def all_pieces(self, prepared: Sequence[Prepared]) -> AsyncGenerator[Piece, None]:
        if len(prepared) == 1:
            return self.pieces(0, prepared[0])  # the usual case does not pay for a queue
        sources = (self.pieces(choice, each) for choice, each in enumerate(prepared))
        return merged(sources, min(len(prepared), SEQUENCES_AHEAD * self.running.num_parallel))

    async def pieces(self, choice: int, prepared: Prepared) -> AsyncGenerator[Piece, None]:
        """One completion, from the runner's first line to its last."""
        request = prepared.request.model_copy(update={"num_ctx": self.running.num_ctx})
        lines = await self.running.client.completion(request)
        async with aclosing(lines):
            async for raw in lines:
                line = orjson.loads(raw)
                if "error" in line:
                    raise EngineError(str(line["error"]))
                yield self._piece(choice, line, prepared)

    def _piece(self, choice: int, line: Mapping[str, Any], prepared: Prepared) -> Piece:
        final = self._final(line, prepared) if line.get("done") else None
        return Piece(choice, line.get("content", ""), line.get("tokens", ()), line.get("logprobs", ()), final)

    def _final(self, line: Mapping[str, Any], prepared: Prepared) -> Final:
        return Final(
            done_reason=line["done_reason"],
            prompt_eval_count=line["prompt_eval_count"],
            prompt_eval_cached=line["prompt_eval_cached"],
            prompt_eval_duration=line["prompt_eval_duration"],
            eval_count=line["eval_count"],
            eval_duration=line["eval_duration"],
            load_duration=self.loaded_ns - self.started_ns,
            total_duration=time.perf_counter_ns() - self.started_ns,
            prompt_tokens=line.get("prompt_tokens", ()),
            notes={**_left_out(line, prepared), **self.notes},
        )


async def wholes(pieces: AsyncGenerator[Piece, None]) -> list[Whole]:
    """All choices, complete."""
    found: dict[int, Whole] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            found.setdefault(piece.choice, Whole()).add(piece)
    return [found[choice] for choice in sorted(found)]


def _left_out(line: Mapping[str, Any], prepared: Prepared) -> dict[str, int]:
    """Fields for the answer, so that nothing is cut silently; empty when nothing was. ``line``: the runner's last."""
    counts = {
        "truncated_messages": prepared.truncated_messages,
        "truncated_tokens": line.get("truncated", 0),
        "shifted_tokens": line.get("shifted", 0),
    }
    return {name: count for name, count in counts.items() if count}


def context_notes(entry: Entry, loading: Mapping[str, Any], running: RunningModel) -> dict[str, list[str]]:
    """Field ``notes`` for the answer where the model is not loaded as was asked for; empty where it is."""
    trained_num_ctx = entry.facts.context_length or 0
    options = LoadOptions(**loading)
    notes = [
        *load_notes(options, trained_num_ctx, running.num_ctx, running.num_parallel),
        *layout_notes(options, running.memory, running.layout),
    ]
    return {"notes": notes} if notes else {}
