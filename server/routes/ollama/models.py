"""The server itself and its models: ``/``, ``/api/version``, ``/api/tags``, ``/api/show``, ``/api/ps``, ``/health``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from runner.gguf import GGUFFile, StringArray, open_gguf
from runner.protocol import RunnerStats
from scheduler.report import device_rows, vram_bytes
from scheduler.scheduler import ModelState, RunningModel
from scheduler.stats import poll
from server import version
from server.catalog import Entry, clean_text, human_count
from server.errors import ModelNotFoundError
from server.routes.body import read_request
from server.routes.ollama.answers import rfc3339
from server.routes.reply import json_response, watched
from server.routes.service import service_of
from server.schemas.ollama import ShowRequest

router = APIRouter()

GET_OR_HEAD = ["GET", "HEAD"]


@router.api_route("/", methods=GET_OR_HEAD)
async def root() -> Response:
    return PlainTextResponse("Ollama is running")


@router.api_route("/health", methods=GET_OR_HEAD)
async def health() -> Response:
    """For load balancers and container health checks: the server answers."""
    return json_response({"status": "ok"})


@router.api_route("/api/version", methods=GET_OR_HEAD)
async def api_version() -> Response:
    return json_response({"version": version()})


@router.api_route("/api/tags", methods=GET_OR_HEAD)
async def tags(request: Request) -> Response:
    entries = await asyncio.to_thread(service_of(request).catalog.entries)
    return json_response({"models": [_tag(entry) for entry in entries]})


@router.api_route("/api/ps", methods=GET_OR_HEAD)
async def ps(request: Request) -> Response:
    """Models that are loading, loaded or stopping, the one that stays longest first."""
    service = service_of(request)
    known = {entry.digest: entry for entry in await asyncio.to_thread(service.catalog.entries)}
    stats = await poll(service.scheduler.residents())
    residents = service.scheduler.residents()
    rows = [_resident(each, known.get(each.model.digest), stats.get(each.model.name)) for each in residents]
    return json_response({"models": rows})


@router.post("/api/show")
async def show(request: Request) -> Response:
    service = service_of(request)
    body = await read_request(request, ShowRequest)
    entry = await service.find(body.model or body.name)
    return json_response(await watched(request, _show_in_thread(entry, bool(body.verbose))))


async def _show_in_thread(entry: Entry, verbose: bool) -> dict[str, Any]:
    return await asyncio.to_thread(_show, entry, verbose)


def details(entry: Entry) -> dict[str, Any]:
    facts = entry.facts
    return {
        "parent_model": "",
        "format": "gguf",
        "family": facts.architecture,
        "families": [facts.architecture],
        "parameter_size": human_count(facts.num_parameters),
        "quantization_level": facts.quantization,
    }


def _tag(entry: Entry) -> dict[str, Any]:
    sizes = {"context_length": entry.facts.context_length, "embedding_length": entry.facts.embedding_length}
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": rfc3339(entry.modified_at),
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": details(entry) | {name: size for name, size in sizes.items() if size},
        "capabilities": entry.facts.capabilities,
    }


def _resident(resident: ModelState, entry: Entry | None, stats: RunnerStats | None) -> dict[str, Any]:
    """What is not known yet of a model that is loading is left out, as Ollama's clients expect of what is empty.

    ``entry`` is None for a model whose file has gone or was replaced meanwhile, ``stats`` where its runner does not
    answer in time.
    """
    answer = {
        "name": resident.model.name,
        "model": resident.model.name,
        "digest": resident.model.digest,
        "details": details(entry) if entry else {},
        "expires_at": rfc3339(resident.expires_at),
        "state": resident.state,
        "progress": round(resident.progress, 4),
    }
    if resident.num_ctx is not None:
        answer["context_length"] = resident.num_ctx
    if resident.running is None:
        return answer
    return answer | _measured(resident.running) | (_engine(stats) if stats else {})


def _measured(running: RunningModel) -> dict[str, Any]:
    return {
        "size": running.memory.total_bytes,
        "size_vram": vram_bytes(running.memory),
        "devices": device_rows(running.memory, running.layout),
    }


def _engine(stats: RunnerStats) -> dict[str, Any]:
    """What the engine is doing. A model that needs no cache (bidirectional attention) has no ``cache``."""
    sequences = {"active": stats.num_active, "waiting": stats.num_waiting, "parallel": stats.num_parallel}
    cache = stats.cache
    if not cache.num_cells:
        return {"sequences": sequences}
    cells = {
        "cells": cache.num_cells,
        "used": cache.num_used,
        "free": cache.num_cells - cache.num_used,
        "shared": cache.num_shared,
        "cached": cache.num_cached,
        "fragmentation": round(cache.fragmentation, 4),
        "defragmentations": cache.num_defragmentations,
        "moved_bytes": cache.moved_bytes,
        "prefixes": cache.num_prefixes,
        "prefix_hits": cache.num_hits,
        "prefix_misses": cache.num_misses,
        "reused_tokens": cache.num_reused_tokens,
    }
    return {"sequences": sequences, "cache": cells}


def _show(entry: Entry, verbose: bool) -> dict[str, Any]:
    try:
        with open_gguf(entry.path) as file:
            model_info, tensors = _model_info(file, verbose), _tensors(file)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"model '{entry.name}' not found", param="model") from error
    return {
        "license": entry.facts.license,
        "modelfile": f"FROM {entry.path}\n",
        "parameters": "",
        "template": entry.facts.chat_template or "",
        "system": "",
        "details": details(entry),
        "model_info": model_info,
        "tensors": tensors,
        "capabilities": entry.facts.capabilities,
        "modified_at": rfc3339(entry.modified_at),
    }


def _model_info(file: GGUFFile, verbose: bool) -> dict[str, Any]:
    """The metadata; arrays are null unless ``verbose``, for a vocabulary has megabytes."""
    info: dict[str, Any] = {clean_text(key): _plain(value, verbose) for key, value in file.metadata.items()}
    info.setdefault("general.parameter_count", sum(int(np.prod(t.shape)) for t in file.tensors.values()))
    return info


def _plain(value: Any, verbose: bool) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, (np.ndarray, StringArray)) and not verbose:
        return None
    if isinstance(value, StringArray):
        return value.texts()
    return value.tolist() if isinstance(value, np.ndarray) else value


def _tensors(file: GGUFFile) -> list[Mapping[str, Any]]:
    return [
        {"name": clean_text(tensor.name), "type": tensor.type.name, "shape": list(tensor.shape)}
        for tensor in file.tensors.values()
    ]
