"""Opening GGUF files: values, tensors, split sets, and how fast a real vocabulary opens."""

from __future__ import annotations

import lzma
import os
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.gguf import GGUFError, StringArray, open_gguf
from tools.gguf_writer import Tensor, write_gguf, write_split_gguf

_SCALARS: dict[str, Any] = {
    "a.u8": np.uint8(200),
    "a.i8": np.int8(-100),
    "a.u16": np.uint16(60000),
    "a.i16": np.int16(-30000),
    "a.u32": np.uint32(4_000_000_000),
    "a.i32": np.int32(-2_000_000_000),
    "a.f32": np.float32(0.1),
    "a.bool": True,
    "a.u64": np.uint64(2**64 - 1),
    "a.i64": np.int64(-(2**63)),
    "a.f64": np.float64(0.1),
}
_ARRAYS = {key + ".array": np.array([value, value]) for key, value in _SCALARS.items()}


def _floats(name: str, *shape: int) -> Tensor:
    values = np.arange(np.prod(shape), dtype=np.float32)
    return Tensor(name, "F32", shape, values)


# ---- metadata ----------------------------------------------------------------------------------


def test_every_kind_of_scalar_comes_back_as_a_python_value(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "m.gguf", _SCALARS, [])) as file:
        assert dict(file.metadata) == {
            key: getattr(value, "item", lambda v=value: v)() for key, value in _SCALARS.items()
        }
        assert file.metadata["a.bool"] is True
        assert type(file.metadata["a.f32"]) is float


def test_every_kind_of_array_comes_back_read_only_in_its_own_type(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "m.gguf", _ARRAYS, [])) as file:
        for key, expected in _ARRAYS.items():
            array = file.metadata[key]
            assert array.dtype == expected.dtype
            assert array.tolist() == expected.tolist()
            assert not array.flags.writeable


@pytest.mark.parametrize("dtype", ["u1", "?", "f8"])
def test_an_empty_array_at_the_very_end_is_an_empty_array(tmp_path: Path, dtype: str) -> None:
    with open_gguf(write_gguf(tmp_path / "m.gguf", {"a": np.empty(0, dtype)}, [])) as file:
        assert file.metadata["a"].shape == (0,)
        assert file.metadata["a"].dtype == np.dtype(dtype)


def test_strings_keep_their_bytes_and_read_as_text(tmp_path: Path) -> None:
    values = [b"plain", "Ġä漢😀".encode(), b"\xff\xfe", b"", b"zero\x00inside", b"x" * 300]
    with open_gguf(write_gguf(tmp_path / "m.gguf", {"t": values, "empty": []}, [])) as file:
        strings = file.metadata["t"]
        assert isinstance(strings, StringArray)
        assert strings.raws() == values
        assert [strings.raw(i) for i in range(len(values))] == values
        assert list(strings) == strings.texts() == [value.decode(errors="replace") for value in values]
        assert (strings[1], strings[2], strings[-1]) == ("Ġä漢😀", "��", "x" * 300)
        assert strings[1:3] == ["Ġä漢😀", "��"]
        assert "plain" in strings
        assert list(file.metadata["empty"]) == []
        with pytest.raises(IndexError, match="6 of 6"):
            strings[6]


def test_a_text_that_is_not_utf8_is_read_with_replacements(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "m.gguf", {"t": b"a\xffb"}, [])) as file:
        assert file.metadata["t"] == "a�b"


_CHECKED_KEYS = {"general.alignment", "split.no", "split.count", "split.tensors.count"}
_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda key: key not in _CHECKED_KEYS)
_NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(width=32, allow_nan=False) | st.booleans()
_VALUES = _NUMBERS | st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.lists(st.binary(max_size=300))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(_KEYS, _VALUES, max_size=8), version=st.sampled_from([2, 3]))
def test_what_was_written_is_read(tmp_path: Path, metadata: dict[str, Any], version: int) -> None:
    with open_gguf(write_gguf(tmp_path / "m.gguf", metadata, [_floats("w", 4)], version=version)) as file:
        read = {k: v.raws() if isinstance(v, StringArray) else v for k, v in file.metadata.items()}
        assert read == metadata
        assert file.version == version


def test_architecture_is_the_metadatas(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, [])) as file:
        assert file.architecture == "llama"
    unusable = open_gguf(write_gguf(tmp_path / "m.gguf", {"general.architecture": 7}, []))
    with pytest.raises(GGUFError, match=r"general\.architecture.* must be a text, found 7 .*m\.gguf"):
        _ = unusable.architecture


