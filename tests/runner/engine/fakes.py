"""A model that is an object: it continues "a" with "b", "b" with "c", and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.cache.kv_cache import KVCache
from runner.engine.completion import Completion
from runner.engine.embedding import EmbeddingJob
from runner.engine.engine import Engine
from runner.engine.work import Line
from runner.protocol import CompletionRequest, EmbeddingRequest, LoadRequest, Operation, SamplingOptions
from runner.sequence import Batch, Int32Array
from runner.tokenizer.detokenizer import StreamDetokenizer
from tests.runner.cache.fakes import layer

NUM_VOCAB = 300  # the bytes, and more rows than there are tokens
END = ord("{")  # follows "z"
Floats = NDArray[np.float32]


class FakeTokenizer:
    """Every byte is a token."""

    num_tokens = 256
    eog_ids = frozenset({END})
    add_eos = False

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text, add_special=True, parse_special=True)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def token_text(self, token_id: int) -> str:
        return bytes([token_id]).decode("utf-8", "replace")

    def detokenizer(self) -> StreamDetokenizer:
        return StreamDetokenizer(self.token_bytes, strip_space=False)


class FakeKernels:
    def top_k(self, logits: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
        ids = np.argsort(-logits, kind="stable")[:k].astype(np.int32)
        return ids, logits[ids]

    def log_sum_exp(self, logits: Floats) -> float:
        return float(np.logaddexp.reduce(logits.astype(np.float64)))


def alphabet(token: int) -> Floats:
    logits = np.zeros(NUM_VOCAB, np.float32)
    logits[(token + 1) % 256] = 20
    return logits


@dataclass
class FakeTransformer:
    """``next_logits``: from a row's token to its logits; it may raise."""

    next_logits: Callable[[int], Floats] = alphabet
    max_tokens: int = 8
    batches: list[list[int]] = field(default_factory=list)  # number of tokens of each sequence, per batch
    before: Callable[[Batch], None] = lambda _: None
    shifts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._hidden = np.empty((self.max_tokens, 2), np.float32)

    def forward(self, batch: Batch) -> Floats:
        self._record(batch)
        rows = [self.next_logits(int(token)) for token in batch.tokens[batch.outputs]]
        return np.stack(rows) if rows else np.empty((0, NUM_VOCAB), np.float32)

    def shifted_by(self, distance: int) -> Callable[[Any, Int32Array], None]:
        self.shifts.append(distance)
        return lambda _layer, _cells: None

    def embed(self, batch: Batch) -> list[Floats]:
        """A token's hidden state is (token, 1), and stays there until the next pass only."""
        self._record(batch)
        self._hidden[: batch.num_tokens] = np.stack([batch.tokens, np.ones(batch.num_tokens)], axis=1)
        return [self._hidden[s.start : s.stop] for s in batch.segments]

    def _record(self, batch: Batch) -> None:
        self.before(batch)
        self.batches.append([s.stop - s.start for s in batch.segments])


@dataclass(frozen=True)
class FakeSpec:
    architecture: str = "fake"
    is_causal: bool = True
    pooling: str | None = None
    num_vocab: int = NUM_VOCAB
    context_length: int = 1000
    can_shift: bool = True


@dataclass
class FakeModel:
    request: LoadRequest
    transformer: FakeTransformer
    spec: FakeSpec
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    kernels: FakeKernels = field(default_factory=FakeKernels)

    def __post_init__(self) -> None:
        num_ctx, num_parallel = self.request.num_ctx, self.request.num_parallel
        layers: Any = [layer(num_ctx * num_parallel)] if self.spec.is_causal else []
        self.cache = KVCache(layers, num_ctx=num_ctx, num_parallel=num_parallel, can_shift=self.spec.can_shift)


class Desk:
    """An engine over a fake model, with everybody's lines. Without ``engine.start`` the test takes the steps."""

    def __init__(self, *, num_ctx: int = 64, num_parallel: int = 2, num_batch: int = 8, **spec: Any) -> None:
        request = LoadRequest(
            operation=Operation.COMMIT, num_ctx=num_ctx, num_parallel=num_parallel, num_batch=num_batch
        )
        max_tokens = num_batch if spec.get("is_causal", True) else max(num_batch, num_ctx)
        self.transformer = FakeTransformer(max_tokens=max_tokens)
        self.model: Any = FakeModel(request, self.transformer, FakeSpec(**spec))
        self.engine = Engine(self.model, self._deliver, clock=lambda: 0.0)
        self.num_deliveries = 0

    def _deliver(self, deliveries: list[tuple[Callable[[Line], None], Line]]) -> None:
        self.num_deliveries += 1
        for receive, line in deliveries:
            receive(line)

    def complete(
        self, prompt: str | tuple[int, ...], *, request: dict[str, Any] | None = None, **options: Any
    ) -> Asked:
        lines: list[Line] = []
        chosen = SamplingOptions(**{"temperature": 0, **options})
        work = Completion(CompletionRequest(prompt=prompt, options=chosen, **(request or {})), self.model, lines.append)
        self.engine.submit(work)
        return Asked(work, lines)

    def embed(self, *inputs: str, **request: Any) -> Asked:
        lines: list[Line] = []
        job = EmbeddingJob(EmbeddingRequest(inputs=inputs, **request), self.model, lines.append)
        self.engine.submit(job)
        return Asked(job, lines)

    def run(self, max_steps: int = 1000) -> None:
        while self.engine.num_busy:
            max_steps -= 1
            assert max_steps, "the engine does not come to an end"
            self.engine.step()
        self.model.cache.check_integrity()
        assert self.model.cache.num_open == 0


@dataclass
class Asked:
    work: Any
    lines: list[Line]

    @property
    def text(self) -> str:
        return "".join(line.get("content", "") for line in self.lines)

    @property
    def tokens(self) -> list[int]:
        return [token for line in self.lines for token in line.get("tokens", ())]

    @property
    def logprobs(self) -> list[dict[str, Any]]:
        return [entry for line in self.lines for entry in line.get("logprobs", ())]

    @property
    def final(self) -> Line:
        assert sum("content" not in line for line in self.lines) == 1, self.lines
        return self.lines[-1]
