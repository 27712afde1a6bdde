"""``GET /metrics``, and what moves it."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families
from standin import STATS

from scheduler.errors import RunnerUnreachableError

LABELS = ("device", "library", "kind", "model", "route", "method", "status")  # in this order in what scrape() finds
ASK = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


def scrape(site: Any) -> dict[tuple[str, ...], float]:
    """Sample values by name and label values."""
    answer = site.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_it_is_text_that_prometheus_takes(site: Any) -> None:
    assert site.get("/metrics").headers["content-type"].startswith("text/plain; version=")
    open_metrics = site.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert "shale_loads" in {family.name for family in open_metrics_families(open_metrics.text)}


def test_what_the_machine_has_is_in_it(site: Any) -> None:
    found = scrape(site)
    assert found["shale_device_bytes", "cpu", "cpu", "free"] == 600
    assert found["shale_device_bytes", "cpu", "cpu", "weights"] == 15
    assert found["shale_models_loaded",] == 1


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/api/version", "/api/version", "200"),
        ("GET", "/v1/models/some/model", "/v1/models/{name:path}", "404"),
        ("GET", "/v1/models", "/v1/models", "200"),
        ("POST", "/api/chat", "/api/chat", "400"),
        ("DELETE", "/api/chat", "/api/chat", "405"),
        ("GET", "/no/such/path", "other", "404"),
    ],
)
def test_a_request_counts_under_its_template(site: Any, method: str, path: str, route: str, status: str) -> None:
    site.request(method, path)
    found = scrape(site)
    assert found["shale_requests_total", route, method, status] == 1
    assert found["shale_request_seconds_count", route] == 1


def test_what_the_access_rules_refuse_counts_as_well(site: Any) -> None:
    assert site.get("/api/tags", headers={"host": "evil.example"}).status_code == 403
    assert scrape(site)["shale_requests_total", "other", "GET", "403"] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_of_a_completion(site: Any, stream: bool) -> None:
    site.post("/api/chat", {**ASK, "stream": stream})
    found = scrape(site)
    assert found["shale_prompt_tokens_total", "chat"] == 3
    assert found["shale_generated_tokens_total", "chat"] == 2


def test_tokens_of_embeddings(site: Any) -> None:
    site.post("/v1/embeddings", {"model": "embed", "input": ["a", "b"]})
    assert scrape(site)["shale_prompt_tokens_total", "embed"] == 4


def test_what_engines_tell_is_in_it(site: Any) -> None:
    found = scrape(site)
    assert found["shale_cache_cells_free", "gone"] == 630
    assert found["shale_step_seconds_count", "gone"] == 10
    assert found["shale_unanswered_scrapes_total", "gone"] == 0


def test_a_runner_that_does_not_answer_is_left_out_and_counted(site: Any) -> None:
    site.scheduler.stats_answer = RunnerUnreachableError("")
    for number in (1, 2):
        found = scrape(site)
        assert found["shale_unanswered_scrapes_total", "gone"] == number
        assert not [name for name, *_ in found if name.startswith(("shale_cache_", "shale_step"))]
        assert found["shale_models_loaded",] == 1
    site.scheduler.stats_answer = STATS
    assert scrape(site)["shale_steps_total", "gone"] == 10


def test_the_scrape_itself_is_the_only_request_in_progress(site: Any) -> None:
    site.post("/api/chat", ASK)
    assert scrape(site)["shale_requests_in_progress",] == 1
