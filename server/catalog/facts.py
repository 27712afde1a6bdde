"""What the public APIs say about a GGUF file, read from its header: family, size, quantization, template, identity."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.gguf import GGUFFile

FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
"""``general.file_type`` as llama.cpp numbers it."""

UNITS = ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0))
"""How Ollama writes a number of parameters: (unit, letter, decimals)."""

NUM_SAMPLES = 64
SAMPLE_BYTES = 4096
MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of one model file or split set. Texts are clean Unicode, whatever the file holds."""

    architecture: str
    num_parameters: int
    quantization: str
    context_length: int | None
    embedding_length: int | None
    is_embedding: bool  # the model makes embeddings, not text
    is_model: bool  # false for projectors, adapters and the like
    chat_template: str | None
    bos_token: str
    eos_token: str
    license: str

    @property
    def capabilities(self) -> list[str]:
        return ["embedding"] if self.is_embedding else ["completion"]


def read_facts(file: GGUFFile) -> Facts:
    """Facts of an open file. Raises GGUFError where it does not even name its architecture."""
    metadata, architecture = file.metadata, clean_text(file.architecture)
    pooling = metadata.get(f"{architecture}.pooling_type")
    return Facts(
        architecture=architecture,
        num_parameters=sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        quantization=_quantization(file),
        context_length=_integer(metadata.get(f"{architecture}.context_length")),
        embedding_length=_integer(metadata.get(f"{architecture}.embedding_length")),
        is_embedding=pooling is not None or metadata.get(f"{architecture}.attention.causal") is False,
        is_model=metadata.get("general.type", "model") == "model" and architecture != "clip",
        chat_template=_text(metadata.get("tokenizer.chat_template")) or None,
        bos_token=_special_token(metadata, "bos"),
        eos_token=_special_token(metadata, "eos"),
        license=_text(metadata.get("general.license")),
    )


def read_digest(file: GGUFFile) -> str:
    """An identity that stays cheap for 100 GB: SHA-256 over size, header and 64 samples of the weights of each shard.

    It is the same for copies of a file and differs, in practice, for files with other contents. It is not the SHA-256
    of the whole file.
    """
    digest = hashlib.sha256()
    for index, path in enumerate(file.shards):
        offsets = [tensor.offset for tensor in file.tensors.values() if tensor.shard == index]
        for piece in _sampled(path, min(offsets, default=0)):
            digest.update(piece)
    return digest.hexdigest()


def _sampled(path: Path, header_bytes: int) -> Iterator[bytes]:
    size = path.stat().st_size
    yield size.to_bytes(8, "little")
    with path.open("rb") as stream:
        yield stream.read(min(header_bytes or size, MAX_HEADER_BYTES))
        step = max((size - header_bytes) // NUM_SAMPLES, SAMPLE_BYTES)
        for offset in range(header_bytes, size, step):
            stream.seek(offset)
            yield stream.read(SAMPLE_BYTES)


def human_count(number: int) -> str:
    """A number of parameters as Ollama writes it: 1235814432 → ``1.2B``, 5900000 → ``5.90M``."""
    for unit, letter, decimals in UNITS:
        if number >= unit:
            return f"{number / unit:.{0 if number % unit == 0 else decimals}f}{letter}"
    return str(number)


def clean_text(text: str) -> str:
    """The text with what is no Unicode in it replaced, so that it can be sent as JSON."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text(value: Any) -> str:
    return clean_text(value) if isinstance(value, str) else ""


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _quantization(file: GGUFFile) -> str:
    """The type that the file says it has, else the one that most of its bytes have."""
    named = FILE_TYPES.get(_integer(file.metadata.get("general.file_type")) or 0)
    if "general.file_type" in file.metadata and named:
        return named
    num_bytes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        num_bytes[tensor.type.name] += tensor.nbytes
    return num_bytes.most_common(1)[0][0] if num_bytes else "unknown"


def _special_token(metadata: Mapping[str, Any], kind: str) -> str:
    """Text of the token that ``tokenizer.ggml.<kind>_token_id`` names, empty where there is none."""
    index = _integer(metadata.get(f"tokenizer.ggml.{kind}_token_id"))
    tokens = metadata.get("tokenizer.ggml.tokens")
    if index is None or tokens is None or not hasattr(tokens, "__getitem__") or not 0 <= index < len(tokens):
        return ""
    return _text(tokens[index])
