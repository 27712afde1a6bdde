"""What every route works with: settings, the models on disk, the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from scheduler.scheduler import LoadOptions, ModelFile, RunningModel, Scheduler
from server.catalog import Catalog, Entry
from server.chat_template import FALLBACK_TEMPLATE, ChatTemplate, TemplateError
from server.errors import ApiError, InvalidRequestError, ModelNotFoundError
from server.metrics import Metrics
from server.settings import Settings

NOT_FOUND = "model '{}' not found"
NOT_FOUND_TRY_PULLING = 'model "{}" not found, try pulling it first'
MAX_TEMPLATES = 64


@dataclass(frozen=True, slots=True)
class Service:
    """One per process, made when the application starts."""

    settings: Settings
    catalog: Catalog
    scheduler: Scheduler
    metrics: Metrics
    _templates: dict[str, ChatTemplate] = field(default_factory=dict)

    async def find(self, name: str, missing: str = NOT_FOUND) -> Entry:
        """The served model of that name. Raises ModelNotFoundError with ``missing``, InvalidRequestError."""
        entry = await asyncio.to_thread(self.catalog.find, name) if name else None
        if entry is None:
            raise ModelNotFoundError(missing.format(name), param="model")
        return entry

    def acquire(
        self, entry: Entry, loading: Mapping[str, Any], keep_alive_s: float | None
    ) -> AbstractAsyncContextManager[RunningModel]:
        """The model, loaded and held for the time of the context. Raises what the scheduler raises."""
        return self.scheduler.acquire(model_file(entry), LoadOptions(**loading), keep_alive_s)

    async def unload(self, entry: Entry) -> None:
        await self.scheduler.unload(model_file(entry))

    def template(self, entry: Entry) -> ChatTemplate:
        """The file's chat template, or the usual one where it has none; compiled once. Blocks. Raises ApiError."""
        if entry.digest not in self._templates:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.pop(next(iter(self._templates)))
            self._templates[entry.digest] = compile_template(entry)
        return self._templates[entry.digest]


def compile_template(entry: Entry) -> ChatTemplate:
    """Raises ApiError for a template that does not compile: the file is at fault, not the request."""
    facts = entry.facts
    try:
        source = facts.chat_template or FALLBACK_TEMPLATE
        return ChatTemplate(source, bos_token=facts.bos_token, eos_token=facts.eos_token)
    except TemplateError as error:
        raise ApiError(f"the chat template of model {entry.name!r} cannot be used: {error}") from error


def model_file(entry: Entry) -> ModelFile:
    return ModelFile(name=entry.name, path=entry.path, digest=entry.digest, size_bytes=entry.size_bytes)


def service_of(request: Request) -> Service:
    """The service of the application that ``request`` came to."""
    service: Service = request.app.state.service
    return service


def require_completion(entry: Entry, name: str, verb: str) -> None:
    """Raises InvalidRequestError, in Ollama's words, for a model that only makes embeddings."""
    if entry.facts.is_embedding:
        raise InvalidRequestError(f'"{name}" does not support {verb}', param="model")
