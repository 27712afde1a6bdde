"""The thin layer over the ``tokenizers`` library: one model, its normalizer and its pre-tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# One text is encoded by one thread anyway, and a pool of threads would compete with the kernels' own.
# Read by the library at its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer
from tokenizers.models import Model
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from runner.tokenizer.errors import TokenizerError


class Backend:
    """Encodes plain text, in which no token is special. Calls release the GIL."""

    def __init__(
        self, model: Model, *, normalizer: Normalizer | None = None, pre_tokenizer: PreTokenizer | None = None
    ) -> None:
        self._tokenizer = Tokenizer(model)
        if normalizer is not None:
            self._tokenizer.normalizer = normalizer
        if pre_tokenizer is not None:
            self._tokenizer.pre_tokenizer = pre_tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text. ``encode`` of the library would hold the GIL; the batched call does not."""
        with library_errors("a text could not be encoded"):
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns whatever the library raises into a TokenizerError.

    It raises bare ``Exception`` for bad vocabularies, and ``PanicException`` (a BaseException) where its own
    checks end; both can be provoked by a file.
    """
    try:
        yield
    except Exception as error:
        raise TokenizerError(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {error}") from error
