"""The frame of OpenAI's completion answers: one object, or server-sent events that end in ``data: [DONE]``."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from fastapi import Request, Response

from server.errors import Failure, openai_body
from server.routes.generation import Final, Job, Piece, Whole, run, wholes
from server.routes.reply import json_response, streamed, watched
from server.routes.service import Service
from server.schemas.openai import GenerationRequest

EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
FINGERPRINT = "fp_shale"


class Choices(Protocol):
    """How one of the two routes writes a choice."""

    object_name: str
    chunk_object_name: str
    id_prefix: str

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The stream's choices for one piece, each for a chunk of its own."""

    def whole(self, index: int, whole: Whole) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What all chunks of one answer have in common."""

    id: str
    object_name: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **more,
        }


async def answer(request: Request, service: Service, body: GenerationRequest, job: Job, choices: Choices) -> Response:
    """Run the job and answer as ``body.stream`` asks for (whole where it does not say)."""
    pieces = run(service, job)
    answer_id = f"{choices.id_prefix}-{secrets.token_hex(12)}"
    if body.stream:
        frame = Frame(answer_id, choices.chunk_object_name, body.model)
        events = _events(frame, pieces, choices, body.has_usage_chunk, job.num_choices)
        return await streamed(request, events, _same, _failure_event, EVENT_STREAM)
    found = await watched(request, wholes(pieces))
    frame = Frame(answer_id, choices.object_name, body.model)
    ends = [whole.end for whole in found]
    rows = [choices.whole(index, whole) for index, whole in enumerate(found)]
    return json_response(frame.around(rows, usage=usage(ends, job.num_choices), **_notes(ends)))


def usage(ends: Sequence[Final], num_choices: int) -> dict[str, Any]:
    """Tokens of the whole answer, from the ends of all choices in order; each prompt has ``num_choices`` of them.

    A prompt counts once, and of its tokens those as cached that none of its choices had to compute.
    """
    prompts = [ends[start : start + num_choices] for start in range(0, len(ends), num_choices)]
    num_prompt = sum(choices[0].prompt_eval_count for choices in prompts)
    num_cached = sum(min(choice.prompt_eval_cached for choice in choices) for choices in prompts)
    num_completion = sum(end.eval_count for end in ends)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


async def _events(
    frame: Frame, pieces: AsyncGenerator[Piece, None], choices: Choices, has_usage: bool, num_choices: int
) -> AsyncGenerator[bytes, None]:
    ends: dict[int, Final] = {}
    null_usage: dict[str, Any] = {"usage": None} if has_usage else {}
    async with aclosing(pieces):
        async for piece in pieces:
            notes = piece.final.notes if piece.final else {}
            for choice in choices.chunks(piece):
                yield _event(frame.around([choice], **null_usage, **notes))
            if piece.final:
                ends[piece.choice] = piece.final
    if has_usage:
        in_order = [ends[choice] for choice in sorted(ends)]
        yield _event(frame.around([], usage=usage(in_order, num_choices)))
    yield DONE


def _notes(ends: Sequence[Final]) -> dict[str, Any]:
    """Of counts the largest; sentences are the same for all choices."""
    notes: dict[str, Any] = {}
    for end in ends:
        for name, value in end.notes.items():
            notes[name] = max(notes.get(name, value), value)
    return notes


def _same(event: bytes) -> bytes:
    return event


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(content)


def _failure_event(failure: Failure) -> bytes:
    return _event(openai_body(failure))
