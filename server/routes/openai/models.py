"""``GET /v1/models`` and ``GET /v1/models/{name}``."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from server.catalog import Entry
from server.routes.reply import json_response
from server.routes.service import service_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    entries = await asyncio.to_thread(service_of(request).catalog.entries)
    return json_response({"object": "list", "data": [_model(entry) for entry in entries]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    return json_response(_model(await service_of(request).find(name)))


def _model(entry: Entry) -> dict[str, Any]:
    owner = entry.name.rpartition("/")[0] or "library"
    return {"id": entry.name, "object": "model", "created": int(entry.modified_at.timestamp()), "owned_by": owner}
