"""The engine resizes its KV cache between steps, for whoever still wants that."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from runner.cache.kv_cache import CacheFullError
from runner.engine.completion import RequestError
from runner.protocol import CacheSize
from tests.runner.engine.fakes import Desk

SIZE = CacheSize(num_cells=7, held_bytes=70)


def asked_to_resize(desk: Desk, outcome: Exception | None = None) -> tuple[Future[CacheSize], list[int]]:
    """A future, and the budgets that reach the cache, which answers with ``outcome``."""
    budgets: list[int] = []

    def resize_within(nbytes: int) -> CacheSize:
        budgets.append(nbytes)
        if outcome is not None:
            raise outcome
        return SIZE

    desk.model.cache.resize_within = resize_within
    return desk.engine.resize_cache(70), budgets


def test_the_cache_is_resized_in_the_next_step() -> None:
    desk = Desk()
    future, budgets = asked_to_resize(desk)
    assert not future.done()
    desk.engine.step()
    assert (future.result(0), budgets) == (SIZE, [70])


def test_one_who_has_left_costs_nobody_anything() -> None:
    desk = Desk()
    asked = desk.complete("a", num_predict=3)
    future, budgets = asked_to_resize(desk)
    assert future.cancel()
    desk.run()
    assert (asked.text, budgets) == ("bcd", [])


def test_a_cache_that_is_too_full_says_so_and_everybody_goes_on() -> None:
    desk = Desk()
    asked = desk.complete("a", num_predict=3)
    future, _ = asked_to_resize(desk, CacheFullError(8, 7))
    desk.run()
    assert asked.text == "bcd"
    with pytest.raises(CacheFullError):
        future.result(0)


def test_a_fault_of_the_cache_is_told_to_whoever_asked_and_to_all_who_use_it() -> None:
    desk = Desk()
    asked = desk.complete("a", num_predict=3)
    future, _ = asked_to_resize(desk, RuntimeError("the cells are gone"))
    desk.run()
    assert "the cells are gone" in asked.final["error"]
    with pytest.raises(RuntimeError, match="the cells are gone"):
        future.result(0)


def test_an_engine_that_ends_or_has_ended_refuses() -> None:
    desk = Desk()
    before, budgets = asked_to_resize(desk)
    left = desk.engine.resize_cache(80)
    assert left.cancel()
    desk.engine.close("the model is unloaded")
    desk.engine.start()
    desk.engine.join()
    for future in (before, desk.engine.resize_cache(90)):
        with pytest.raises(RequestError, match="the model is unloaded") as error:
            future.result(0)
        assert error.value.status == 503
    assert budgets == []
