"""The Ollama API: fields, units, defaults and error texts as its clients know them."""

from __future__ import annotations

from fastapi import APIRouter

from server.routes.ollama import chat, embed, generate, library, machine, models, tokens

router = APIRouter()
for module in (models, machine, generate, chat, embed, tokens, library):
    router.include_router(module.router)

__all__ = ["router"]
