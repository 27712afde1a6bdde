"""``POST /api/embed`` and the older ``POST /api/embeddings``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from runner.protocol import EmbeddingRequest
from server.errors import InvalidRequestError
from server.routes.body import read_request
from server.routes.embedding import embed as embed_inputs
from server.routes.reply import json_response, watched
from server.routes.service import NOT_FOUND_TRY_PULLING, service_of
from server.schemas.ollama import EmbeddingsRequest, EmbedRequest
from server.schemas.options import read_options

router = APIRouter()


@router.post("/api/embed")
async def embed(request: Request) -> Response:
    service = service_of(request)
    body = await read_request(request, EmbedRequest)
    inputs = _inputs(body.input)
    loading = read_options(body.options).loading
    entry = await service.find(body.model, NOT_FOUND_TRY_PULLING)
    wire = EmbeddingRequest(inputs=inputs, truncate=body.truncate is not False)
    work = embed_inputs(service, entry, loading, body.keep_alive, wire, body.dimensions)
    found = await watched(request, work)
    answer = {
        "model": body.model,
        "embeddings": found.vectors,
        "total_duration": found.total_duration,
        "load_duration": found.load_duration,
        "prompt_eval_count": found.num_tokens,
        **found.notes,
    }
    return json_response({name: value for name, value in answer.items() if value or name == "embeddings"})


@router.post("/api/embeddings")
async def embeddings(request: Request) -> Response:
    """One prompt; the vector is as the model gives it, not brought to length 1."""
    service = service_of(request)
    body = await read_request(request, EmbeddingsRequest)
    loading = read_options(body.options).loading
    entry = await service.find(body.model, NOT_FOUND_TRY_PULLING)
    wire = EmbeddingRequest(inputs=(body.prompt,) if body.prompt else (), normalize=False)
    found = await watched(request, embed_inputs(service, entry, loading, body.keep_alive, wire))
    return json_response({"embedding": found.vectors[0] if found.vectors else [], **found.notes})


def _inputs(given: Any) -> tuple[str, ...]:
    """Texts to embed; none, or one empty text, only loads the model. Raises InvalidRequestError in Ollama's words."""
    if given is None or given == "":
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError("invalid input type", param="input")
    return tuple(texts)
