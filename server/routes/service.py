"""What every route works with: settings, the models on disk, the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import Request

from scheduler.scheduler import LoadOptions, ModelFile, RunningModel, Scheduler
from server.catalog import Catalog, Entry
from server.catalog.scan import Stamp, check_name
from server.chat_template import FALLBACK_TEMPLATE, ChatTemplate, TemplateError
from server.errors import ApiError, InvalidRequestError, ModelNotFoundError
from server.metrics import Metrics
from server.settings import Settings

NOT_FOUND = "model '{}' not found"
NOT_FOUND_TRY_PULLING = 'model "{}" not found, try pulling it first'
MAX_TEMPLATES = 64
NO_FILES: Stamp = ()
"""Stamp of a loaded model whose file has gone, or cannot be read any more: it can be unloaded, and nothing else."""


@dataclass(frozen=True, slots=True)
class Service:
    """One per process, made when the application starts."""

    settings: Settings
    catalog: Catalog
    scheduler: Scheduler
    metrics: Metrics
    _templates: dict[str, ChatTemplate] = field(default_factory=dict)
    _acquired: dict[Path, Entry] = field(default_factory=dict)  # what is loaded, and what was until the next one came

    async def find(self, name: str, missing: str = NOT_FOUND) -> Entry:
        """The served model of that name, or else the loaded one that was (``NO_FILES``).

        Raises ModelNotFoundError with ``missing``, InvalidRequestError.
        """
        entry = (await asyncio.to_thread(self.catalog.find, name) or self._left_behind(name)) if name else None
        if entry is None:
            raise ModelNotFoundError(missing.format(name), param="model")
        return entry

    def acquire(
        self, entry: Entry, loading: Mapping[str, Any], keep_alive_s: float | None
    ) -> AbstractAsyncContextManager[RunningModel]:
        """The model, loaded and held for the time of the context.

        Raises what the scheduler raises, and ModelNotFoundError for one that can only be unloaded.
        """
        if entry.stamp == NO_FILES:
            raise ModelNotFoundError(NOT_FOUND.format(entry.name), param="model")
        if entry.path not in self._acquired:
            self._forget_unloaded()
        self._acquired[entry.path] = entry
        return self.scheduler.acquire(model_file(entry), LoadOptions(**loading), keep_alive_s)

    async def unload(self, entry: Entry) -> None:
        await self.scheduler.unload(model_file(entry))

    def _left_behind(self, name: str) -> Entry | None:
        wanted = check_name(name).casefold()
        found = (each.model for each in self.scheduler.residents() if each.model.name.casefold() == wanted)
        entry = next((self._acquired.get(model.path) for model in found), None)
        return replace(entry, stamp=NO_FILES) if entry else None

    def _forget_unloaded(self) -> None:
        loaded = {each.model.path for each in self.scheduler.residents()}
        for path in self._acquired.keys() - loaded:
            del self._acquired[path]

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
