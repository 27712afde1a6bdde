"""``POST /api/generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from runner.protocol import CompletionRequest
from scheduler.scheduler import RunningModel
from server.errors import InvalidRequestError
from server.routes.body import read_request
from server.routes.generation import Final, Job, Prepared
from server.routes.ollama.answers import answer, answer_without_prompt
from server.routes.prompt import generate_prompt, render_generate
from server.routes.service import require_completion, service_of
from server.schemas.ollama import CompletionFields, GenerateRequest
from server.schemas.options import Options, read_options

router = APIRouter()


@router.post("/api/generate")
async def generate(request: Request) -> Response:
    service = service_of(request)
    body = await read_request(request, GenerateRequest)
    entry = await service.find(body.model)
    if body.prompt or body.keep_alive != 0:  # a model of any kind can be unloaded
        require_completion(entry, body.model, "generate")
    require_no_thinking(body)
    options = read_options(body.options)
    text = body.prompt or ""
    if text and not body.raw:
        text = await render_generate(service, entry, text, body.system or "", thinking_variables(body))

    async def prepare(running: RunningModel) -> Sequence[Prepared]:
        prompt = await generate_prompt(running, text, body.context or ())
        return [Prepared(completion_request(body, options, prompt))]

    job = Job(entry, options.loading, body.keep_alive, prepare)
    if not body.prompt:
        return await answer_without_prompt(request, service, body, job, _shape)
    return await answer(request, service, body, job, _shape, _no_context if body.raw else _context)


def require_no_thinking(body: CompletionFields) -> None:
    """Raises InvalidRequestError, in Ollama's words, where thinking is asked for."""
    if body.think:
        raise InvalidRequestError(f'"{body.model}" does not support thinking', param="think")


def thinking_variables(body: CompletionFields) -> dict[str, Any]:
    """What templates of thinking models look at. Unset, the template decides."""
    return {} if body.think is None else {"enable_thinking": False}


def completion_request(body: CompletionFields, options: Options, prompt: str | tuple[int, ...]) -> CompletionRequest:
    return CompletionRequest(
        prompt=prompt,
        options=options.sampling,
        top_logprobs=body.num_logprobs,
        truncate=body.truncate is not False,
        shift=body.shift is not False,
        cache_prompt=options.cache_prompt,
        return_prompt_tokens=isinstance(body, GenerateRequest) and not body.raw,
    )


def _shape(text: str) -> dict[str, Any]:
    return {"response": text}


def _context(final: Final, tokens: Sequence[int]) -> dict[str, Any]:
    return {"context": [*final.prompt_tokens, *tokens]}


def _no_context(final: Final, tokens: Sequence[int]) -> dict[str, Any]:
    return {}
