"""The OpenAI API: chat completions, completions, embeddings, models."""

from __future__ import annotations

from fastapi import APIRouter

from server.routes.openai import chat, completions, embeddings, models

router = APIRouter()
for module in (models, chat, completions, embeddings):
    router.include_router(module.router)

__all__ = ["router"]
