"""The writer against the reader, and what it refuses to write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runner.gguf import open_gguf
from tools.gguf_writer import Tensor, write_gguf


def test_tensors_may_come_in_chunks(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b"\x01" * 100, b"\x02" * 28)

    tensors = [Tensor("a", "F32", (32,), chunks), Tensor("b", "F16", (3, 2), np.ones((2, 3), np.float16))]
    with open_gguf(write_gguf(tmp_path / "m.gguf", {}, tensors)) as file:
        assert file.data("a").tolist() == [1] * 100 + [2] * 28
        assert file.data("b").view(np.float16).tolist() == [1.0] * 6


def test_a_tensor_without_data_is_a_hole_even_at_the_end(tmp_path: Path) -> None:
    tensors = [
        Tensor("a", "F32", (1 << 20,)),
        Tensor("b", "F32", (2,), np.ones(2, np.float32)),
        Tensor("c", "F32", (9,)),
    ]
    with open_gguf(write_gguf(tmp_path / "m.gguf", {}, tensors)) as file:
        assert file.data("b").view(np.float32).tolist() == [1, 1]
        assert not file.data("a").any()
        assert not file.data("c").any()


@pytest.mark.parametrize("data", [b"\0" * 15, b"\0" * 17])
def test_data_of_the_wrong_size_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=f"{len(data)} bytes of data, its shape takes 16"):
        write_gguf(tmp_path / "m.gguf", {}, [Tensor("a", "F32", (4,), data)])


@pytest.mark.parametrize(
    ("metadata", "message"), [({"general.alignment": 64}, "is an argument"), ({"a": 2**64}, "fits no integer type")]
)
def test_metadata_that_cannot_be_written_is_refused(tmp_path: Path, metadata: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "m.gguf", metadata, [])
