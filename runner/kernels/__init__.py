"""The arithmetic of a model, in two interchangeable forms: ``fast`` (C++) and ``reference`` (NumPy).

Conventions of every operation: arrays are C-contiguous float32 unless said otherwise, T is the number of tokens, and
outputs are written into arrays that the caller owns. A wrong dtype, shape or layout raises ValueError that says what
was found and what is allowed. The same request gives the same bytes: for every output element the order of the float
operations does not depend on T, on the other rows of a call, on the number of threads or on where cells lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
ByteArray = npt.NDArray[np.uint8]

KernelName = Literal["fast", "reference"]


class Matrix(Protocol):
    """A weight matrix in the form that its kernels like best. Made by ``Kernels.pack``."""

    @property
    def type_name(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class CacheTensor(Protocol):
    """One layer's keys, or its values, of all cells. Made by ``Kernels.cache``."""

    @property
    def type_name(self) -> str:
        """One of ``runner.cache_types.CACHE_TYPES``."""

    @property
    def num_cells(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def length(self) -> int:
        """Values of a head."""

    @property
    def nbytes(self) -> int: ...
    @property
    def rows(self) -> ByteArray:
        """The storage as (num_cells, bytes of a cell), to be written as well: whoever moves cells copies its rows."""


class Kernels(Protocol):
    @property
    def name(self) -> str:
        """``fast`` or ``reference``."""

    @property
    def isa(self) -> str:
        """The instruction set in use."""

    @property
    def num_thread(self) -> int: ...

    def set_num_thread(self, num_thread: int) -> None:
        """0: one for each usable core."""

    # ---- matrices

    def accepts(self, type_id: int) -> bool:
        """Whether matrices of this type can be packed without conversion."""

    def pack(self, type_id: int, rows: int, cols: int, source: ByteArray, storage: ByteArray) -> Matrix:
        """Writes the GGUF rows of ``source`` into ``storage``: 64-byte aligned, ``tensor_storage.packed_bytes`` long,
        kept alive by the matrix."""

    def linear(
        self,
        x: Float32Array,
        matrices: Sequence[Matrix],
        outs: Sequence[Float32Array],
        biases: Sequence[Float32Array | None] | None = None,
    ) -> None:
        """``out = x @ matrix.T + bias`` for each: x (T, cols), out (T, rows), bias (rows,)."""

    def embed(
        self, type_id: int, source: ByteArray, cols: int, ids: Int32Array, out: Float32Array, scale: float = 1.0
    ) -> None:
        """Rows ``ids`` (T,) of an unpacked GGUF matrix, dequantized, times ``scale``: out (T, cols)."""

    # ---- norms and sums

    def rms_norm(self, x: Float32Array, weight: Float32Array | None, eps: float, out: Float32Array) -> None:
        """``x / sqrt(mean(x²) + eps) * weight`` by rows: x, out (N, D), weight (D,)."""

    def add_rms_norm(
        self, residual: Float32Array, delta: Float32Array, weight: Float32Array | None, eps: float, out: Float32Array
    ) -> None:
        """``residual += delta``, then ``out = rms_norm(residual)``: all (N, D)."""

    def layer_norm(
        self, x: Float32Array, weight: Float32Array | None, bias: Float32Array | None, eps: float, out: Float32Array
    ) -> None:
        """``(x - mean) / sqrt(variance + eps) * weight + bias`` by rows: x, out (N, D), weight, bias (D,)."""

    def add(self, x: Float32Array, delta: Float32Array) -> None:
        """``x += delta``: both (N, D)."""

    # ---- attention

    def rope(self, x: Float32Array, table: Float32Array, neox: bool) -> None:
        """Turns the first n_rot values of each head in place: x (T, H, D), table (T, n_rot) with n_rot / 2 cosines,
        then as many sines. ``neox`` pairs value i with i + n_rot / 2, otherwise 2i with 2i + 1."""

    def cache(self, type_name: str, num_heads: int, length: int, storage: ByteArray) -> CacheTensor:
        """As many whole cells as ``storage`` has bytes for, which are taken as they are. It is aligned to 4 bytes (2
        where the type's values are smaller) and kept alive by the result.

        Raises ValueError for a type that is not known, or whose blocks do not fill heads of ``length``."""

    def store_kv(
        self, k: Float32Array, v: Float32Array, keys: CacheTensor, values: CacheTensor, cells: Int32Array
    ) -> None:
        """Puts k (T, KH, D) and v (T, KH, DV) into the cells (T,) of keys (KH, D) and values (KH, DV).

        f16 and bf16 are rounded to nearest even. Blocks of q8_0 have the scale d = max|x| / 127 and codes round(x / d),
        those of q4_0 d = -m / 8, m the value of greatest magnitude, and codes min(15, floor(x / d + 8.5)).
        """

    def hadamard(self, x: Float32Array) -> None:
        """The orthonormal Walsh-Hadamard transform, in place, of every block of the largest power of two that divides
        D: x (T, H, D), D a multiple of 64. Twice gives x again, but for rounding."""

    def shift_keys(self, keys: CacheTensor, cells: Int32Array, table: Float32Array, neox: bool, rotated: bool) -> None:
        """Turns the keys of ``cells`` (N,), distinct, by the angles of ``table`` (n_rot,), one row of a table of
        ``rope``, in place: their positions become others. ``rotated``: they were stored behind ``hadamard``."""

    def attention(
        self,
        q: Float32Array,
        keys: CacheTensor,
        values: CacheTensor,
        cells: Int32Array,
        rows: Int32Array,
        scale: float,
        softcap: float,
        out: Float32Array,
    ) -> None:
        """softmax(softcap(q kᵀ · scale)) v: q (T, H, D), out (T, H, DV).

        Row t of ``rows`` (T, 3) is (offset, first, end): token t sees the positions first … end - 1 of its sequence,
        and position p lies in cell ``cells[offset + p]``. Nothing seen gives zeros. Head h reads key-value head
        h // (H // KH). ``softcap`` c replaces a score s by c·tanh(s / c); 0 leaves it.
        """

    # ---- activations: (N, F)

    def swiglu(self, gate: Float32Array, up: Float32Array, out: Float32Array) -> None:
        """``gate / (1 + exp(-gate)) * up``."""

    def geglu(self, gate: Float32Array, up: Float32Array, out: Float32Array) -> None:
        """``gelu(gate) * up`` with the tanh approximation of gelu."""

    def gelu(self, x: Float32Array, out: Float32Array) -> None:
        """The exact gelu, by the error function."""

    # ---- logits: (V,)

    def top_k(self, logits: Float32Array, k: int) -> tuple[Int32Array, Float32Array]:
        """Ids and values of the k greatest, descending; equal ones by ascending id, NaN last. k <= 0: all of them."""

    def log_sum_exp(self, logits: Float32Array) -> float:
        """``log(sum(exp(logits)))``, added in double precision."""


def select(name: KernelName, isa: str | None = None, num_thread: int = 0) -> Kernels:
    """The kernels of that name. ``isa`` None: the best that the machine has; ``num_thread`` 0: one a usable core.

    Raises:
        ValueError: the name is unknown, or the machine lacks the instruction set; the message lists what there is.
    """
    if name == "reference":
        from runner.kernels.reference import ReferenceKernels

        return ReferenceKernels()
    if name == "fast":
        from runner.kernels.cpu import FastKernels

        return FastKernels(isa, num_thread)
    raise ValueError(f"kernels {name!r} are unknown; there are 'fast' and 'reference'")
