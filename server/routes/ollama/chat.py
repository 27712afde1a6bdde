"""``POST /api/chat``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from scheduler.scheduler import RunningModel
from server.routes.body import read_request
from server.routes.generation import Final, Job, Prepared
from server.routes.ollama.answers import answer, answer_without_prompt
from server.routes.ollama.generate import completion_request, require_no_thinking, thinking_variables
from server.routes.prompt import chat_prompt, render
from server.routes.service import require_completion, service_of
from server.schemas.messages import read_messages
from server.schemas.ollama import ChatRequest
from server.schemas.options import read_options

router = APIRouter()


@router.post("/api/chat")
async def chat(request: Request) -> Response:
    service = service_of(request)
    body = await read_request(request, ChatRequest)
    entry = await service.find(body.model)
    if body.messages or body.keep_alive != 0:  # a model of any kind can be unloaded
        require_completion(entry, body.model, "chat")
    require_no_thinking(body)
    options, messages = read_options(body.options), read_messages(body.messages or ())
    rendered = await render(service, entry, messages, thinking_variables(body)) if messages else None

    async def prepare(running: RunningModel) -> Sequence[Prepared]:
        assert rendered is not None  # without messages nothing is completed
        prompt = await chat_prompt(rendered, running, body.truncate is not False)
        request = completion_request(body, options, prompt.value)
        return [Prepared(request, prompt.truncated_messages)]

    job = Job(entry, options.loading, body.keep_alive, prepare)
    if rendered is None:
        return await answer_without_prompt(request, service, body, job, _shape)
    return await answer(request, service, body, job, _shape, _nothing_more)


def _shape(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _nothing_more(final: Final, tokens: Sequence[int]) -> dict[str, Any]:
    return {}
