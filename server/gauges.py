"""What is true at the moment of a scrape: which models are loaded, and who holds which bytes.

    shale_models{state}                               models that are loading, ready or stopping
    shale_models_loaded                               ready ones
    shale_model_bytes{model,device,library,kind}      of models that are loaded: weights, cache, graph
    shale_device_bytes{device,library,kind}           the same, all models together; and free, as the system says

Input weights count as weights on the CPU. A device without models holds 0, which is not the same as no device.
What the models' engines tell (``server.engine_metrics``) comes last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from runner.protocol import RunnerStats
from scheduler.devices import Machine
from scheduler.report import device_rows
from scheduler.scheduler import ModelState, RunningModel
from server.engine_metrics import engine_metrics

STATES = ("loading", "ready", "stopping")
KINDS = ("weights", "cache", "graph")

Place = tuple[str, str, str]  # device, library, kind


@dataclass(frozen=True, slots=True)
class Scrape:
    """A collector for one scrape: all counters of ``registry``, then the gauges of one moment."""

    registry: CollectorRegistry
    models: Sequence[ModelState]
    machine: Machine
    stats: Mapping[str, RunnerStats] = field(default_factory=dict)  # of models whose runner answered

    def collect(self) -> Iterator[Metric]:
        yield from self.registry.collect()
        yield from _models(self.models)
        yield from _bytes(self.models, self.machine)
        yield from engine_metrics(self.stats)


def _models(models: Sequence[ModelState]) -> Iterator[Metric]:
    numbers = Counter(each.state for each in models)
    family = GaugeMetricFamily("shale_models", "Models by state", labels=["state"])
    for state in STATES:
        family.add_metric([state], numbers[state])
    yield family
    yield GaugeMetricFamily("shale_models_loaded", "Models that are ready", numbers["ready"])


def _bytes(models: Sequence[ModelState], machine: Machine) -> Iterator[Metric]:
    each_model = GaugeMetricFamily(
        "shale_model_bytes", "Memory of loaded models", labels=["model", "device", "library", "kind"]
    )
    on_device: Counter[Place] = Counter(_nothing(machine))
    for model in models:
        if model.running is not None:
            for place, held in _places(model.running):
                on_device[place] += held
                each_model.add_metric([model.model.name, *place], held)
    on_device.update(_free(machine))
    devices = GaugeMetricFamily("shale_device_bytes", "Memory of devices", labels=["device", "library", "kind"])
    for place, held in on_device.items():
        devices.add_metric(place, held)
    yield each_model
    yield devices


def _places(running: RunningModel) -> Iterator[tuple[Place, int]]:
    for row in device_rows(running.memory, running.layout):
        held = (row["weights_bytes"] + row["input_weights_bytes"], row["cache_bytes"], row["graph_bytes"])
        for kind, number in zip(KINDS, held, strict=True):
            yield (row["id"], row["library"], kind), number


def _names(machine: Machine) -> list[tuple[str, str]]:
    return [("cpu", "cpu"), *((gpu.id, gpu.library) for gpu in machine.gpus)]


def _nothing(machine: Machine) -> dict[Place, int]:
    return {(*name, kind): 0 for name in _names(machine) for kind in KINDS}


def _free(machine: Machine) -> dict[Place, int]:
    free = [machine.system.free_bytes, *(gpu.free_bytes for gpu in machine.gpus)]
    return {(*name, "free"): held for name, held in zip(_names(machine), free, strict=True)}
