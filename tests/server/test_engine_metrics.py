"""What engines tell becomes series that Prometheus accepts: right names, right numbers, cumulative buckets."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families
from standin import STATS

import server.engine_metrics
from runner.protocol import CacheStats, Histogram, RunnerStats
from server.engine_metrics import cumulative, engine_metrics, occupancy


class Engines:
    def __init__(self, **stats: RunnerStats) -> None:
        self.stats = stats

    def collect(self):
        return engine_metrics(self.stats)


def scrape(**stats: RunnerStats) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(Engines(**stats))
    return {
        (sample.name, *(sample.labels[label] for label in ("model", "le") if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_every_number_has_its_place() -> None:
    found = scrape(a=STATS)
    expected = {
        "shale_sequences_active": 3, "shale_sequences_waiting": 5, "shale_sequences_parallel": 4,
        "shale_steps_total": 10, "shale_step_sequences_total": 20, "shale_step_tokens_total": 700,
        "shale_batch_occupancy_ratio": 0.5, "shale_cache_cells": 1000, "shale_cache_cells_used": 370,
        "shale_cache_cells_free": 630, "shale_cache_cells_shared": 40, "shale_cache_cells_cached": 50,
        "shale_cache_fragmentation_ratio": 0.25, "shale_cache_defragmentations_total": 2,
        "shale_cache_moved_bytes_total": 4096, "shale_cache_prefixes": 6, "shale_cache_prefix_hits_total": 7,
        "shale_cache_prefix_misses_total": 8, "shale_cache_reused_tokens_total": 90,
    }  # fmt: skip
    assert {name: found[name, "a"] for name in expected} == expected


def test_every_name_that_is_documented_is_there_and_the_other_way_round() -> None:
    lines = (server.engine_metrics.__doc__ or "").splitlines()
    documented = {line.split("{")[0].strip() for line in lines if line.startswith("    ")}
    suffixes = ("_bucket", "_sum", "_count")
    found = {next((name.removesuffix(s) for s in suffixes if name.endswith(s)), name) for name, *_ in scrape(a=STATS)}
    assert documented == found


def test_buckets_are_cumulative_and_end_with_all() -> None:
    found = scrape(a=STATS)
    buckets = {key[2]: value for key, value in found.items() if key[0] == "shale_step_seconds_bucket"}
    assert buckets == {"0.01": 4, "0.1": 9, "+Inf": 10}
    assert found["shale_step_seconds_count", "a"] == 10
    assert found["shale_step_seconds_sum", "a"] == 0.75


def test_a_histogram_without_bounds_is_one_bucket() -> None:
    assert cumulative(Histogram()) == [("+Inf", 0)]


def test_bounds_and_counts_grow() -> None:
    bounds = (0.0005, 0.001, 0.25, 1.0, 60.0)
    rows = cumulative(Histogram(bounds=bounds, counts=(1, 0, 2, 0, 5, 1)))
    assert [float(bound) for bound, _ in rows] == [*bounds, math.inf]
    assert [count for _, count in rows] == [1, 1, 3, 3, 8, 9]
    assert all(low[1] <= high[1] for low, high in pairwise(rows))


def test_a_histogram_that_is_damaged_is_not_passed_on() -> None:
    with pytest.raises(ValueError, match="zip"):
        cumulative(Histogram(bounds=(1.0,), counts=(1,)))


def test_each_model_has_its_series_and_one_that_is_gone_has_none() -> None:
    both, one = scrape(a=STATS, b=RunnerStats()), scrape(b=RunnerStats())
    assert both["shale_steps_total", "a"] == 10
    assert both["shale_steps_total", "b"] == 0
    assert {key[1] for key in one} == {"b"}


def test_occupancy_is_0_before_the_first_step() -> None:
    assert occupancy(RunnerStats(num_parallel=4)) == 0
    assert occupancy(RunnerStats(num_parallel=4, num_steps=2, num_batch_sequences=8)) == 1


def test_a_model_without_a_cache_has_no_cells() -> None:
    found = scrape(bert=RunnerStats(num_parallel=1, cache=CacheStats()))
    assert found["shale_cache_cells", "bert"] == found["shale_cache_cells_free", "bert"] == 0


def test_open_metrics_accepts_it_as_well() -> None:
    registry = CollectorRegistry()
    registry.register(Engines(a=STATS))
    text = generate_open_metrics(registry).decode()
    assert "shale_step_seconds" in {family.name for family in open_metrics_families(text)}
