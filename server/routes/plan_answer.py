"""A plan as JSON: what ``/api/plan`` answers and ``shale plan`` draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scheduler.gpu import GPU
from scheduler.kv_cache_type import written
from scheduler.options import LoadOptions, load_notes
from scheduler.plan import Plan, layout_notes
from scheduler.report import device_rows, layer_rows, vram_bytes
from scheduler.sizes import human_bytes
from scheduler.system_memory import SystemMemory

WAITING_NOTE = "other loads are under way: this is a plan for what they leave"


def plan_answer(
    model: str, options: LoadOptions, plan: Plan, names: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, Any]:
    """``devices`` is the list that ``/api/ps`` has for the model once it is loaded so.

    ``names`` are those of the loaded models, for what would be unloaded.
    """
    request, memory = plan.request, plan.memory
    return {
        "model": model,
        "num_ctx": request.num_ctx,
        "num_parallel": request.num_parallel,
        "num_batch": request.num_batch,
        "kv_cache_type": written(request.kv_cache_type),
        "fits_wholly": plan.is_whole,
        "num_layers": len(memory.cpu.weights),
        "num_layers_on_gpu": sum(len(share.layers) for share in plan.layout),
        "trained_num_ctx": plan.trained_num_ctx,
        "max_num_ctx": plan.max_num_ctx,
        "size": memory.total_bytes,
        "size_vram": vram_bytes(memory),
        "devices": device_rows(memory, plan.layout),
        "layers": layer_rows(memory, plan.layout),
        "machine": [_system(plan.machine.system), *(_gpu(gpu) for gpu in plan.machine.gpus)],
        "notes": [*_load_notes(plan, options), *_room_notes(plan, names), *_minimum_notes(plan)],
    }


def _load_notes(plan: Plan, options: LoadOptions) -> tuple[str, ...]:
    notes = load_notes(options, plan.trained_num_ctx, plan.request.num_ctx, plan.request.num_parallel)
    return *notes, *layout_notes(options, plan.memory, plan.layout)


def _room_notes(plan: Plan, names: Mapping[Path, str]) -> list[str]:
    unloads = [f"unloads {names.get(path, path.stem)}" for path in plan.unloads]
    return [*unloads, WAITING_NOTE] if plan.is_waiting else unloads


def _minimum_notes(plan: Plan) -> list[str]:
    minimum = max((gpu.minimum_bytes for gpu in plan.machine.gpus), default=0)
    return [f"{human_bytes(minimum)} of each GPU are left to its driver"] if minimum else []


def _system(system: SystemMemory) -> dict[str, Any]:
    sizes = {"total_bytes": system.total_bytes, "free_bytes": system.free_bytes}
    return {"id": "cpu", "library": "cpu", "name": "CPU", **sizes, "minimum_bytes": 0}


def _gpu(gpu: GPU) -> dict[str, Any]:
    sizes = {"total_bytes": gpu.total_bytes, "free_bytes": gpu.free_bytes, "minimum_bytes": gpu.minimum_bytes}
    return {"id": gpu.id, "library": gpu.library, "name": gpu.name, **sizes}


def device_list(system: SystemMemory, gpus: tuple[GPU, ...]) -> list[dict[str, Any]]:
    """What ``/api/devices`` answers; ``reason`` is empty for a device that can be used."""
    facts = [
        {"compute_capability": gpu.compute_capability, "pci_id": gpu.pci_id, "is_integrated": gpu.is_integrated}
        for gpu in gpus
    ]
    return [
        {**_system(system), "usable": True, "reason": ""},
        *(
            {**_gpu(gpu), **more, "usable": gpu.is_usable, "reason": gpu.reason}
            for gpu, more in zip(gpus, facts, strict=True)
        ),
    ]
