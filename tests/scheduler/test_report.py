from __future__ import annotations

from runner.protocol import DeviceLayers, DeviceMemory, Memory
from scheduler.report import device_rows, layer_rows, vram_bytes


def device(name, weights, cache, graph):
    return DeviceMemory(id=name, library="cpu" if name == "cpu" else "sim", weights=weights, cache=cache, graph=graph)


SPLIT = Memory(
    input_weights=1000,
    cpu=device("cpu", (10, 0, 0), (1, 0, 0), 100),
    gpus=(device("a", (0, 20, 30), (0, 2, 0), 200), device("b", (0, 0, 0), (0, 0, 0), 0)),
)
LAYOUT = (DeviceLayers(id="a", library="sim", layers=(1, 2)),)


def test_a_row_for_each_device_the_cpu_first():
    cpu, first, second = device_rows(SPLIT, LAYOUT)
    assert cpu == {
        "id": "cpu", "library": "cpu", "layers": [0], "weights_bytes": 10, "cache_bytes": 1, "graph_bytes": 100,
        "input_weights_bytes": 1000, "total_bytes": 1111,
    }  # fmt: skip
    assert (first["id"], first["layers"], first["total_bytes"], first["input_weights_bytes"]) == ("a", [1, 2], 252, 0)
    assert (second["id"], second["layers"], second["total_bytes"]) == ("b", [], 0)


def test_the_totals_add_up():
    assert sum(row["total_bytes"] for row in device_rows(SPLIT, LAYOUT)) == SPLIT.total_bytes


def test_layer_rows():
    assert layer_rows(SPLIT, LAYOUT) == [
        {"layer": 0, "device": "cpu", "weights_bytes": 10, "cache_bytes": 1},
        {"layer": 1, "device": "a", "weights_bytes": 20, "cache_bytes": 2},
        {"layer": 2, "device": "a", "weights_bytes": 30, "cache_bytes": 0},
    ]


def test_what_is_on_gpus_wholly_counts_wholly():
    assert vram_bytes(SPLIT) == SPLIT.gpu_bytes == 252
    whole = SPLIT.model_copy(update={"cpu": device("cpu", (0, 0, 0), (0, 0, 0), 100)})
    assert vram_bytes(whole) == whole.total_bytes == 1352
    cpu_only = Memory(input_weights=1000, cpu=device("cpu", (10, 20, 30), (0, 0, 0), 5))
    assert vram_bytes(cpu_only) == 0
