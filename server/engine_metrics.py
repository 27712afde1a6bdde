"""What the engines of loaded models tell, as Prometheus has it. One label: the model's name.

    shale_sequences_active{model}               completions and inputs of embeddings that are computed at this moment
    shale_sequences_waiting{model}              those without a sequence
    shale_sequences_parallel{model}             that the model works on at a time
    shale_steps_total{model}                    forward passes
    shale_step_sequences_total{model}           sequences in them, summed over steps; each input of embeddings is one
    shale_step_tokens_total{model}              tokens in them, summed over steps
    shale_batch_occupancy_ratio{model}          sequences per step, of those possible; mean since the model was loaded
    shale_step_seconds{model}                   one forward pass with all that belongs to it
    shale_sequence_wait_seconds{model}          from a completion's arrival until it has a sequence
    shale_first_token_seconds{model}            from a completion's arrival until its first token
    shale_inter_token_seconds{model}            between tokens of one completion
    shale_cache_cells{model}                    of the KV cache: one cell holds one token
    shale_cache_cells_used{model}               by sequences and cached prefixes
    shale_cache_cells_free{model}               the rest
    shale_cache_cells_shared{model}             used ones with more than one owner
    shale_cache_cells_cached{model}             used ones that only cached prefixes hold
    shale_cache_fragmentation_ratio{model}      0: all cells in use lie together
    shale_cache_defragmentations_total{model}
    shale_cache_moved_bytes_total{model}        by defragmentations
    shale_cache_prefixes{model}                 finished sequences that are kept
    shale_cache_prefix_hits_total{model}        prompts that began with a cached prefix
    shale_cache_prefix_misses_total{model}      those that did not
    shale_cache_reused_tokens_total{model}      prompt tokens that were not computed again

The runner counts from the moment the model is loaded. A series ends with its runner and begins again at 0 with the
next one, which Prometheus takes for the restart that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from runner.protocol import Histogram, RunnerStats

Read = Callable[[RunnerStats], float]


def occupancy(stats: RunnerStats) -> float:
    """Sequences in the mean step, of those that the model works on at a time; 0 before the first step.

    At most 1: a bidirectional model takes as many inputs as a batch has room for, and has no sequences for them.
    """
    possible = stats.num_steps * stats.num_parallel
    return min(1.0, stats.num_batch_sequences / possible) if possible else 0.0


GAUGES: Mapping[str, tuple[str, Read]] = {
    "shale_sequences_active": ("Completions and inputs of embeddings under way", lambda s: s.num_active),
    "shale_sequences_waiting": ("Completions and inputs without a sequence", lambda s: s.num_waiting),
    "shale_sequences_parallel": ("Sequences at a time", lambda s: s.num_parallel),
    "shale_batch_occupancy_ratio": ("Sequences per step, of those possible", occupancy),
    "shale_cache_cells": ("Cells of the KV cache", lambda s: s.cache.num_cells),
    "shale_cache_cells_used": ("Cells in use", lambda s: s.cache.num_used),
    "shale_cache_cells_free": ("Cells not in use", lambda s: s.cache.num_cells - s.cache.num_used),
    "shale_cache_cells_shared": ("Cells with several owners", lambda s: s.cache.num_shared),
    "shale_cache_cells_cached": ("Cells that only cached prefixes hold", lambda s: s.cache.num_cached),
    "shale_cache_fragmentation_ratio": ("0: all cells in use lie together", lambda s: s.cache.fragmentation),
    "shale_cache_prefixes": ("Finished sequences that are kept", lambda s: s.cache.num_prefixes),
}

COUNTERS: Mapping[str, tuple[str, Read]] = {
    "shale_steps": ("Forward passes", lambda s: s.num_steps),
    "shale_step_sequences": ("Sequences and inputs of all steps", lambda s: s.num_batch_sequences),
    "shale_step_tokens": ("Tokens of all steps", lambda s: s.num_batch_tokens),
    "shale_cache_defragmentations": ("Defragmentations of the KV cache", lambda s: s.cache.num_defragmentations),
    "shale_cache_moved_bytes": ("Bytes that defragmentations moved", lambda s: s.cache.moved_bytes),
    "shale_cache_prefix_hits": ("Prompts that began with a cached prefix", lambda s: s.cache.num_hits),
    "shale_cache_prefix_misses": ("Prompts that did not", lambda s: s.cache.num_misses),
    "shale_cache_reused_tokens": ("Prompt tokens not computed again", lambda s: s.cache.num_reused_tokens),
}

HISTOGRAMS: Mapping[str, tuple[str, Callable[[RunnerStats], Histogram]]] = {
    "shale_step_seconds": ("Time of a forward pass", lambda s: s.step),
    "shale_sequence_wait_seconds": ("Time from arrival to a sequence", lambda s: s.queue),
    "shale_first_token_seconds": ("Time from arrival to the first token", lambda s: s.first_token),
    "shale_inter_token_seconds": ("Time between tokens of a completion", lambda s: s.inter_token),
}


def engine_metrics(stats: Mapping[str, RunnerStats]) -> Iterator[Metric]:
    """All families, each with one series for each model of ``stats``."""
    for name, (text, read) in GAUGES.items():
        yield _filled(GaugeMetricFamily(name, text, labels=["model"]), stats, read)
    for name, (text, read) in COUNTERS.items():
        yield _filled(CounterMetricFamily(name, text, labels=["model"]), stats, read)
    for name, (text, histogram) in HISTOGRAMS.items():
        family = HistogramMetricFamily(name, text, labels=["model"])
        for model, each in stats.items():
            family.add_metric([model], cumulative(histogram(each)), histogram(each).total_s)
        yield family


def cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus's buckets: (upper bound, how many are no longer than it), the last bound infinite."""
    bounds = (*histogram.bounds, float("inf"))
    names = [floatToGoString(bound) for bound in bounds]  # type: ignore[no-untyped-call]
    return list(zip(names, accumulate(histogram.counts), strict=True))


def _filled(family: GaugeMetricFamily | CounterMetricFamily, stats: Mapping[str, RunnerStats], read: Read) -> Metric:
    for model, each in stats.items():
        family.add_metric([model], read(each))
    return family
