"""Headers that must be refused: each with one error that says what was found, what is allowed, and where."""

from __future__ import annotations

import os
import re
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from runner.gguf import GGUFError, open_gguf
from runner.gguf_cursor import MAX_HEADER_BYTES

_F32, _Q4_0, _Q4_K = 0, 2, 12
_HUGE = 1 << 60


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _text(value: bytes) -> bytes:
    return _u64(len(value)) + value


def _entry(key: bytes, type_id: int, value: bytes) -> bytes:
    return _text(key) + _u32(type_id) + value


def _tensor(name: bytes = b"w", shape: tuple[int, ...] = (8,), type_id: int = _F32, offset: int = 0) -> bytes:
    dimensions = b"".join(map(_u64, shape))
    return _text(name) + _u32(len(shape)) + dimensions + _u32(type_id) + _u64(offset)


def _file(entries: list[bytes], tensors: list[bytes], *, num_data: int = 4096, version: int = 3) -> bytes:
    body = b"".join(entries) + b"".join(tensors)
    return b"GGUF" + _u32(version) + _u64(len(tensors)) + _u64(len(entries)) + body + bytes(num_data)


def _array(element_type: int, count: int, data: bytes = b"") -> bytes:
    return _entry(b"k", 9, _u32(element_type) + _u64(count) + data)


_ALIGN = b"general.alignment"
_ONE = _entry(b"k", 4, _u32(1))
_ALIGN_256 = _entry(_ALIGN, 4, _u32(256))

