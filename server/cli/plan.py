"""``shale plan``: where a model would go, before it is loaded, as bars and numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler.devices import Devices
from scheduler.errors import SchedulerError
from scheduler.estimate import Estimator
from scheduler.hypothetical import hypothetical_machine
from scheduler.options import LoadOptions
from scheduler.plan import make_plan
from scheduler.rehearsal import Case
from scheduler.sizes import human_bytes
from server.app import scheduler_settings
from server.cli.client import Client, CommandError
from server.routes.plan_answer import plan_answer
from server.schemas.base import sentence_of
from server.schemas.plan import PlanRequest
from server.settings import Settings

BAR_WIDTH = 48

PARTS = (("weights", "█", "cyan"), ("cache", "▓", "magenta"), ("graph", "▒", "yellow"), ("driver", "░", "red"))
FREE = ("free", "·", "bright_black")


def ask(model: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The plan for a model of the running server, or for a GGUF file, which needs no server. Raises CommandError."""
    path = Path(model)
    if path.suffix == ".gguf" or path.is_file():
        return plan_file(path, _request(path.name, wanted))
    return Client.of_environment().post("/api/plan", {"model": model, **wanted})


def _request(model: str, wanted: Mapping[str, Any]) -> PlanRequest:
    try:
        return PlanRequest(model=model, **wanted)
    except ValidationError as error:
        raise CommandError(sentence_of(error)) from error


def plan_file(path: Path, body: PlanRequest) -> dict[str, Any]:
    """Reads the header, here. Raises CommandError."""
    settings = scheduler_settings(Settings.from_environment(os.environ))
    options = LoadOptions(**body.loading)
    try:
        devices = Devices(settings.devices)
        try:
            machine = hypothetical_machine(body.devices, body.system_memory, devices.machine())
            return plan_answer(path.name, options, make_plan(Estimator(), Case(path, options, settings, machine)))
        finally:
            devices.close()
    except SchedulerError as error:
        raise CommandError(str(error)) from error


# ---- drawing -----------------------------------------------------------------------------------


def draw(answer: Mapping[str, Any], console: Console) -> None:
    """Bars of all devices, then the numbers."""
    console.print(Text(headline(answer)), soft_wrap=True)
    console.print()
    rows = {(row["id"], row["library"]): row for row in answer["devices"]}
    for device in answer["machine"]:
        console.print(_bar(device, rows[device["id"], device["library"]]))
    console.print(_legend(answer))
    console.print()
    console.print(_table(answer["devices"]))
    console.print()
    for line in sentences(answer):
        console.print(Text(line), soft_wrap=True)


def headline(answer: Mapping[str, Any]) -> str:
    parallel = answer["num_parallel"]
    sequences = "1 sequence" if parallel == 1 else f"{parallel} sequences"
    cache = f"num_ctx {answer['num_ctx']}, {sequences}, KV cache {answer['kv_cache_type']}"
    return f"{answer['model']}: {human_bytes(answer['size'])} with {cache}"


def sentences(answer: Mapping[str, Any]) -> list[str]:
    """What the numbers come to."""
    return [_where(answer), _per_layer(answer["layers"]), _context(answer), *answer["notes"]]


def _where(answer: Mapping[str, Any]) -> str:
    total, on_gpu = answer["num_layers"], answer["num_layers_on_gpu"]
    if len(answer["machine"]) == 1:
        return f"all {total} layers are on the CPU: there is no GPU"
    cpu = answer["devices"][0]
    if on_gpu == total:
        embedding = human_bytes(cpu["input_weights_bytes"])
        return f"all {total} layers are on GPUs; the CPU keeps the token embedding ({embedding})"
    layers = spans(cpu["layers"])
    size = human_bytes(cpu["total_bytes"])
    return f"{on_gpu} of {total} layers on GPUs; the CPU keeps layers {layers} and the token embedding ({size})"


def _per_layer(layers: Sequence[Mapping[str, Any]]) -> str:
    *blocks, output = layers
    weights = [layer["weights_bytes"] for layer in blocks]
    caches = [layer["cache_bytes"] for layer in blocks]
    return (
        f"a layer has {_range(weights)} of weights and {_range(caches)} of cache; "
        f"the output layer (number {output['layer']}) {human_bytes(output['weights_bytes'])}"
    )


def _range(sizes: Sequence[int]) -> str:
    low, high = human_bytes(min(sizes)), human_bytes(max(sizes))
    return low if low == high else f"{low} to {high}"


def _context(answer: Mapping[str, Any]) -> str:
    largest, trained = answer["max_num_ctx"], answer["trained_num_ctx"]
    if largest is None:
        return f"the model does not fit wholly with any context (it was trained for {trained} tokens)"
    whole = " (all that the model was trained for)" if largest == trained else f" of the {trained} it was trained for"
    return f"the largest context with which it fits wholly is {largest} tokens{whole}"


def spans(layers: Sequence[int]) -> str:
    """``[0, 1, 2, 7]`` → ``0-2, 7``."""
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _bar(device: Mapping[str, Any], row: Mapping[str, Any]) -> Text:
    taken, free = row["total_bytes"], device["free_bytes"]
    sizes = (row["weights_bytes"] + row["input_weights_bytes"], row["cache_bytes"], row["graph_bytes"])
    parts = [*sizes, device["minimum_bytes"]]
    bar = Text(f"{device['id']:<8}")
    widths = cells(parts, max(free, sum(parts)), BAR_WIDTH)
    for (_, sign, colour), width in zip(PARTS, widths, strict=True):
        bar.append(sign * width, colour)
    bar.append(FREE[1] * (BAR_WIDTH - sum(widths)), FREE[2])
    return bar.append(f"  {human_bytes(taken)} of {human_bytes(free)}")


def cells(parts: Sequence[int], whole: int, width: int) -> list[int]:
    """How many of ``width`` cells each part gets. Running sums are rounded, so the bar's length is right as well."""
    edges, total = [0], 0
    for part in parts:
        total += part
        edges.append(round(width * total / whole) if whole else 0)
    return [edge - before for before, edge in pairwise(edges)]


def _legend(answer: Mapping[str, Any]) -> Text:
    has_driver = any(device["minimum_bytes"] for device in answer["machine"])
    legend = Text(" " * 8)
    for name, sign, colour in (*PARTS, FREE):
        if name != "driver" or has_driver:
            legend.append(sign, colour).append(f" {name}   ")
    legend.rstrip()
    return legend


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in ("DEVICE", "LAYERS"):
        table.add_column(name)
    for name in ("WEIGHTS", "CACHE", "GRAPH", "INPUT", "TOTAL"):
        table.add_column(name, justify="right")
    for row in rows:
        kinds = ("weights", "cache", "graph", "input_weights", "total")
        sizes = [human_bytes(row[f"{kind}_bytes"]) for kind in kinds]
        table.add_row(row["id"], spans(row["layers"]) or "-", *sizes)
    return table
