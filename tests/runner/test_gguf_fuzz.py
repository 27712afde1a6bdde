"""Mutated files: each opens, with every tensor inside the file, or ends in GGUFError, soon and without much memory."""

from __future__ import annotations

import contextlib
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.gguf import GGUFError, StringArray, open_gguf
from tools.gguf_writer import Tensor, write_gguf, write_split_gguf

NUM_INPUTS_EACH = 8_000
MAX_SECONDS = 0.05  # CPU time of one input; the mean is 0.2 ms
MAX_PEAK_BYTES = 256 << 10  # for files of some kilobytes

_INTERESTING = (0, 1, 2, 3, 7, 8, 9, 31, 64, 65, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
_INTERESTING += (2**40, 2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)


def _every_value() -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "a.u8": np.uint8(1),
        "a.i16": np.int16(-1),
        "a.i64": -(2**40),
        "a.f64": np.float64(0.5),
        "a.bool": True,
        "a.text": "ein Text – mit UTF-8",
        "a.numbers": np.arange(9, dtype=np.float32),
        "a.flags": [True, False],
        "a.strings": [b"", b"ab", b"\xff", b"x" * 260],
    }


def _tensors() -> list[Tensor]:
    return [
        Tensor("token_embd.weight", "Q8_0", (32, 4), bytes(136)),
        Tensor("blk.0.ffn_down_exps.weight", "Q4_0", (32, 2, 2), bytes(72)),
        Tensor("output_norm.weight", "F32", (8,), bytes(32)),
    ]


def _values(folder: Path) -> Path:
    return write_gguf(folder / "values.gguf", _every_value(), _tensors(), alignment=64)


def _vocabulary(folder: Path) -> Path:
    tokens = [f"t{i}" for i in range(300)]
    types = np.ones(300, np.int32)
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": tokens}
    return write_gguf(folder / "vocabulary.gguf", metadata, _tensors()[:1])


def _many_tensors(folder: Path) -> Path:
    tensors = [Tensor(f"blk.{i}.attn_q.weight", "F16", (8, 2), bytes(32)) for i in range(30)]
    return write_gguf(folder / "tensors.gguf", {"general.architecture": "x"}, tensors, version=2)


def _shard(folder: Path) -> Path:
    return write_split_gguf(folder / "set.gguf", _every_value(), _tensors(), num_shards=3, alignment=64)[0]


def _mutated(good: bytes, chance: random.Random) -> bytes:
    """One to three mutations of a good file."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if data:
            chance.choice(_MUTATIONS)(data, chance)
    return bytes(data)


def _flip_bit(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set_byte(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.choice((0, 1, 7, 8, 9, 13, 127, 128, 255))


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _splice(data: bytearray, chance: random.Random) -> None:
    start, size, target = chance.randrange(len(data)), chance.randrange(1, 64), chance.randrange(len(data))
    data[target : target + chance.choice((0, size))] = data[start : start + size]


def _delete(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.choice((1, 4, 8, 40))]


def _attack_field(data: bytearray, chance: random.Random) -> None:
    """Overwrites four or eight bytes that look like a count, a length, a type or an offset."""
    fields = _small_fields(data)
    if len(fields):
        at = int(fields[chance.randrange(len(fields))])
        value = chance.choice((*_INTERESTING, len(data), len(data) - at, len(data) - at - 8, chance.randrange(2**64)))
        size = chance.choice((4, 8, 8))
        data[at : at + size] = struct.pack("<Q", value)[:size]


def _small_fields(data: bytearray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where three zeros follow a byte and eight can be written: every small integer, whatever its width."""
    zero = np.frombuffer(bytes(data), np.uint8) == 0
    return np.flatnonzero(zero[1:-7] & zero[2:-6] & zero[3:-5])


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bit,
    _set_byte,
    _truncate,
    _splice,
    _delete,
    _attack_field,
    _attack_field,
    _attack_field,
)


def _overwrite(path: Path, data: bytes) -> None:
    """Replaces what is in a file. Cutting it to nothing first would make some file systems wait for the disk."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def _use(path: Path) -> None:
    """Opens a file and touches all that it promises."""
    with open_gguf(path) as file:
        for name, info in file.tensors.items():
            data = file.data(name)
            assert len(data) == info.nbytes > 0
            assert 0 <= info.offset <= info.offset + info.nbytes <= file.shards[info.shard].stat().st_size
            data.sum()
        for shard in range(len(file.shards)):
            placed = sorted((i.offset, i.offset + i.nbytes) for i in file.tensors.values() if i.shard == shard)
            assert all(before[1] <= after[0] for before, after in pairwise(placed))
        for value in file.metadata.values():
            if isinstance(value, StringArray):
                assert len(value.texts()) == len(value)
            elif isinstance(value, np.ndarray):
                value.tolist()


def _timed_use(path: Path) -> tuple[float, bool]:
    """Processor time, and whether it was refused."""
    start, is_refused = time.thread_time(), False
    try:
        _use(path)
    except GGUFError:
        is_refused = True
    return time.thread_time() - start, is_refused


@pytest.mark.parametrize("make", [_values, _vocabulary, _many_tensors, _shard], ids=lambda f: f.__name__[1:])
def test_a_mutated_file_opens_safely_or_ends_in_one_error(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    good = path.read_bytes()
    chance = random.Random(make.__name__)
    num_inputs = num_refused = 0
    slowest = 0.0
    for _ in range(NUM_INPUTS_EACH):
        _overwrite(path, _mutated(good, chance))
        seconds, is_refused = _timed_use(path)
        if seconds >= MAX_SECONDS:  # the machine may have been at fault
            seconds = min(_timed_use(path)[0] for _ in range(10))
        slowest = max(slowest, seconds)
        num_refused += is_refused
        num_inputs += 1
    assert num_inputs == NUM_INPUTS_EACH
    assert 4 * NUM_INPUTS_EACH >= 20_000
    assert slowest < MAX_SECONDS
    assert num_inputs // 4 < num_refused < num_inputs  # both ends of the promise were reached


@pytest.mark.parametrize("make", [_values, _vocabulary, _many_tensors], ids=lambda f: f.__name__[1:])
def test_a_mutated_file_never_costs_much_memory(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    good = path.read_bytes()
    chance = random.Random(make.__name__ + " memory")
    tracemalloc.start()
    try:
        for _ in range(NUM_INPUTS_EACH // 10):
            _overwrite(path, _mutated(good, chance))
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with contextlib.suppress(GGUFError):
                open_gguf(path).close()
            assert tracemalloc.get_traced_memory()[1] - before < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [_values, _vocabulary, _many_tensors, _shard], ids=lambda f: f.__name__[1:])
def test_the_files_that_are_mutated_are_good(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    _use(make(tmp_path))
