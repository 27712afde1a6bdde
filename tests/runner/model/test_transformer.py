"""The forward pass: fast kernels against reference kernels, and the same bytes however a prompt is cut or batched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.kernels import Kernels, select
from runner.load import LoadedModel
from runner.sequence import Batch
from tests.runner.loading import load

CAUSAL = ("llama", "qwen2", "qwen3", "gemma3")
TYPES = ("F16", "F32", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K")
PROMPT = [5, 9, 2, 77, 31, 8, 8, 120, 64, 3, 19, 42, 7, 7, 99, 1, 30, 11, 54, 23] * 4


def logits_of(model: LoadedModel, tokens: list[int], cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Logits after ``tokens``, run in the pieces between ``cuts``."""
    sequence = model.cache.open()
    assert sequence is not None
    logits = None
    edges = [0, *cuts, len(tokens)]
    for start, stop in pairwise(edges):
        for at in range(start, stop, model.transformer.max_tokens):
            run = tokens[at : min(at + model.transformer.max_tokens, stop)]
            logits = model.forward([(sequence, run, "last")])
    model.cache.close(sequence)
    assert logits is not None
    return logits[0].copy()


@pytest.mark.parametrize("architecture", CAUSAL)
def test_fast_kernels_agree_with_the_reference(
    architecture: str, tiny_models: Callable[..., Path], fast: Kernels, reference: Kernels
) -> None:
    path = tiny_models(architecture, "F32")
    mine = logits_of(load(path, fast, kv_cache_type="f32"), PROMPT)
    wanted = logits_of(load(path, reference, kv_cache_type="f32"), PROMPT)
    np.testing.assert_allclose(mine, wanted, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_comes_close_to_the_reference(
    type_name: str, tiny_models: Callable[..., Path], fast: Kernels, reference: Kernels
) -> None:
    path = tiny_models("llama", type_name)
    mine = logits_of(load(path, fast), PROMPT)
    wanted = logits_of(load(path, reference), PROMPT)
    assert np.linalg.norm(mine - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("types", [("bf16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q8_0"), ("f32", "q4_0")], ids="-".join)
@pytest.mark.parametrize("head_dim", [64, 32], ids=["rotated", "not rotated"])
def test_every_cache_type_comes_close_to_the_reference(
    head_dim: int, types: tuple[str, str], tiny_models: Callable[..., Path], fast: Kernels, reference: Kernels
) -> None:
    """The same bytes are stored, up to a code here and there; and the logits differ from those of an exact cache."""
    path = tiny_models("qwen3", "F32", head_dim=head_dim)
    mine = logits_of(load(path, fast, kv_cache_type=types), PROMPT)
    wanted = logits_of(load(path, reference, kv_cache_type=types), PROMPT)
    exact = logits_of(load(path, fast, kv_cache_type="f32"), PROMPT)
    assert np.linalg.norm(mine - wanted) < 0.01 * np.linalg.norm(wanted)
    assert 1e-5 * np.linalg.norm(exact) < np.linalg.norm(mine - exact) < 0.2 * np.linalg.norm(exact)


@pytest.fixture(scope="module", params=[("llama", "Q4_K"), ("gemma3", "Q8_0"), ("qwen3", "F16")], ids=str)
def model(request: pytest.FixtureRequest, tiny_models: Callable[..., Path], fast: Kernels) -> LoadedModel:
    architecture, type_name = request.param
    return load(tiny_models(architecture, type_name), fast, num_parallel=3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, len(PROMPT) - 1), max_size=6))
def test_logits_do_not_depend_on_how_the_prompt_is_cut(model: LoadedModel, cuts: set[int]) -> None:
    whole = logits_of(model, PROMPT)
    assert logits_of(model, PROMPT, tuple(sorted(cuts))).tobytes() == whole.tobytes()


def test_logits_do_not_depend_on_who_else_is_in_the_batch(model: LoadedModel) -> None:
    alone = [logits_of(model, tokens) for tokens in (PROMPT[:13], PROMPT[3:30], [42])]
    sequences = [model.cache.open() for _ in alone]
    runs = [(s, t, "last") for s, t in zip(sequences, (PROMPT[:13], PROMPT[3:30], [42]), strict=True)]
    together = model.forward(runs).copy()  # type: ignore[arg-type]
    for sequence in sequences:
        assert sequence is not None
        model.cache.close(sequence)
    assert together.tobytes() == np.stack(alone).tobytes()


def test_logits_do_not_depend_on_the_number_of_threads(model: LoadedModel, fast: Kernels) -> None:
    two = logits_of(model, PROMPT)
    select("fast", fast.isa, 1)  # the threads belong to the process
    try:
        assert logits_of(model, PROMPT).tobytes() == two.tobytes()
    finally:
        select("fast", fast.isa, 2)


def test_a_window_really_hides_what_lies_before_it(tiny_models: Callable[..., Path], reference: Kernels) -> None:
    model = load(tiny_models("gemma3", "F32"), reference)
    window = model.spec.sliding_window
    assert 0 < window < len(PROMPT)
    assert any(model.spec.sliding_layers)
    assert not all(model.spec.sliding_layers)


def test_hidden_states_do_not_depend_on_their_neighbours(tiny_models: Callable[..., Path], fast: Kernels) -> None:
    model = load(tiny_models("bert", "Q8_0"), fast, num_parallel=2)
    inputs = ([1, 5, 9, 2], [1, 7, 7, 30, 41, 2])

    def embed(*runs: list[int]) -> np.ndarray:
        sequences = [model.cache.open() for _ in runs]
        hidden = model.transformer.embed(
            Batch.of([(s, r, "none") for s, r in zip(sequences, runs, strict=True)])  # type: ignore[misc]
        )
        assert [len(rows) for rows in hidden] == [len(run) for run in runs]
        for sequence in sequences:
            assert sequence is not None
            model.cache.close(sequence)
        return np.concatenate(hidden)

    assert embed(*inputs).tobytes() == np.concatenate([embed(i) for i in inputs]).tobytes()


def test_a_chunk_without_outputs_only_fills_the_cache(model: LoadedModel) -> None:
    sequence = model.cache.open()
    assert sequence is not None
    logits = model.forward([(sequence, PROMPT[:9], "none")])
    assert logits.shape == (0, model.spec.num_vocab)
    rest = model.forward([(sequence, PROMPT[9:20], "last")]).tobytes()
    model.cache.close(sequence)
    assert rest == logits_of(model, PROMPT[:20]).tobytes()


def test_a_batch_past_the_buffers_is_refused_with_both_numbers(model: LoadedModel) -> None:
    sequence = model.cache.open()
    assert sequence is not None
    with pytest.raises(ValueError, match="65 tokens; allowed are 1 to 64"):
        model.forward([(sequence, [1] * 65, "last")])
    model.cache.close(sequence)
