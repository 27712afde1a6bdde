"""Counters, and that a scraper can read them."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scheduler.errors import (
    CommitError,
    LayoutNotAllocatedError,
    LoadTimeoutError,
    RequireFullError,
    RunnerExitedError,
    ShuttingDownError,
    SystemMemoryError,
)
from scheduler.events import Eviction, Observer, Unload
from server.metrics import OTHER, Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_it_is_an_observer() -> None:
    observer: Observer = Metrics()
    names = {name for name in vars(Observer) if not name.startswith("_")}
    assert names
    assert all(callable(getattr(observer, name)) for name in names)


def test_a_scraper_reads_every_name_that_is_documented() -> None:
    import server.metrics

    documented = [line.split()[0] for line in (server.metrics.__doc__ or "").splitlines() if line.startswith("    ")]
    text = generate_latest(Metrics().registry).decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert len(documented) >= 13
    for name in documented:
        assert name.partition("{")[0].removesuffix("_total") in families


def test_requests_are_counted_by_route_method_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 404):
        metrics.request_began()
        metrics.request_ended("/api/chat", "POST", status, 0.02)
    assert value(metrics, "shale_requests_total", route="/api/chat", method="POST", status="200") == 2
    assert value(metrics, "shale_requests_total", route="/api/chat", method="POST", status="404") == 1
    assert value(metrics, "shale_request_seconds_count", route="/api/chat") == 3
    assert value(metrics, "shale_request_seconds_sum", route="/api/chat") == pytest.approx(0.06)


def test_a_method_that_nobody_knows_makes_no_series_of_its_own() -> None:
    metrics = Metrics()
    for number in range(3):
        metrics.request_ended(OTHER, f"BREW{number}", 405, 0.1)
    assert value(metrics, "shale_requests_total", route=OTHER, method=OTHER, status="405") == 3


def test_requests_in_progress_go_up_and_down() -> None:
    metrics = Metrics()
    metrics.request_began()
    metrics.request_began()
    metrics.request_ended("/", "GET", 200, 0.1)
    assert value(metrics, "shale_requests_in_progress") == 1


def test_the_queue() -> None:
    metrics = Metrics()
    metrics.queued(3)
    metrics.waited(0.2)
    metrics.waited(4.0)
    assert value(metrics, "shale_queue_length") == 3
    assert value(metrics, "shale_queue_wait_seconds_count") == 2
    assert value(metrics, "shale_queue_wait_seconds_bucket", le="0.25") == 1


def test_loads_and_their_time() -> None:
    metrics = Metrics()
    metrics.load_started("a")
    metrics.loaded("a", 2.0, {"process": 0.5, "layout": 0.25, "weights": 1.25})
    assert value(metrics, "shale_loads_total", result="loaded") == 1
    assert value(metrics, "shale_load_seconds_sum") == 2.0
    assert value(metrics, "shale_load_phase_seconds_total", phase="weights") == 1.25


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (RequireFullError(), "no_memory"),
        (SystemMemoryError(2, 1), "no_memory"),
        (LayoutNotAllocatedError(-1, ""), "no_memory"),
        (RunnerExitedError("signal: SIGKILL"), "crashed"),
        (LoadTimeoutError(0.5, ""), "timeout"),
        (ShuttingDownError(), "shutdown"),
        (CommitError("x"), "failed"),
        (KeyError("a defect"), "failed"),
    ],
)
def test_a_failed_load_is_counted_by_what_was_wrong(error: Exception, result: str) -> None:
    metrics = Metrics()
    assert value(metrics, "shale_loads_total", result=result) == 0  # from the start, for rate()
    metrics.load_failed("a", error)
    assert value(metrics, "shale_loads_total", result=result) == 1
    assert value(metrics, "shale_load_seconds_count") == 0


def test_ends() -> None:
    metrics = Metrics()
    metrics.evicted("a", Eviction.MEMORY, 1000)
    metrics.evicted("b", Eviction.MAX_MODELS, 500)
    metrics.unloaded("a", Unload.EVICTED)
    metrics.crashed("b")
    assert value(metrics, "shale_evictions_total", reason="memory") == 1
    assert value(metrics, "shale_evictions_total", reason="max_models") == 1
    assert value(metrics, "shale_evicted_bytes_total") == 1500
    assert value(metrics, "shale_unloads_total", reason="evicted") == 1
    assert value(metrics, "shale_unloads_total", reason="expired") == 0
    assert value(metrics, "shale_crashes_total") == 1


def test_tokens() -> None:
    metrics = Metrics()
    metrics.tokens("a", 10, 3)
    metrics.tokens("a", 5, 0)
    assert value(metrics, "shale_prompt_tokens_total", model="a") == 15
    assert value(metrics, "shale_generated_tokens_total", model="a") == 3


def test_two_applications_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.crashed("a")
    assert value(other, "shale_crashes_total") == 0


def test_a_name_with_quotes_and_newlines_is_still_readable() -> None:
    metrics = Metrics()
    name: Any = 'a"b\\c\nd{}'
    metrics.tokens(name, 1, 1)
    text = generate_latest(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["shale_prompt_tokens"].samples[0].labels == {"model": name}
