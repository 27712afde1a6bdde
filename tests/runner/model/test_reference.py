"""The demo model's logits and greedy tokens against those that llama.cpp computed (tools/record_reference.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.kernels import Kernels
from runner.load import LoadedModel
from tests.runner.loading import load

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "demo_reference.json").read_text(encoding="utf-8")
)["cases"]
LARGEST_DIFFERENCE = 0.15
"""Of log-probabilities: both engines quantize activations to eight bits, each in its own way."""


@pytest.fixture(scope="module", params=["fast", "reference"])
def model(request: pytest.FixtureRequest, demo_model: Path) -> LoadedModel:
    kernels: Kernels = request.getfixturevalue(request.param)
    return load(demo_model, kernels)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prompt"][:24])
def test_tokens_logits_and_greedy_path_agree(model: LoadedModel, case: dict[str, Any]) -> None:
    ids = model.tokenizer.encode(case["prompt"], add_special=True, parse_special=True)
    assert ids == case["ids"]
    sequence = model.cache.open()
    assert sequence is not None
    logits = model.forward([(sequence, ids, "last")])[0]
    logprobs = logits - model.kernels.log_sum_exp(logits)
    worst = np.abs(logprobs[case["top_ids"][:5]] - case["top_logprobs"][:5]).max()
    assert worst < LARGEST_DIFFERENCE
    for wanted, margin in zip(case["greedy"], case["greedy_margins"], strict=True):
        token = int(logits.argmax())
        if token != wanted:
            assert margin < 2 * LARGEST_DIFFERENCE, f"{token} instead of {wanted}, whose margin is {margin}"
            break
        logits = model.forward([(sequence, [token], "last")])[0]
    model.cache.close(sequence)
