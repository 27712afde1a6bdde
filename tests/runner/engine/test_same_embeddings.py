"""The same input gives the same vector to the last bit: alone or in company, whole or in chunks, on any threads.

Random schedules run through the real engine and real kernels, beside completions where the model can. Every vector
must be the one that the input gets alone, on one thread, in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.engine.completion import Completion
from runner.engine.embedding import EmbeddingJob
from runner.engine.engine import Engine
from runner.kernels import Kernels
from runner.load import LoadedModel
from runner.protocol import CompletionRequest, EmbeddingRequest, SamplingOptions
from tests.runner.engine.same_models import NUM_CTX, SHAPES, QuietAndBusy, deliver, quiet_and_busy

Input = tuple[int, ...]

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-q8_0": ("bert", "Q8_0", {}),
    "bert-cls-f16": ("bert-cls", "F16", {}),
    "llama-q4_k-mean": ("llama", "Q4_K", {"pooling": "mean"}),
    "qwen3-f16-last": ("qwen3", "F16", {"pooling": "last"}),
    "qwen2-f32-cls": ("qwen2", "F32", {"pooling": "cls"}),
    "gemma3-q8_0-mean": ("gemma3", "Q8_0", {"pooling": "mean"}),
}


@dataclass(frozen=True)
class Asked:
    """One request, and when it comes."""

    inputs: tuple[Input, ...]
    normalize: bool
    arrives: int


inputs = st.lists(st.integers(5, 99), min_size=1, max_size=NUM_CTX - 4).map(tuple)
requests = st.builds(
    Asked,
    inputs=st.lists(inputs, min_size=1, max_size=5).map(tuple),
    normalize=st.booleans(),
    arrives=st.integers(0, 12),
)


def run(model: LoadedModel, asked: list[Asked], num_completions: int = 0) -> list[np.ndarray]:
    """The vectors of each request, (inputs, embedding_length)."""
    engine = Engine(model, deliver)
    answers: list[list[dict[str, Any]]] = [[] for _ in asked]
    for number in range(num_completions):
        options = SamplingOptions(temperature=0, num_predict=30, ignore_eos=True)
        request = CompletionRequest(prompt=tuple(range(5 + number, 30)), options=options)
        engine.submit(Completion(request, model, lambda _: None))
    step = 0
    while step <= max(each.arrives for each in asked) or engine.num_busy:
        for each, answer in zip(asked, answers, strict=True):
            if each.arrives == step:
                embedding = EmbeddingRequest(inputs=each.inputs, normalize=each.normalize)
                engine.submit(EmbeddingJob(embedding, model, answer.append))
        engine.step()
        model.cache.check_integrity()
        step += 1
        assert step < 5000, "the engine does not come to an end"
    return [answer[0]["embeddings"] for answer in answers]


@pytest.fixture(scope="module", params=MODELS)
def models(request: pytest.FixtureRequest, tiny_models: Callable[..., Path], fast: Kernels) -> Iterator[QuietAndBusy]:
    """One that embeds one input alone and whole, and some that embed many."""
    architecture, type_name, changes = MODELS[request.param]
    path = tiny_models(architecture, type_name, **changes)
    yield quiet_and_busy(path, fast)
    fast.set_num_thread(2)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(requests, min_size=1, max_size=5),
    which=st.integers(0, len(SHAPES) - 1),
    num_completions=st.integers(0, 3),
    num_thread=st.sampled_from([1, 2]),
)
def test_every_vector_is_the_one_that_its_input_gets_alone(
    models: QuietAndBusy,
    fast: Kernels,
    asked: list[Asked],
    which: int,
    num_completions: int,
    num_thread: int,
) -> None:
    quiet, busy = models
    fast.set_num_thread(1)
    alone = [[run(quiet, [Asked((each,), one.normalize, 0)])[0][0] for each in one.inputs] for one in asked]
    fast.set_num_thread(num_thread)
    found = run(busy[which], asked, num_completions if quiet.spec.is_causal else 0)
    for vectors, expected in zip(found, alone, strict=True):
        assert vectors.tobytes() == np.stack(expected).tobytes()
