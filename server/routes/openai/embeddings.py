"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from sys import byteorder
from typing import Any

from fastapi import APIRouter, Request, Response

from runner.protocol import EmbeddingRequest as WireEmbeddingRequest
from server.routes.body import read_request
from server.routes.embedding import embed
from server.routes.reply import json_response, watched
from server.routes.service import service_of
from server.schemas.openai import EmbeddingRequest
from server.schemas.options import read_loading

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    service = service_of(request)
    body = await read_request(request, EmbeddingRequest)
    loading = {} if body.num_ctx is None else {"num_ctx": read_loading("num_ctx", body.num_ctx)}
    entry = await service.find(body.model)
    wire = WireEmbeddingRequest(inputs=body.input, truncate=bool(body.truncate))
    found = await watched(request, embed(service, entry, loading, body.keep_alive, wire, body.dimensions))
    encode = to_base64 if body.encoding_format == "base64" else list
    rows: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.num_tokens, "total_tokens": found.num_tokens}
    return json_response({"object": "list", "data": rows, "model": body.model, "usage": usage, **found.notes})


def to_base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI's clients decode it."""
    values = array("f", vector)
    if byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
