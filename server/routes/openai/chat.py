"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from runner.protocol import CompletionRequest, SamplingOptions
from scheduler.scheduler import RunningModel
from server.errors import InvalidRequestError
from server.routes.body import read_request
from server.routes.generation import Job, Piece, Prepared, Whole
from server.routes.openai.answers import answer
from server.routes.prompt import chat_prompt, render
from server.routes.service import require_completion, service_of
from server.schemas.messages import read_messages
from server.schemas.openai import ChatCompletionRequest

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    service = service_of(request)
    body = await read_request(request, ChatCompletionRequest)
    if not body.messages:
        raise InvalidRequestError("[] is too short - 'messages'", param="messages")
    entry = await service.find(body.model)
    require_completion(entry, body.model, "chat")
    samplings = [body.sampling(choice) for choice in range(body.n or 1)]
    rendered = await render(service, entry, read_messages(body.messages), {})

    async def prepare(running: RunningModel) -> Sequence[Prepared]:
        prompt = await chat_prompt(rendered, running, bool(body.truncate))
        requests = [_request(body, prompt.value, sampling) for sampling in samplings]
        return [Prepared(each, prompt.truncated_messages) for each in requests]

    job = Job(entry, body.loading, body.keep_alive, prepare, len(samplings))
    return await answer(request, service, body, job, ChatChoices(bool(body.return_token_ids)))


def _request(
    body: ChatCompletionRequest, prompt: str | tuple[int, ...], sampling: SamplingOptions
) -> CompletionRequest:
    return CompletionRequest(
        prompt=prompt,
        options=sampling,
        top_logprobs=body.num_logprobs,
        truncate=bool(body.truncate),
        shift=False,
        cache_prompt=body.cache_prompt is not False,
    )


@dataclass(slots=True)
class ChatChoices:
    """Choices with a ``message``, or in a stream with a ``delta``: the role comes in the first chunk only."""

    has_token_ids: bool
    object_name: str = "chat.completion"
    chunk_object_name: str = "chat.completion.chunk"
    id_prefix: str = "chatcmpl"
    _started: set[int] = field(default_factory=set)

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        rows = []
        if piece.choice not in self._started:
            self._started.add(piece.choice)
            rows.append(self._chunk(piece.choice, {"role": "assistant", "content": ""}))
        if piece.text or piece.logprobs or (self.has_token_ids and piece.tokens):
            rows.append(self._chunk(piece.choice, {"content": piece.text}, piece))
        if piece.final:
            rows.append(self._chunk(piece.choice, {}, reason=piece.final.done_reason))
        return rows

    def whole(self, index: int, whole: Whole) -> dict[str, Any]:
        message = {"role": "assistant", "content": whole.text}
        choice = {"index": index, "message": message, "logprobs": chat_logprobs(whole.logprobs)}
        ids = {"token_ids": whole.tokens} if self.has_token_ids else {}
        return {**choice, "finish_reason": whole.end.done_reason, **ids}

    def _chunk(
        self, index: int, delta: Mapping[str, Any], piece: Piece | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = chat_logprobs(piece.logprobs) if piece else None
        ids = {"token_ids": piece.tokens} if piece and self.has_token_ids else {}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason, **ids}


def chat_logprobs(logprobs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """OpenAI's ``logprobs`` object of a chat choice."""
    return {"content": token_logprobs(logprobs), "refusal": None} if logprobs else None


def token_logprobs(logprobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's fields of each token, and beside them its ``id``."""
    return [{**each, "top_logprobs": each.get("top_logprobs", [])} for each in logprobs]
