"""What the machine has and what would fit on it: ``GET /api/devices``, ``POST /api/plan``. Ollama has neither."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from scheduler.hypothetical import hypothetical_machine
from scheduler.options import LoadOptions
from scheduler.scheduler import Scheduler
from server.routes.body import read_request
from server.routes.plan_answer import device_list, plan_answer
from server.routes.reply import json_response, watched
from server.routes.service import model_file, service_of
from server.schemas.plan import PlanRequest

router = APIRouter()

LOADED_NOTE = "the model is loaded now; this is a plan for loading it anew"


@router.get("/api/devices")
async def devices(request: Request) -> Response:
    """Every device, also those that cannot be used, with the reason."""
    scheduler = service_of(request).scheduler
    return json_response({"devices": await watched(request, _devices(scheduler))})


@router.post("/api/plan")
async def plan(request: Request) -> Response:
    """What loading a model would come to. Nothing is loaded; only the file's header is read."""
    service = service_of(request)
    body = await read_request(request, PlanRequest)
    entry = await service.find(body.model)
    options = LoadOptions(**body.loading)
    scheduler = service.scheduler
    machine = None
    if body.devices is not None or body.system_memory is not None:
        real = await watched(request, scheduler.machine())
        machine = hypothetical_machine(body.devices, body.system_memory, real)
    found = await watched(request, scheduler.plan(model_file(entry), options, machine))
    loaded = {each.model.path: each.model.name for each in scheduler.residents()}
    answer = plan_answer(entry.name, options, found, loaded)
    if machine is None and entry.path in loaded:
        answer["notes"].append(LOADED_NOTE)
    return json_response(answer)


async def _devices(scheduler: Scheduler) -> list[dict[str, Any]]:
    machine = await scheduler.machine()
    return device_list(machine.system, await scheduler.gpus())
