"""Estimates of real files: the demo model, tiny and huge ones, and files that are none."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace

import pytest

from runner.cache_types import CACHE_TYPES
from runner.footprint import DeviceName, footprint
from runner.gguf import StringArray, open_gguf
from runner.protocol import DeviceLayers, LoadRequest, Operation
from scheduler import estimate as module
from scheduler.errors import ModelFileError
from scheduler.estimate import Estimator
from tools.check_estimate import Comparison, compare
from tools.gguf_writer import Tensor, write_split_gguf
from tools.make_gguf import RECIPES, SHAPES, write_model
from tools.tiny_models import write_tiny_model

FIT = LoadRequest(operation=Operation.FIT, num_ctx=256)
DEVICES = [DeviceName(name, "sim") for name in "abc"]


def test_header(demo_model):
    header = Estimator().header(demo_model)
    assert header.architecture == "llama"
    assert header.context_length == 2048


def test_memory_is_the_footprint(demo_model):
    with open_gguf(demo_model) as gguf:
        expected = footprint(gguf, FIT)
    assert Estimator().memory(demo_model, FIT) == expected


def test_memory_on_several_devices(demo_model):
    layout = (DeviceLayers(id="a", library="sim", layers=(0, 1)), DeviceLayers(id="b", library="sim", layers=(6,)))
    memory = Estimator().memory(demo_model, FIT.model_copy(update={"layout": layout}), DEVICES)
    assert [gpu.id for gpu in memory.gpus] == ["a", "b", "c"]
    assert [bool(gpu.total_bytes) for gpu in memory.gpus] == [True, True, False]
    assert [layer for layer, size in enumerate(memory.gpus[0].weights) if size] == [0, 1]
    assert memory.cpu.weights[6] == memory.gpus[1].cache[6] == 0


def test_a_layout_that_cannot_be(demo_model):
    layout = (DeviceLayers(id="d", library="sim", layers=(0,)),)
    with pytest.raises(ModelFileError, match="the layout names d; there are cpu, a, b, c"):
        Estimator().memory(demo_model, FIT.model_copy(update={"layout": layout}), DEVICES)


def test_a_model_that_no_runner_takes_has_a_header_and_is_refused_each_time(tmp_path, demo_model):
    path = tmp_path / "m.gguf"
    path.write_bytes(demo_model.read_bytes().replace(b"llama", b"abacu"))
    estimator = Estimator()
    assert estimator.header(path).architecture == "abacu"
    for _ in range(2):
        with pytest.raises(ModelFileError, match="architecture 'abacu' is not known; known are"):
            estimator.memory(path, FIT)


@pytest.fixture(scope="module")
def large_header(tmp_path_factory):
    """1 500 tensors and more, a vocabulary of 128 256."""
    shape = replace(SHAPES["llama-70b"], num_layers=170)
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    return write_model(path, shape, RECIPES["q4_k_m"], header_only=True)


def test_a_large_header_takes_less_than_a_tenth_of_a_second_and_then_next_to_nothing(large_header):
    with open_gguf(large_header) as gguf:
        assert len(gguf.tensors) >= 1500
    estimators = [Estimator() for _ in range(5)]
    assert min(seconds(lambda each=each: each.memory(large_header, FIT, DEVICES)) for each in estimators) < 0.1
    estimator = estimators[0]
    requests = [FIT.model_copy(update={"num_ctx": num_ctx}) for num_ctx in range(100, 110)]
    assert min(seconds(lambda each=each: estimator.memory(large_header, each, DEVICES)) for each in requests) < 0.001


def seconds(work):
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert", "mixtral"])
def test_estimate_and_fit_say_what_alloc_takes(architecture, tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", architecture, "Q8_0")
    found = list(compare(path, contexts=(100,)))
    assert len(found) == len(CACHE_TYPES) ** 2 * 2 * 5  # types of K and V, sequences, layouts
    assert [str(each) for each in found if not each.is_equal] == []
    taken = [sum(each.taken) for each in found if isinstance(each, Comparison)]
    assert min(taken) > 0
    assert len(taken) >= 3 * 3 * 2 * 5  # quantized types are refused for heads that are no multiple of 32


def test_estimate_and_fit_say_what_alloc_takes_for_the_demo_model(demo_model):
    assert all(each.is_equal for each in compare(demo_model, contexts=(100,)))


def test_a_file_that_was_seen_is_not_read_again(demo_model, monkeypatch):
    estimator = Estimator()
    estimator.memory(demo_model, FIT)
    monkeypatch.setattr(module, "open_gguf", None)

    def ask_again():
        estimator.header(demo_model)
        estimator.memory(demo_model, FIT)

    assert min(seconds(ask_again) for _ in range(5)) < 0.002


def test_a_file_that_changed_is_read_again(demo_model, tmp_path):
    path = tmp_path / "m.gguf"
    shutil.copy(demo_model, path)
    estimator = Estimator()
    estimator.header(path)
    path.write_bytes(b"GGUF, once upon a time")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFileError):
        estimator.header(path)


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_change_that_keeps_time_and_size_is_noticed(demo_model, tmp_path, is_replaced):
    path, other = tmp_path / "m.gguf", tmp_path / "other"
    shutil.copy(demo_model, path)
    before = path.stat()
    estimator = Estimator()
    estimator.memory(path, FIT)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # in one tick of the system's clock it could not be told
        target = other if is_replaced else path
        target.write_bytes(b"JUNK" + demo_model.read_bytes()[4:])
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        if is_replaced:
            other.replace(path)
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)
    with pytest.raises(ModelFileError):
        estimator.memory(path, FIT)


def test_every_file_of_a_split_set_is_looked_at(demo_model, tmp_path):
    with open_gguf(demo_model) as gguf:
        tensors = [Tensor(t.name, t.type.name, t.shape, gguf.data(t.name)) for t in gguf.tensors.values()]
        metadata = {key: list(each) if isinstance(each, StringArray) else each for key, each in gguf.metadata.items()}
    shards = write_split_gguf(tmp_path / "m.gguf", metadata, tensors, num_shards=3)
    estimator = Estimator()
    assert estimator.memory(shards[0], FIT) == estimator.memory(demo_model, FIT)
    shards[2].write_bytes(shards[1].read_bytes())
    with pytest.raises(ModelFileError, match=r"the set needs 2, 3"):
        estimator.memory(shards[0], FIT)
    shards[2].unlink()
    with pytest.raises(ModelFileError, match=r"a file of the set is missing"):
        estimator.memory(shards[0], FIT)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" + b"x" * 100])
def test_what_is_not_a_model(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    for ask in (lambda: Estimator().header(path), lambda: Estimator().memory(path, FIT)):
        with pytest.raises(ModelFileError, match=r"^unable to load model: ") as caught:
            ask()
        assert caught.value.status == 500


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelFileError, match=r"No such file"):
        Estimator().header(tmp_path / "none.gguf")


def test_only_so_many_files_are_remembered(demo_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_FILES", 2)
    estimator = Estimator()
    for i in range(4):
        path = tmp_path / f"{i}.gguf"
        path.symlink_to(demo_model)
        estimator.memory(path, FIT)
    assert len(estimator._known) == 2
