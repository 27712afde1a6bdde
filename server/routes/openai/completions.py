"""``POST /v1/completions``: text or token ids go to the model as they are, without a template."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from runner.protocol import CompletionRequest as WireCompletionRequest
from runner.protocol import SamplingOptions
from scheduler.scheduler import RunningModel
from server.routes.body import read_request
from server.routes.generation import Job, Piece, Prepared, Whole
from server.routes.openai.answers import answer
from server.routes.openai.chat import token_logprobs
from server.routes.service import require_completion, service_of
from server.schemas.openai import CompletionRequest, Prompt

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    service = service_of(request)
    body = await read_request(request, CompletionRequest)
    entry = await service.find(body.model)
    require_completion(entry, body.model, "generate")
    samplings = [body.sampling(choice) for choice in range(body.n or 1)]

    async def prepare(running: RunningModel) -> Sequence[Prepared]:
        return [_prepared(body, prompt, sampling) for prompt in body.prompt for sampling in samplings]

    job = Job(entry, body.loading, body.keep_alive, prepare, len(samplings))
    return await answer(request, service, body, job, TextChoices(bool(body.return_token_ids)))


def _prepared(body: CompletionRequest, prompt: Prompt, sampling: SamplingOptions) -> Prepared:
    wire = WireCompletionRequest(
        prompt=prompt,
        options=sampling,
        top_logprobs=body.logprobs,
        truncate=bool(body.truncate),
        shift=False,
        cache_prompt=body.cache_prompt is not False,
    )
    return Prepared(wire)


@dataclass(slots=True)
class TextChoices:
    """Choices with ``text``. In a stream, offsets go on from chunk to chunk."""

    has_token_ids: bool
    object_name: str = "text_completion"
    chunk_object_name: str = "text_completion"
    id_prefix: str = "cmpl"
    _offsets: dict[int, Offsets] = field(default_factory=dict)

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        offsets = self._offsets.setdefault(piece.choice, Offsets())
        logprobs = text_logprobs(piece.logprobs, offsets)
        reason = piece.final.done_reason if piece.final else None
        return [self._choice(piece.choice, piece.text, logprobs, reason, piece.tokens)]

    def whole(self, index: int, whole: Whole) -> dict[str, Any]:
        logprobs = text_logprobs(whole.logprobs, Offsets())
        return self._choice(index, whole.text, logprobs, whole.end.done_reason, whole.tokens)

    def _choice(
        self, index: int, text: str, logprobs: Mapping[str, Any] | None, reason: str | None, tokens: Sequence[int]
    ) -> dict[str, Any]:
        ids = {"token_ids": tokens} if self.has_token_ids else {}
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, **ids}


class Offsets:
    """Where each token starts in the text, in characters, though tokens may end inside of one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0

    def next(self, token_bytes: Sequence[int]) -> int:
        """Start of the token with these bytes, which comes after all that were given before."""
        start = self._num_characters
        self._num_characters += len(self._decoder.decode(bytes(token_bytes)))
        return start


def text_logprobs(logprobs: Sequence[Mapping[str, Any]], offsets: Offsets) -> dict[str, Any] | None:
    """OpenAI's lists, and beside them ``content`` as in a chat, whose entries have ids.

    Alternatives are keyed by text there, so two tokens of the same text are one; by id they are not.
    """
    if not logprobs:
        return None
    return {
        "tokens": [each["token"] for each in logprobs],
        "token_logprobs": [each["logprob"] for each in logprobs],
        "top_logprobs": [_by_text(each.get("top_logprobs", ())) for each in logprobs],
        "text_offset": [offsets.next(each["bytes"]) for each in logprobs],
        "content": token_logprobs(logprobs),
    }


def _by_text(alternatives: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in alternatives:
        found.setdefault(each["token"], each["logprob"])  # sorted: the first is the likeliest
    return found
