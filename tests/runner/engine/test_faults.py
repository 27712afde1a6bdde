"""What one request's fault costs: that request, or the batch it was in, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runner.sequence import Batch
from tests.runner.engine.fakes import Desk, alphabet


def test_a_failing_forward_pass_ends_its_batch_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(num_parallel=2)

    def fail(batch: Batch) -> None:
        if ord("!") in batch.tokens:
            raise RuntimeError("kernel trouble")

    desk.transformer.before = fail
    bad, beside, after = (desk.complete(prompt, num_predict=2) for prompt in ("!", "a", "c"))
    desk.run()
    assert bad.lines == beside.lines == [{"error": "RuntimeError: kernel trouble"}]
    assert after.text == "de"
    assert "kernel trouble" in caplog.text
    assert "Traceback" in caplog.text


def test_broken_logits_end_one_request_only() -> None:
    desk = Desk()
    desk.transformer.next_logits = lambda token: alphabet(token) * (np.nan if token == ord("!") else 1)
    bad, good = desk.complete("!"), desk.complete("a", num_predict=2)
    desk.run()
    assert "not" in bad.final["error"] or "finite" in bad.final["error"]
    assert good.text == "bc"


def test_a_fault_while_choosing_ends_one_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    bad, good = desk.complete("x"), desk.complete("a", num_predict=2)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(bad.work, "draw", fail)
    desk.run()
    assert bad.lines == [{"error": "ZeroDivisionError: oops"}]
    assert good.text == "bc"


def test_a_failing_shift_ends_one_request_only(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(num_ctx=10)

    def broken(_layer: Any, _cells: Any) -> None:
        raise RuntimeError("no such kernel")

    desk.transformer.shifted_by = lambda _: broken  # type: ignore[method-assign]
    long, short = desk.complete("abcd", num_predict=20), desk.complete("abcd", num_predict=3)
    desk.run()
    assert long.lines[-1] == {"error": "RuntimeError: no such kernel"}
    assert short.text == "efg"
    assert "shifting a context failed" in caplog.text
