"""Random tensors in any ggml type: quantized where gguf-py can, else random blocks whose scales are set.

A block of random bytes is a valid block of every type but for its scale, a half float that random bytes would make huge
or infinite. So the bytes are drawn and the scales written over them, such that the values have the standard deviation
asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from runner.ggml_types import BY_NAME, GGMLType, row_bytes

Bytes = npt.NDArray[np.uint8]

# Where the half-float scales of a block lie, and how many times the main scale each is. Minima are chosen so that the
# mean of the values is about zero.
_SCALES: Mapping[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 1),),
    "Q8_0": ((0, 1),),
    "Q1_0": ((0, 1),),
    "Q2_0": ((0, 1),),
    "Q2_K": ((80, 1), (82, 1.5)),
    "Q3_K": ((108, 1),),
    "Q4_K": ((0, 1), (2, 7.5)),
    "Q5_K": ((0, 1), (2, 15.5)),
    "Q6_K": ((208, 1),),
    "IQ1_S": ((0, 1),),
    "IQ1_M": (),  # in the upper four bits of its four 16-bit scale words
    "NVFP4": (),  # four bytes of an unsigned 8-bit float
    "IQ2_XXS": ((0, 1),),
    "IQ2_XS": ((0, 1),),
    "IQ2_S": ((0, 1),),
    "IQ3_XXS": ((0, 1),),
    "IQ3_S": ((0, 1),),
    "IQ4_NL": ((0, 1),),
    "IQ4_XS": ((0, 1),),
}
QUANTIZABLE = frozenset(
    ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"),
)
"""What gguf-py can write."""
RANDOM_TYPES = QUANTIZABLE | _SCALES.keys()

_UNIT_STD = {"Q1_0": 1.0, "Q2_0": 0.816}  # what gguf-py cannot dequantize: ±1, and -1 0 1
_SAMPLE_BLOCKS = 512
_CHUNK_BYTES = 16 << 20


def random_tensor(type_name: str, shape: tuple[int, ...], rng: np.random.Generator, std: float) -> Bytes:
    """The bytes of a tensor: normal values where gguf-py quantizes the type, else random blocks.

    ``shape`` is in GGUF order. Raises ValueError for columns that are not whole blocks, NotImplementedError for types
    that no model is stored in.
    """
    t = BY_NAME[type_name]
    row_bytes(t, shape[0])
    if type_name in QUANTIZABLE:
        return quantize(type_name, rng.standard_normal(shape[::-1], np.float32) * np.float32(std))
    if type_name not in _SCALES:
        raise NotImplementedError(f"no random {type_name}; there are {', '.join(sorted(RANDOM_TYPES))}")
    return random_blocks(t, int(np.prod(shape)) // t.block_size, rng, std).reshape(-1)


def quantize(type_name: str, values: npt.NDArray[np.float32]) -> Bytes:
    """The bytes of float values in a type that gguf-py can write. Raises NotImplementedError for the others."""
    data = quants.quantize(values, GGMLQuantizationType[type_name])
    return np.ascontiguousarray(data).view(np.uint8).reshape(-1)


def random_blocks(t: GGMLType, num_blocks: int, rng: np.random.Generator, std: float) -> Bytes:
    """(num_blocks, type_size) random blocks of values with about this standard deviation and a mean near zero."""
    blocks = rng.integers(0, 256, (num_blocks, t.type_size), np.uint8)
    return set_scales(t, blocks, rng, std / unit_std(t))


def set_scales(t: GGMLType, blocks: Bytes, rng: np.random.Generator, scale: float) -> Bytes:
    """Writes scales of ``scale`` times 0.5 … 1.5 over random blocks, in place, and returns them."""
    scales = (rng.uniform(0.5, 1.5, len(blocks)) * scale).astype(np.float32)
    if t.name == "IQ1_M":
        words = blocks[:, 48:56].view("<u2")
        half = scales.astype("<f2").view("<u2")[:, None] >> np.array([0, 4, 8, 12], np.uint16)
        words[:] = (words & 0x0FFF) | (half & 0xF) << 12
    if t.name == "NVFP4":  # exponent 7 stands for 1; the mantissa stays 0
        blocks[:, :4] = (np.clip(np.rint(np.log2(scales)) + 7, 1, 14).astype(np.uint8) << 3)[:, None]
    if t.name == "Q2_0":  # leave out the value 2, which would shift the mean
        blocks &= ~((blocks & 0x55) << 1)
    for offset, ratio in _SCALES[t.name]:
        blocks[:, offset : offset + 2] = (scales * ratio).astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks


@cache
def unit_std(t: GGMLType) -> float:
    """Standard deviation of the values of random blocks whose scale is about 1."""
    if t.name in _UNIT_STD:
        return _UNIT_STD[t.name]
    rng = np.random.default_rng(0)
    blocks = set_scales(t, rng.integers(0, 256, (_SAMPLE_BLOCKS, t.type_size), np.uint8), rng, 1.0)
    return float(quants.dequantize(blocks, GGMLQuantizationType[t.name]).std())


def block_chunks(type_name: str, shape: tuple[int, ...], pool: Bytes, seed: int, std: float) -> Iterator[Bytes]:
    """A large random tensor in chunks, its bytes cut from ``pool`` (drawing them anew would take most of the time)."""
    t = BY_NAME[type_name]
    rng = np.random.default_rng(seed)
    scale = std / unit_std(t)
    left = int(np.prod(shape)) // t.block_size
    while left:
        num_blocks = min(left, _CHUNK_BYTES // t.type_size)
        start = int(rng.integers(0, len(pool) - num_blocks * t.type_size))
        blocks = pool[start : start + num_blocks * t.type_size].reshape(num_blocks, t.type_size).copy()
        yield set_scales(t, blocks, rng, scale)
        left -= num_blocks