_REFUSED = {
    "not GGUF": (b"\x7fELF" + bytes(40), r"the file header: not a GGUF file: it begins with b'\\x7fELF'.* byte 0\)"),
    "shorter than the magic": (b"GG", r"the magic number needs 4 bytes, 2 are left in the file"),
    "magic alone": (b"GGUF", r"the version needs 4 bytes, 0 are left"),
    "version 1": (_file([], [], version=1), r"version 1; versions 2 and 3 can be read \(.*byte 4\)"),
    "version 4": (_file([], [], version=4), r"version 4; versions 2 and 3"),
    "version 0": (_file([], [], version=0), r"version 0; versions 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"a big-endian file of version 3; only little-endian"),
    "no counts": (b"GGUF" + _u32(3) + _u64(0), r"the number of metadata entries needs 8 bytes, 0 are left"),
    "2^60 entries": (
        b"GGUF" + _u32(3) + _u64(0) + _u64(_HUGE),
        rf"a list of {_HUGE} metadata entries needs \d+ bytes, 0",
    ),
    "2^60 tensors": (b"GGUF" + _u32(3) + _u64(_HUGE) + _u64(0), rf"a list of {_HUGE} tensors needs \d+ bytes, 0"),
    # metadata
    "key of 2^64 bytes": (
        _file([_u64(2**64 - 1)], []),
        r"entry 0: the key has 18446744073709551615 bytes, at most 65535",
    ),
    "key past the end": (_file([_u64(60000)], []), r"the key needs 60000 bytes, \d+ are left in the file"),
    "key not UTF-8": (_file([_entry(b"ab\xff", 4, _u32(1))], []), r"the key is not UTF-8: b'ab\\xff' .*byte 34\)"),
    "key twice": (_file([_ONE, _ONE], []), r"metadata 'k': the key occurs twice .*byte 41\)"),
    "value type 13": (_file([_entry(b"k", 13, b"")], []), r"metadata 'k': unknown value type 13, 0 to 12 .*byte 33\)"),
    "no value": (_file([_ONE], [], num_data=0)[:-2], r"metadata 'k': the value needs 4 bytes, 2 are left"),
    "truth value 2": (_file([_entry(b"k", 7, b"\x02")], []), r"a truth value of 2, 0 and 1 are allowed .*byte 37\)"),
    "truth values": (_file([_array(7, 3, b"\0\x01\x05")], []), r"truth values holds others than 0 and 1"),
    "text of 2^60 bytes": (_file([_entry(b"k", 8, _u64(_HUGE))], []), rf"a text of {_HUGE} bytes, at most 16777216"),
    "text past the end": (_file([_entry(b"k", 8, _u64(9999))], []), r"the text needs 9999 bytes, 4096 are left"),
    "2^60 strings": (_file([_array(8, _HUGE)], []), rf"an array of {_HUGE} strings needs \d+ bytes, 4096 are left"),
    "2^61 numbers": (_file([_array(4, 1 << 61)], []), r"an array of 2305843009213693952 uint32 needs \d+ bytes, 4096"),
    "string of 2^64 bytes": (
        _file([_array(8, 1, _u64(2**64 - 1))], []),
        r"string 0 has 18446744073709551615 bytes, 4096",
    ),
    "string past the end": (_file([_array(8, 2, _text(b"ab") + _u64(4097))], []), r"string 1 has 4097 bytes, 4096 are"),
    "array of arrays": (
        _file([_array(9, 1, _u32(4) + _u64(0))], []),
        r"an array of arrays; .* numbers or texts .*byte 37\)",
    ),
    "element type 99": (_file([_array(99, 1)], []), r"unknown element type 99"),
    "alignment 48": (
        _file([_entry(_ALIGN, 4, _u32(48))], []),
        r"'general.alignment': 48; a power of two from 8 to 2097152",
    ),
    "alignment 0": (_file([_entry(_ALIGN, 4, _u32(0))], []), r"'general.alignment': 0; a power of two"),
    "alignment 4": (_file([_entry(_ALIGN, 4, _u32(4))], []), r"'general.alignment': 4; a power of two"),
    "alignment 2^31": (
        _file([_entry(_ALIGN, 4, _u32(1 << 31))], []),
        r"'general.alignment': 2147483648; a power of two",
    ),
    "alignment as text": (_file([_entry(_ALIGN, 8, _text(b"32"))], []), r"'general.alignment': '32'; a power of two"),
    "split.count as text": (_file([_entry(b"split.count", 8, _text(b"2"))], []), r"'split.count': '2'; a whole number"),
    "split.no missing": (
        _file([_entry(b"split.count", 2, b"\x02\0")], []),
        r"a set of 2: metadata 'split.no' is missing",
    ),
    # tensors
    "name of 65 bytes": (_file([], [_tensor(b"n" * 65)]), r"tensor 0: the name has 65 bytes, at most 64 are allowed"),
    "name not UTF-8": (_file([], [_tensor(b"\xc3")]), r"tensor 0: the name is not UTF-8"),
    "name twice": (_file([], [_tensor(), _tensor(offset=32)]), r"tensor 'w': the name occurs twice .*byte 57\)"),
    "no dimensions": (_file([], [_tensor(shape=())]), r"tensor 'w': 0 dimensions, 1 to 4 are allowed"),
    "five dimensions": (_file([], [_tensor(shape=(1, 1, 1, 1, 1))]), r"tensor 'w': 5 dimensions, 1 to 4 are allowed"),
    "2^32-1 dimensions": (_file([], [_text(b"w") + _u32(2**32 - 1) + bytes(19)]), r"4294967295 dimensions, 1 to 4"),
    "an empty dimension": (_file([], [_tensor(shape=(8, 0))]), r"tensor 'w': shape \(8, 0\) has no elements"),
    "type 77": (
        _file([], [_tensor(type_id=77)]),
        r"tensor 'w': unknown type 77; known are 0 F32, 1 F16, 2 Q4_0, 3 Q4_1",
    ),
    "type 4": (_file([], [_tensor(type_id=4)]), r"unknown type 4 \(Q4_2, which GGUF no longer has\)"),
    "broken blocks": (_file([], [_tensor(shape=(100,), type_id=_Q4_K)]), r"100 columns; Q4_K comes in blocks of 256"),
    "odd offset": (_file([], [_tensor(offset=8)]), r"tensor 'w': offset 8 is not a multiple of the alignment, 32"),
    "odd for its alignment": (
        _file([_ALIGN_256], [_tensor(offset=32)]),
        r"offset 32 is not a multiple of the alignment, 256",
    ),
    "past the end": (
        _file([], [_tensor(shape=(8, 200))]),
        r"tensor 'w': F32 \(8, 200\) takes bytes 96 to 6496, the file has 4161",
    ),
    "offset past the end": (_file([], [_tensor(offset=1 << 40)]), r"takes bytes 1099511627840 to"),
    "offset that wraps": (_file([], [_tensor(offset=2**64 - 32)]), r"takes bytes 18446744073709551648 to"),
    "size that wraps": (_file([], [_tensor(shape=(1 << 31, 1 << 31, 4))]), r"takes bytes 96 to 73786976294838206560"),
    "overlap": (
        _file([], [_tensor(b"a", (16,)), _tensor(b"b", offset=32)]),
        r"tensor 'b': begins at byte 128, inside 'a', which ends at 160",
    ),
    "tensor list cut": (_file([], [_tensor()], num_data=0)[:-1], r"tensor 'w': the offset needs 8 bytes, 7 are left"),
    "tensor list short": (
        _file([], [b""], num_data=31),
        r"the tensor list: a list of 1 tensors needs 32 bytes, 31 are",
    ),
}


@pytest.mark.parametrize(("data", "message"), _REFUSED.values(), ids=_REFUSED)
def test_a_bad_header_is_refused_with_what_and_where(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=message) as caught:
        open_gguf(path)
    assert re.search(r"bad\.gguf, byte \d+\)$", str(caught.value))
    assert caught.value.path == path
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(data)


def test_the_builder_of_these_tests_makes_good_files_too(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(_file([_ONE, _ALIGN_256], [_tensor(b"a", (16,)), _tensor(b"n" * 64, (64, 2), _Q4_0, 256)]))
    with open_gguf(path) as file:
        assert {name: (info.offset, info.nbytes) for name, info in file.tensors.items()} == {
            "a": (256, 64),
            "n" * 64: (512, 72),
        }


def test_every_cut_of_a_good_header_is_refused_or_harmless(tmp_path: Path) -> None:
    entries = [_ONE, _array(8, 2, _text(b"ab") + _text(b"")), _entry(b"t", 8, _text(b"text"))]
    data = _file(entries, [_tensor(b"a"), _tensor(b"b", offset=32)], num_data=96)
    path = tmp_path / "cut.gguf"
    for length in range(1, len(data) - 63):  # what is left has room for neither tensor
        path.write_bytes(data[:length])
        with pytest.raises(GGUFError):
            open_gguf(path)


def test_messages_stay_short_whatever_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    long = _entry(b"k" * 60000, 4, _u32(1))
    path.write_bytes(_file([long, long], []))
    with pytest.raises(GGUFError, match="the key occurs twice") as caught:
        open_gguf(path)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_a_sparse_file_cannot_make_the_reader_scan_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(_file([_array(8, 1 << 36)], [], num_data=0))
    os.truncate(path, 1 << 40)
    with pytest.raises(GGUFError, match=rf"bytes, \d+ are left of the {MAX_HEADER_BYTES} a header may have"):
        open_gguf(path)


def _worst_header(path: Path, num_strings: int) -> Path:
    """Empty strings: the most values a byte can hold, and every one breaks the fast walk."""
    path.write_bytes(_file([_array(8, num_strings, bytes(8 * num_strings))], [], num_data=0))
    return path


def test_the_worst_header_takes_time_in_proportion(tmp_path: Path) -> None:
    path = _worst_header(tmp_path / "strings.gguf", 1 << 19)
    times = []
    for _ in range(3):
        start = time.process_time()
        assert len(open_gguf(path).metadata["k"]) == 1 << 19
        times.append(time.process_time() - start)
    assert min(times) < 1  # 0.08 s: 128 MiB, the most a header may have, take 2.5 s


def test_the_worst_header_takes_memory_in_proportion(tmp_path: Path) -> None:
    path = _worst_header(tmp_path / "strings.gguf", 1 << 16)
    tracemalloc.start()
    try:
        assert len(open_gguf(path).metadata["k"]) == 1 << 16
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size
    finally:
        tracemalloc.stop()
