"""Estimates of real files: the demo model, and files that are none."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from runner.footprint import footprint
from runner.gguf import open_gguf
from runner.protocol import LoadRequest, Operation
from scheduler import estimate as module
from scheduler.errors import ModelFileError
from scheduler.estimate import Estimator

FIT = LoadRequest(operation=Operation.FIT, num_ctx=256)


def test_header(demo_model):
    header = Estimator().header(demo_model)
    assert header.architecture == "llama"
    assert header.context_length == 2048


def test_memory_is_the_footprint(demo_model):
    with open_gguf(demo_model) as gguf:
        expected = footprint(gguf, FIT)
    assert Estimator().memory(demo_model, FIT) == expected


def test_the_operation_makes_no_difference(demo_model):
    estimator = Estimator()
    commit = FIT.model_copy(update={"operation": Operation.COMMIT})
    assert estimator.memory(demo_model, FIT) is estimator.memory(demo_model, commit)


def test_a_file_that_was_seen_is_not_read_again(demo_model, monkeypatch):
    estimator = Estimator()
    estimator.memory(demo_model, FIT)
    monkeypatch.setattr(module, "open_gguf", None)
    begin = time.perf_counter()
    estimator.header(demo_model)
    estimator.memory(demo_model, FIT)
    assert time.perf_counter() - begin < 0.002


def test_a_file_that_changed_is_read_again(demo_model, tmp_path):
    path = tmp_path / "m.gguf"
    shutil.copy(demo_model, path)
    estimator = Estimator()
    estimator.header(path)
    path.write_bytes(b"GGUF, once upon a time")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFileError):
        estimator.header(path)


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
