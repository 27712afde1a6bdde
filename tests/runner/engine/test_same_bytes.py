"""The same request gives the same bytes: alone or among others, from a cached prefix or not, moved about or not, also
when it was put back for want of cells.

Random schedules run through the real engine and real kernels; every answer, its log probabilities included, must be
the one that the same request gets alone, on a fresh cache, from one thread, with its prompt in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.engine.completion import Completion
from runner.engine.engine import Engine
from runner.kernels import Kernels
from runner.load import LoadedModel
from runner.protocol import CompletionRequest, SamplingOptions
from tests.runner.engine.same_models import NUM_CTX, SHAPES, QuietAndBusy, deliver, quiet_and_busy

SHARED = tuple(range(20, 70))  # what most prompts begin with

MODELS = {
    "llama-q4_k": ("llama", "Q4_K", {}),
    "llama-q4_0-kv_q8_0": ("llama", "Q4_0", {"kv_cache_type": "q8_0"}),
    "qwen3-f16-kv_bf16_q4_0": ("qwen3", "F16", {"kv_cache_type": ("bf16", "q4_0")}),
    "gemma3-q8_0": ("gemma3", "Q8_0", {}),
    "mixtral-q8_0-kv_f32": ("mixtral", "Q8_0", {"kv_cache_type": "f32"}),
}


@dataclass(frozen=True)
class Asked:
    """One request, and when it comes."""

    prompt: tuple[int, ...]
    num_predict: int
    seed: int
    arrives: int
    leaves: int | None = None  # the step before which the client is gone
    num_ctx: int | None = None  # less than the model is loaded with

    def request(self, *, cache_prompt: bool) -> CompletionRequest:
        options = SamplingOptions(
            temperature=0.9 if self.seed % 2 else 0.0, seed=self.seed, num_predict=self.num_predict, ignore_eos=True
        )
        return CompletionRequest(
            prompt=self.prompt, options=options, num_ctx=self.num_ctx, top_logprobs=2, cache_prompt=cache_prompt
        )


prompts = st.one_of(
    st.integers(1, len(SHARED)).map(lambda n: SHARED[:n]),
    st.builds(
        lambda n, tail: (*SHARED[:n], *tail), st.integers(1, len(SHARED)), st.lists(st.integers(5, 99), max_size=25)
    ),
    st.lists(st.integers(5, 99), min_size=1, max_size=60).map(tuple),
).map(lambda prompt: tuple(prompt[:NUM_CTX]))
requests = st.builds(
    Asked,
    prompt=prompts,
    num_predict=st.integers(1, 40),
    seed=st.integers(0, 5),
    arrives=st.integers(0, 30),
    leaves=st.one_of(st.none(), st.integers(0, 60)),
    num_ctx=st.one_of(st.none(), st.integers(16, NUM_CTX)),
)


@dataclass
class Desk:
    """An engine whose steps the test takes."""

    model: LoadedModel
    lines: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, asked: list[Asked], *, defragment_every: int = 0, cache_prompt: bool = True) -> list[list[Any]]:
        """The lines of each request, without durations."""
        engine = Engine(self.model, deliver)
        answers: list[list[Any]] = [[] for _ in asked]
        works: dict[int, Completion] = {}
        step = 0
        while len(works) < len(asked) or engine.num_busy:
            for number, each in enumerate(asked):
                if each.arrives == step:
                    works[number] = Completion(
                        each.request(cache_prompt=cache_prompt), self.model, answers[number].append
                    )
                    engine.submit(works[number])
                if each.leaves == step and number in works:
                    engine.cancel(works[number])
            engine.step()
            if defragment_every and step % defragment_every == 0:
                self.model.cache.defragment()
            self.model.cache.check_integrity()
            step += 1
            assert step < 5000, "the engine does not come to an end"
        assert self.model.cache.num_open == 0
        return answers

    def run_within(self, num_cells: int, asked: list[Asked], **how: Any) -> list[list[Any]]:
        """The same with a cache that has shrunk; afterwards it is as large as before."""
        self.model.cache.resize(num_cells)
        try:
            return self.run(asked, **how)
        finally:
            self.model.cache.resize(self.model.request.num_ctx * self.model.request.num_parallel)


ENDS = ("done_reason", "eval_count", "prompt_eval_count", "shifted", "truncated", "error")


def told(answer: list[dict[str, Any]]) -> tuple[list[Any], list[Any], Any]:
    """What must be equal: tokens, log probabilities to the last bit, and the end."""
    tokens = [token for line in answer for token in line.get("tokens", ())]
    details = [detail for line in answer for detail in line.get("logprobs", ())]
    end = answer[-1] if answer else {}
    return tokens, details, {key: end.get(key) for key in ENDS}


@pytest.fixture(scope="module", params=MODELS)
def models(request: pytest.FixtureRequest, tiny_models: Callable[..., Path], fast: Kernels) -> Iterator[QuietAndBusy]:
    """One that answers alone, and some that answer many."""
    architecture, type_name, options = MODELS[request.param]
    # Heads of 64 values: so that a quantized cache rotates its keys.
    path = tiny_models(architecture, type_name, head_dim=64)
    yield quiet_and_busy(path, fast, **options)
    fast.set_num_thread(2)


ALONE: dict[tuple[int, Asked], Any] = {}


def alone(model: LoadedModel, fast: Kernels, asked: Asked) -> Any:
    key = (id(model), replace(asked, arrives=0, leaves=None))
    if key not in ALONE:
        fast.set_num_thread(1)
        ALONE[key] = told(Desk(model).run([key[1]], cache_prompt=False)[0])
    return ALONE[key]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(requests, min_size=1, max_size=9),
    which=st.integers(0, len(SHAPES) - 1),
    defragment_every=st.sampled_from([0, 0, 1, 3]),
    num_thread=st.sampled_from([1, 2]),
)
def test_every_answer_is_the_one_that_the_request_gets_alone(
    models: QuietAndBusy,
    fast: Kernels,
    asked: list[Asked],
    which: int,
    defragment_every: int,
    num_thread: int,
) -> None:
    quiet, busy = models
    expected = [alone(quiet, fast, each) for each in asked]
    fast.set_num_thread(num_thread)
    answers = Desk(busy[which]).run(asked, defragment_every=defragment_every)
    for each, answer, right in zip(asked, answers, expected, strict=True):
        found = told(answer)
        if each.leaves is None or (answer and "done" in answer[-1]):
            assert found == right
        else:
            assert found[:2] == (right[0][: len(found[0])], right[1][: len(found[1])])


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(requests.map(lambda each: replace(each, arrives=each.arrives // 4)), min_size=3, max_size=9),
    which=st.integers(1, len(SHAPES) - 1),
    num_cells=st.integers(NUM_CTX, 2 * NUM_CTX),
    cache_prompt=st.booleans(),
)
def test_it_is_the_same_when_requests_have_to_make_way_for_each_other(
    models: QuietAndBusy, fast: Kernels, asked: list[Asked], which: int, num_cells: int, cache_prompt: bool
) -> None:
    quiet, busy = models
    answers = Desk(busy[which]).run_within(num_cells, asked, cache_prompt=cache_prompt)
    for each, answer in zip(asked, answers, strict=True):
        if each.leaves is None or (answer and "done" in answer[-1]):
            assert told(answer) == alone(quiet, fast, each)


def test_an_answer_whose_context_has_shifted_makes_way_and_is_the_same(
    models: QuietAndBusy, fast: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, busy = models
    num_shifted: list[int] = []
    put_back = Completion.put_back

    def recorded(work: Completion) -> None:
        num_shifted.append(work.num_shifted)
        put_back(work)

    monkeypatch.setattr(Completion, "put_back", recorded)
    asked = [Asked(SHARED[:10], 120, 0, 0), *(Asked(SHARED[n:30], 90, n, n, num_ctx=32) for n in (1, 2))]
    answers = Desk(busy[2]).run_within(NUM_CTX + 24, asked)
    for each, answer in zip(asked, answers, strict=True):
        assert told(answer) == alone(quiet, fast, each)
    assert max(num_shifted) > 0


@pytest.mark.parametrize("every", [1, 2, 5])
def test_generation_with_a_full_defragmentation_every_few_steps_equals_generation_without(
    models: QuietAndBusy, fast: Kernels, every: int
) -> None:
    quiet, busy = models
    asked = [Asked(SHARED[: 10 + 7 * n], 30, 0, 2 * n, leaves=9 if n % 2 else None) for n in range(6)]
    answers = Desk(busy[1]).run(asked, defragment_every=every)
    for each, answer in zip(asked, answers, strict=True):
        if each.leaves is None:
            assert told(answer) == alone(quiet, fast, each)


def test_a_second_request_takes_the_first_ones_prefix_and_says_so(models: QuietAndBusy, fast: Kernels) -> None:
    quiet, busy = models
    model = busy[2]
    model.cache.forget()
    first = Asked(SHARED, 5, 0, 0)
    Desk(model).run([first])
    (answer,) = Desk(model).run([first])
    assert told(answer) == alone(quiet, fast, first)
    assert answer[-1]["prompt_eval_cached"] == len(SHARED) - 1
