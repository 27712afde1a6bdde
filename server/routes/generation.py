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
from scheduler.scheduler import LoadOptions, RunningModel
from server.catalog import Entry
from server.errors import ApiError
from server.routes.service import Service


class EngineError(ApiError):
    """The runner reported that the engine failed while it worked on the request."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One completion, ready to be sent to the runner, and what had to be left out of its prompt."""

    request: CompletionRequest
    truncated_messages: int = 0
    truncated_tokens: int = 0

    @property
    def notes(self) -> dict[str, int]:
        """Fields for the answer, so that nothing is cut silently; empty when nothing was."""
        counts = {"truncated_messages": self.truncated_messages, "truncated_tokens": self.truncated_tokens}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Job:
    """What to load and what to run on it. ``prepare`` is called with the loaded model, for it may count tokens."""

    entry: Entry
    loading: Mapping[str, Any]
    keep_alive_s: float | None
    prepare: Callable[[RunningModel], Awaitable[Sequence[Prepared]]]


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
    """Load the model, run the job's completions one after the other, and yield their pieces.

    Closing the generator stops the work. Raises what the scheduler raises, and EngineError.
    """
    started = time.perf_counter_ns()
    async with service.acquire(job.entry, job.loading, job.keep_alive_s) as running:
        load_duration = time.perf_counter_ns() - started
        notes = context_notes(job.entry, job.loading, running)
        for choice, prepared in enumerate(await job.prepare(running)):
            lines = await running.client.completion(prepared.request)
            async with aclosing(lines):
                async for raw in lines:
                    line = orjson.loads(raw)
                    if "error" in line:
                        raise EngineError(str(line["error"]))
                    piece = _piece(choice, line, {**prepared.notes, **notes}, load_duration, started)
                    if piece.final is not None:
                        service.metrics.tokens(job.entry.name, piece.final.prompt_eval_count, piece.final.eval_count)
                    yield piece


async def wholes(pieces: AsyncGenerator[Piece, None]) -> list[Whole]:
    """All choices, complete."""
    found: dict[int, Whole] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            found.setdefault(piece.choice, Whole()).add(piece)
    return [found[choice] for choice in sorted(found)]


def context_notes(entry: Entry, loading: Mapping[str, Any], running: RunningModel) -> dict[str, list[str]]:
    """Field ``notes`` for the answer where the context is not the number that was asked for; empty where it is."""
    notes = load_notes(LoadOptions(**loading), entry.facts.context_length or 0, running.num_ctx)
    return {"notes": list(notes)} if notes else {}


def _piece(choice: int, line: Mapping[str, Any], notes: Mapping[str, Any], load_duration: int, started: int) -> Piece:
    tokens, logprobs = line.get("tokens", ()), line.get("logprobs", ())
    if not line.get("done"):
        return Piece(choice, line.get("content", ""), tokens, logprobs)
    final = Final(
        done_reason=line["done_reason"],
        prompt_eval_count=line["prompt_eval_count"],
        prompt_eval_cached=line.get("prompt_eval_cached", 0),
        prompt_eval_duration=line["prompt_eval_duration"],
        eval_count=line["eval_count"],
        eval_duration=line["eval_duration"],
        load_duration=load_duration,
        total_duration=time.perf_counter_ns() - started,
        prompt_tokens=line.get("prompt_tokens", ()),
        notes=notes,
    )
    return Piece(choice, line.get("content", ""), tokens, logprobs, final)