# ---- tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_are_found_whatever_the_alignment(tmp_path: Path, alignment: int) -> None:
    tensors = [
        _floats("a", 3),
        _floats("b", 5, 7),
        Tensor("c", "Q8_0", (64, 2, 3), b"\x07" * 408),
        _floats("d", 1, 1, 1, 2),
    ]
    path = write_gguf(tmp_path / "m.gguf", {}, tensors, alignment=alignment)
    with open_gguf(path) as file:
        assert list(file.tensors) == ["a", "b", "c", "d"]
        assert file.file_bytes == path.stat().st_size
        for tensor in tensors:
            info = file.tensors[tensor.name]
            assert (info.shape, info.type.name, info.nbytes, info.shard) == (
                tensor.shape,
                tensor.type_name,
                tensor.nbytes,
                0,
            )
            assert info.offset % alignment == 0
            assert file.data(tensor.name).tobytes() == bytes(memoryview(tensor.data).cast("B"))  # type: ignore[arg-type]


def test_data_is_a_read_only_view_that_outlives_the_file(tmp_path: Path) -> None:
    file = open_gguf(write_gguf(tmp_path / "m.gguf", {"t": ["a", "b"]}, [_floats("w", 4)]))
    data = file.data("w")
    assert (data.dtype, data.shape, data.flags.writeable, data.flags.owndata) == (np.uint8, (16,), False, False)
    file.close()
    file.close()
    assert data.view(np.float32).tolist() == [0, 1, 2, 3]
    assert list(file.metadata["t"]) == ["a", "b"]
    with pytest.raises(ValueError, match="closed"):
        file.data("w")


def test_an_unknown_tensor_is_a_key_error(tmp_path: Path) -> None:
    with (
        open_gguf(write_gguf(tmp_path / "m.gguf", {}, [_floats("w", 4)])) as file,
        pytest.raises(KeyError, match="nope"),
    ):
        file.data("nope")


def test_a_header_without_weights_opens_and_takes_no_room(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, [Tensor("w", "Q4_K", (8192, 28672, 80))])
    assert path.stat().st_blocks * 512 < 100_000
    with open_gguf(path) as file:
        assert file.tensors["w"].nbytes == 8192 * 28672 * 80 // 256 * 144


def test_it_reads_what_gguf_py_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b", "ä"])
    writer.add_token_scores([0.0, -1.0, -2.5])
    writer.add_tensor("w", np.arange(6, dtype=np.float16).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(tmp_path / "m.gguf") as file:
        assert (file.architecture, file.metadata["llama.block_count"]) == ("llama", 3)
        assert list(file.metadata["tokenizer.ggml.tokens"]) == ["a", "b", "ä"]
        assert file.metadata["tokenizer.ggml.scores"].tolist() == [0.0, -1.0, -2.5]
        assert file.tensors["w"].shape == (3, 2)
        assert file.data("w").view(np.float16).tolist() == [0, 1, 2, 3, 4, 5]


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    tensors = [_floats("a", 3), Tensor("b", "Q4_K", (256, 2), bytes(288))]
    metadata = {**_SCALARS, "t": ["x", "ÿ"], "n": [1, 2]}
    reader = gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert reader.fields["a.i64"].contents() == -(2**63)
    assert reader.fields["t"].contents() == ["x", "ÿ"]
    assert reader.fields["n"].contents() == [1, 2]
    assert [(t.name, list(t.shape), t.n_bytes) for t in reader.tensors] == [("a", [3], 12), ("b", [256, 2], 288)]


# ---- files that are not there ------------------------------------------------------------------


def test_a_missing_file_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")


def test_an_empty_file_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(GGUFError, match="the file is empty"):
        open_gguf(tmp_path / "empty.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf"):
        with pytest.raises(GGUFError, match="not a regular file"):
            open_gguf(path)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = [open_gguf(write_gguf(tmp_path / f"{i}.gguf", {}, [_floats("w", 4)])) for i in range(5)]
    for file in files:
        file.close()
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    for _ in range(5):
        with pytest.raises(GGUFError):
            open_gguf(tmp_path / "bad.gguf")
    del files, file
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# ---- split sets --------------------------------------------------------------------------------


@pytest.fixture
def split_set(tmp_path: Path) -> list[Path]:
    tensors = [_floats(f"w{i}", 4, i + 1) for i in range(7)]
    return write_split_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, tensors, num_shards=3)


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_any_file_of_a_set_opens_the_whole_set(split_set: list[Path], opened: int) -> None:
    with open_gguf(split_set[opened]) as file:
        assert file.shards == tuple(split_set)
        assert file.path == split_set[0]
        assert file.architecture == "llama"
        assert file.file_bytes == sum(path.stat().st_size for path in split_set)
        assert [info.shard for info in file.tensors.values()] == [0, 0, 1, 1, 2, 2, 2]
        for i in range(7):
            assert file.data(f"w{i}").view(np.float32).tolist() == list(range(4 * (i + 1)))


