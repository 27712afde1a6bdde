"""``POST /api/tokenize`` and ``POST /api/detokenize``, which Ollama's users ask for and Ollama lacks."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from runner.protocol import DetokenizeRequest as WireDetokenizeRequest
from runner.protocol import TokenizeRequest as WireTokenizeRequest
from server.catalog import Entry
from server.routes.body import read_request
from server.routes.reply import json_response, watched
from server.routes.service import Service, service_of
from server.schemas.ollama import DetokenizeRequest, TokenizeRequest

router = APIRouter()


@router.post("/api/tokenize")
async def tokenize(request: Request) -> Response:
    """``{model, text}`` → ``{model, tokens}``. ``add_special`` and ``parse_special`` are true by default."""
    service = service_of(request)
    body = await read_request(request, TokenizeRequest)
    entry = await service.find(body.model)
    return json_response({"model": body.model, "tokens": await watched(request, _encode(service, entry, body))})


@router.post("/api/detokenize")
async def detokenize(request: Request) -> Response:
    """``{model, tokens}`` → ``{model, text}``."""
    service = service_of(request)
    body = await read_request(request, DetokenizeRequest)
    entry = await service.find(body.model)
    return json_response({"model": body.model, "text": await watched(request, _decode(service, entry, body))})


async def _encode(service: Service, entry: Entry, body: TokenizeRequest) -> tuple[int, ...]:
    wire = WireTokenizeRequest(text=body.text, add_special=body.add_special, parse_special=body.parse_special)
    async with service.acquire(entry, {}, body.keep_alive) as running:
        return (await running.client.tokenize(wire)).tokens


async def _decode(service: Service, entry: Entry, body: DetokenizeRequest) -> str:
    async with service.acquire(entry, {}, body.keep_alive) as running:
        return (await running.client.detokenize(WireDetokenizeRequest(tokens=body.tokens))).text
