"""The shape of Ollama's completion answers, streamed as one JSON object a line or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import Request, Response

from server.errors import Failure, ollama_body
from server.routes.generation import Final, Job, Piece, context_notes, run, wholes
from server.routes.reply import json_response, streamed, watched
from server.routes.service import Service
from server.schemas.ollama import CompletionFields

NDJSON = "application/x-ndjson"

Shape = Callable[[str], dict[str, Any]]
"""Where the text stands in an answer: ``response`` of generate, ``message`` of chat."""

Ending = Callable[[Final, Sequence[int]], dict[str, Any]]
"""More fields of the last object, from the final piece and all tokens of the answer."""


def now() -> str:
    """RFC 3339, UTC."""
    return rfc3339(datetime.now(UTC))


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


async def answer(
    request: Request, service: Service, body: CompletionFields, job: Job, shape: Shape, ending: Ending
) -> Response:
    """Run the job and answer in the way that ``body.stream`` asks for (a stream where it does not say)."""
    pieces = run(service, job)
    if body.stream is not False:
        objects = _objects(body.model, pieces, shape, ending)
        return await streamed(request, objects, _line, _failure_line, NDJSON)
    whole = (await watched(request, wholes(pieces)))[0]
    end = _ending(whole.end, whole.tokens, ending)
    return json_response({**_start(body.model, shape, whole.text), **_logprobs(whole.logprobs), **end})


async def answer_without_prompt(
    request: Request, service: Service, body: CompletionFields, job: Job, shape: Shape
) -> Response:
    """An empty prompt only loads the model, or with ``keep_alive`` 0 unloads it."""
    unloads = body.keep_alive == 0
    notes = await watched(request, _unload(service, job) if unloads else _load(service, job))
    reason = {"done": True, "done_reason": "unload" if unloads else "load"}
    return json_response({"model": body.model, "created_at": now(), **shape(""), **reason, **notes})


async def _load(service: Service, job: Job) -> dict[str, list[str]]:
    async with service.acquire(job.entry, job.loading, job.keep_alive_s) as running:
        return context_notes(job.entry, job.loading, running)


async def _unload(service: Service, job: Job) -> dict[str, list[str]]:
    await service.unload(job.entry)
    return {}


async def _objects(
    model: str, pieces: AsyncGenerator[Piece, None], shape: Shape, ending: Ending
) -> AsyncGenerator[dict[str, Any], None]:
    tokens: list[int] = []
    async with aclosing(pieces):
        async for piece in pieces:
            tokens.extend(piece.tokens)
            if piece.final is None:
                yield {**_start(model, shape, piece.text), "done": False, **_logprobs(piece.logprobs)}
            else:
                end = _ending(piece.final, tokens, ending)
                yield {**_start(model, shape, piece.text), **_logprobs(piece.logprobs), **end}


def _start(model: str, shape: Shape, text: str) -> dict[str, Any]:
    return {"model": model, "created_at": now(), **shape(text)}


def _ending(final: Final, tokens: Sequence[int], ending: Ending) -> dict[str, Any]:
    counts = {
        "total_duration": final.total_duration,
        "load_duration": final.load_duration,
        "prompt_eval_count": final.prompt_eval_count,
        "prompt_eval_duration": final.prompt_eval_duration,
        "eval_count": final.eval_count,
        "eval_duration": final.eval_duration,
    }
    named = {name: count for name, count in counts.items() if count}  # Ollama leaves out what is 0
    cached = {"prompt_eval_cached": final.prompt_eval_cached}  # an addition; 0 says that the cache had nothing
    return {"done": True, "done_reason": final.done_reason, **ending(final, tokens), **named, **cached, **final.notes}


def _logprobs(logprobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"logprobs": [_token(each) for each in logprobs]} if logprobs else {}


def _token(given: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's fields of a token: without the id, and without an empty list of alternatives."""
    token = {"token": given["token"], "logprob": given["logprob"], "bytes": given["bytes"]}
    if given.get("top_logprobs"):
        token["top_logprobs"] = [_token(each) for each in given["top_logprobs"]]
    return token


def _line(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


def _failure_line(failure: Failure) -> bytes:
    return _line(ollama_body(failure))