def test_a_missing_file_of_a_set_is_named(split_set: list[Path]) -> None:
    split_set[1].unlink()
    for opened in (0, 2):
        with pytest.raises(GGUFError, match=r"missing .*model-00002-of-00003\.gguf"):
            open_gguf(split_set[opened])


def test_a_file_of_a_set_must_be_named_as_its_metadata_says(split_set: list[Path]) -> None:
    renamed = split_set[0].rename(split_set[0].with_name("model.gguf"))
    with pytest.raises(GGUFError, match=r"file 1 of a set of 3 .* '-00001-of-00003\.gguf' \(.*model\.gguf"):
        open_gguf(renamed)


def test_files_in_the_wrong_order_are_refused(split_set: list[Path]) -> None:
    spare = split_set[0].with_name("spare")
    split_set[1].rename(spare)
    split_set[2].rename(split_set[1])
    spare.rename(split_set[2])
    with pytest.raises(GGUFError, match=r"are 2, 3, 7; the set needs 1, 3, 7 .*00002-of-00003"):
        open_gguf(split_set[0])


def test_a_file_from_another_set_is_refused(split_set: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_split_gguf(tmp_path / "other" / "model.gguf", {}, [_floats("w0", 4)] * 1, num_shards=3)
    split_set[2].write_bytes(other[2].read_bytes())
    with pytest.raises(GGUFError, match=r"are 2, 3, 1; the set needs 2, 3, 7"):
        open_gguf(split_set[0])


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [(["a", "a"], 2, "tensor 'a' is also in m-00001-of-00002.gguf"), (["a", "b"], 5, "has 2 tensors, .* says 5")],
)
def test_a_set_whose_tensors_do_not_add_up_is_refused(
    tmp_path: Path, names: list[str], count: int, message: str
) -> None:
    for number, name in enumerate(names):
        split = {"split.no": np.uint16(number), "split.count": np.uint16(2), "split.tensors.count": np.int32(count)}
        write_gguf(tmp_path / f"m-{number + 1:05}-of-00002.gguf", split, [_floats(name, 4)])
    with pytest.raises(GGUFError, match=message):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_a_set_of_one_file_may_have_any_name(tmp_path: Path) -> None:
    split = {"split.no": np.uint16(0), "split.count": np.uint16(1), "split.tensors.count": np.int32(1)}
    with open_gguf(write_gguf(tmp_path / "any.gguf", split, [_floats("w", 4)])) as file:
        assert len(file.shards) == 1


# ---- time --------------------------------------------------------------------------------------

_LIMIT_S = 0.15


def _cpu_seconds_to_open(path: Path, *, decode: bool = False) -> float:
    """The least of three: other processes disturb even the CPU time of this one."""
    times = []
    for _ in range(3):
        start = time.process_time()
        file = open_gguf(path)
        if decode:
            [value.texts() for value in file.metadata.values() if isinstance(value, StringArray)]
        times.append(time.process_time() - start)
    return min(times)


def test_a_large_vocabulary_opens_in_time(tmp_path: Path) -> None:
    tokens = [f"token{i * 7919 % 128_003}" for i in range(128_256)]
    merges = [f"left{i} right{i}" for i in range(280_147)]
    path = write_gguf(tmp_path / "m.gguf", {"tokens": tokens, "merges": merges}, [])
    assert _cpu_seconds_to_open(path) < _LIMIT_S / 3
    assert open_gguf(path).metadata["merges"].texts() == merges


def test_a_real_vocabulary_opens_in_time(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(lzma.decompress((shared / "oracle/tokenizers/ggml-vocab-llama-bpe.gguf.xz").read_bytes()))
    assert _cpu_seconds_to_open(path) < _LIMIT_S / 3
    with open_gguf(path) as file:
        assert file.metadata["tokenizer.ggml.tokens"][128000] == "<|begin_of_text|>"
        assert len(file.metadata["tokenizer.ggml.merges"]) == 280_147
