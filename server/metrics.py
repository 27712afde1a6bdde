"""What is counted for Prometheus: requests, tokens, the queue, loads and their ends. One registry for one application.

    shale_queue_length                       requests that wait for a model to load
    shale_queue_wait_seconds                 how long they waited
    shale_loads_total{result}                loaded, no_memory, crashed, timeout, shutdown, failed
    shale_load_seconds                       of loads that succeeded
    shale_load_phase_seconds_total{phase}    the same time by part: process, layout, weights
    shale_unloads_total{reason}              expired, asked, evicted, reload, crashed, shutdown
    shale_evictions_total{reason}            memory, max_models
    shale_evicted_bytes_total                that evictions made free
    shale_crashes_total                      runner processes that ended by themselves
    shale_requests_total{route,method,status}
    shale_request_seconds{route}             until the last byte of the answer
    shale_requests_in_progress
    shale_prompt_tokens_total{model}, shale_generated_tokens_total{model}
    shale_unanswered_scrapes_total{model}    scrapes that lack the model's engine: its runner did not answer in time

What is true at the moment of asking (``shale_models_loaded``, ``shale_device_bytes`` …) is in ``server.gauges``, what
the engines of loaded models count in ``server.engine_metrics``.
Every label has a bounded set of values: routes are templates, models are those of the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from scheduler.errors import (
    LayoutError,
    LayoutNotAllocatedError,
    LoadTimeoutError,
    RunnerExitedError,
    RunnerUnreachableError,
    ShuttingDownError,
)
from scheduler.events import Eviction, Unload

# When each series began: nobody asks, and it is a third of the text.
disable_created_metrics()  # type: ignore[no-untyped-call]

WAIT_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
REQUEST_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Label of a method that is none of ``METHODS``, and of a path that no route has."""

RESULTS: Mapping[type[BaseException], str] = {
    LayoutError: "no_memory",
    LayoutNotAllocatedError: "no_memory",
    LoadTimeoutError: "timeout",
    RunnerExitedError: "crashed",
    RunnerUnreachableError: "crashed",
    ShuttingDownError: "shutdown",
    BaseException: "failed",
}
"""``result`` of a load that failed, by the nearest class of its error."""


class Metrics:
    """All counters. Also the scheduler's observer (``scheduler.events.Observer``)."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._queue_length = Gauge("shale_queue_length", "Requests that wait for a model to load", registry=registry)
        self._queue_wait = Histogram(
            "shale_queue_wait_seconds",
            "How long requests waited for a model to load",
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._loads = Counter("shale_loads", "Loads that ended", ["result"], registry=registry)
        self._load_seconds = Histogram(
            "shale_load_seconds", "Time from nothing to a ready model", buckets=LOAD_BUCKETS_S, registry=registry
        )
        self._load_phases = Counter(
            "shale_load_phase_seconds", "Time of successful loads by part", ["phase"], registry=registry
        )
        self._unloads = Counter("shale_unloads", "Loaded models that ended", ["reason"], registry=registry)
        self._evictions = Counter("shale_evictions", "Models unloaded for other models", ["reason"], registry=registry)
        self._evicted_bytes = Counter("shale_evicted_bytes", "Memory that evictions made free", registry=registry)
        self._crashes = Counter("shale_crashes", "Runner processes that ended by themselves", registry=registry)
        self._requests = Counter("shale_requests", "Answers", ["route", "method", "status"], registry=registry)
        self._request_seconds = Histogram(
            "shale_request_seconds",
            "Time until the last byte of an answer",
            ["route"],
            buckets=REQUEST_BUCKETS_S,
            registry=registry,
        )
        self._in_progress = Gauge("shale_requests_in_progress", "Requests not yet answered", registry=registry)
        self._prompt_tokens = Counter(
            "shale_prompt_tokens", "Tokens of prompts and inputs", ["model"], registry=registry
        )
        self._generated_tokens = Counter("shale_generated_tokens", "Tokens of answers", ["model"], registry=registry)
        self._unanswered = Counter(
            "shale_unanswered_scrapes", "Scrapes that a runner did not answer in time", ["model"], registry=registry
        )
        self._children: dict[tuple[str, str, int], Counter] = {}
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """A series that appears with its first event hides that event from ``rate``."""
        for result in ("loaded", *RESULTS.values()):
            self._loads.labels(result)
        for unload in Unload:
            self._unloads.labels(unload.value)
        for eviction in Eviction:
            self._evictions.labels(eviction.value)

    # ---- requests ------------------------------------------------------------------------------

    def request_began(self) -> None:
        self._in_progress.inc()

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """``route`` is a template such as ``/v1/models/{name:path}``, or ``OTHER``."""
        self._in_progress.dec()
        method = method if method in METHODS else OTHER
        key = (route, method, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(*key)
        child.inc()
        self._request_seconds.labels(route).observe(seconds)

    def tokens(self, model: str, num_prompt: int, num_generated: int) -> None:
        """One completion or one batch of embeddings is done."""
        self._prompt_tokens.labels(model).inc(num_prompt)
        self._generated_tokens.labels(model).inc(num_generated)

    def scraped(self, model: str, has_answered: bool) -> None:
        """The model's runner was asked for a scrape."""
        self._unanswered.labels(model).inc(0 if has_answered else 1)

    # ---- scheduler.events.Observer -------------------------------------------------------------

    def queued(self, num_waiting: int) -> None:
        self._queue_length.set(num_waiting)

    def waited(self, seconds: float) -> None:
        self._queue_wait.observe(seconds)

    def load_started(self, model: str) -> None:
        """Nothing is counted before it ends."""

    def loaded(self, model: str, seconds: float, phases: Mapping[str, float]) -> None:
        self._loads.labels("loaded").inc()
        self._load_seconds.observe(seconds)
        for phase, part in phases.items():
            self._load_phases.labels(phase).inc(part)

    def load_failed(self, model: str, error: BaseException) -> None:
        self._loads.labels(next(RESULTS[kind] for kind in type(error).__mro__ if kind in RESULTS)).inc()

    def evicted(self, model: str, reason: Eviction, freed_bytes: int) -> None:
        self._evictions.labels(reason.value).inc()
        self._evicted_bytes.inc(freed_bytes)

    def crashed(self, model: str) -> None:
        self._crashes.inc()

    def unloaded(self, model: str, reason: Unload) -> None:
        self._unloads.labels(reason.value).inc()
