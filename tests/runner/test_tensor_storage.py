"""How tensors lie in memory: as large as the kernels ask for, known by name, of a type that there are kernels for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.ggml_types import BY_NAME
from runner.gguf import open_gguf
from runner.kernels import _cpu
from runner.model.spec import ModelError, read_spec
from runner.tensor_storage import NATIVE_TYPES, converted_tensors, packed_bytes, stored_tensors, stored_type


@pytest.mark.parametrize("name", sorted(NATIVE_TYPES))
@pytest.mark.parametrize(("rows", "cols"), [(1, 256), (16, 512), (37, 768)])
def test_packed_bytes_is_what_the_kernels_ask_for(name: str, rows: int, cols: int) -> None:
    type_ = BY_NAME[name]
    assert packed_bytes(type_, rows, cols) == _cpu.packed_bytes(type_.id, rows, cols)


@pytest.mark.parametrize("cols", [32, 96, 160])
def test_packed_bytes_of_half_a_unit(cols: int) -> None:
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"):
        assert packed_bytes(BY_NAME[name], 16, cols) == _cpu.packed_bytes(BY_NAME[name].id, 16, cols)


def test_a_packed_q4_0_matrix_by_hand() -> None:
    # 37 rows are 3 panels; 128 columns are 4 blocks of 18 bytes for each of 16 rows.
    assert packed_bytes(BY_NAME["Q4_0"], 37, 128) == 3 * 16 * 4 * 18


def test_types_without_a_kernel_become_bfloat16_and_the_footprint_says_so() -> None:
    assert stored_type(BY_NAME["IQ2_XXS"]).name == "BF16"
    assert stored_type(BY_NAME["Q4_K"]).name == "Q4_K"


def test_unknown_tensors_are_refused_by_name(tiny_models: Callable[..., Path]) -> None:
    with open_gguf(tiny_models("llama")) as gguf:
        odd = replace(gguf.tensors["blk.0.attn_k.weight"], name="blk.0.attn_k.oops")
        file = SimpleNamespace(tensors={**gguf.tensors, odd.name: odd})
        with pytest.raises(ModelError, match=r"attn_k\.oops"):
            stored_tensors(file, read_spec(gguf))  # type: ignore[arg-type]


def test_converted_tensors_are_those_without_a_native_type(tiny_models: Callable[..., Path]) -> None:
    with open_gguf(tiny_models("llama", "Q4_0")) as gguf:
        spec = read_spec(gguf)
        assert converted_tensors(gguf, spec) == ()
        name = "blk.0.ffn_up.weight"
        strange = replace(gguf.tensors[name], type=BY_NAME["IQ2_XXS"])
        file = SimpleNamespace(tensors={**gguf.tensors, name: strange})
        (found,) = converted_tensors(file, spec)  # type: ignore[arg-type]
    assert (found.name, found.type.name) == (name, "BF16")
