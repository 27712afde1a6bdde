"""From logits to the next token: pure functions of (logits, options, recent tokens, one random number).

Order: penalties, top_k, typical_p, top_p, min_p, temperature, draw. That is the order of llama.cpp, and of the Ollama
that runs on it today, where this order lets a high temperature flatten the choice among the good candidates without
letting bad ones in. (Ollama's own former engine applied the temperature before top_p and ignored the penalties.)

* Penalties look at the last ``repeat_last_n`` tokens, prompt included. A token that occurs there has its logit divided
  by ``repeat_penalty`` (multiplied, if it is not positive), then lowered by ``presence_penalty`` once and by
  ``frequency_penalty`` as often as it occurs.
* ``typical_p``: C. Meister et al., "Locally typical sampling", 2022. Candidates in order of |surprise - entropy|, up to
  the one whose cumulative probability exceeds p.
* ``top_p`` keeps the most probable candidates, up to the one whose cumulative probability reaches p; ``min_p`` keeps
  those with at least p times the probability of the best one. Neither ever empties the set.
* Temperature 0 is greedy: the best logit after the penalties, of equal ones the lower id.
* Log probabilities always come from the raw logits.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runner.protocol import SamplingOptions

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int32]

FIRST_CANDIDATES = 256
"""Without top_k, this many of the best candidates are looked at first; four times as many whenever they do not do."""

MAX_TEMPERATURE = 1e9  # as good as infinite, without the NaN of -inf / inf
LOWEST_LOG_PROBABILITY = -9999.0
"""What stands for the logarithm of zero, because JSON has no infinity. The OpenAI API uses the same number."""


class BrokenLogitsError(ArithmeticError):
    """The logits have no largest finite value: the forward pass produced NaN or infinity."""


class Selection(Protocol):
    """The two kernels that sampling needs; ``runner.kernels.Kernels`` has them."""

    def top_k(self, logits: Floats, k: int) -> tuple[Ids, Floats]:
        """The k largest values and their ids, descending; of equal values the lower id first."""

    def log_sum_exp(self, logits: Floats) -> float:
        """log(sum(exp(logits)))."""


class RecentTokens:
    """How often each token occurs among the last ``window`` ones. A negative window means all."""

    def __init__(self, window: int, tokens: Iterable[int] = ()) -> None:
        self._window = window
        self._order: deque[int] = deque()
        self.counts: Counter[int] = Counter()
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        if self._window == 0:
            return
        if len(self._order) == self._window:
            oldest = self._order.popleft()
            self.counts[oldest] -= 1
            if not self.counts[oldest]:
                del self.counts[oldest]
        self._order.append(token)
        self.counts[token] += 1


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Natural logarithms of the probabilities of the token that was drawn and of the best ones, descending."""

    chosen: float
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


def has_penalties(options: SamplingOptions) -> bool:
    return options.repeat_last_n != 0 and (
        options.repeat_penalty != 1.0 or options.presence_penalty != 0.0 or options.frequency_penalty != 0.0
    )


def sample(
    logits: Floats,
    options: SamplingOptions,
    draw: float,
    kernels: Selection,
    *,
    recent: RecentTokens | None = None,
    forbidden: Collection[int] = (),
) -> int:
    """Return the id of the next token.

    ``logits`` is one row (num_vocab,), contiguous and writable; it is the same after the call as before. ``draw`` is
    in [0, 1). Tokens in ``forbidden`` are never returned. Raises BrokenLogitsError.
    """
    with _penalized(logits, options, recent, forbidden):
        best = int(logits.argmax())  # NaN counts as the largest value, so one look finds it
        if not math.isfinite(logits[best]):
            found = float(logits[best])
            raise BrokenLogitsError(f"the model's best logit is {found} (token {best}); it must be a finite number")
        if options.temperature == 0 or options.top_k == 1:
            return best
        if options.top_k > 0 or options.typical_p < 1:
            return _draw_from_best(logits, options, draw, kernels)
        return _draw_from_all(logits, options, draw, kernels)


def log_probabilities(logits: Floats, token: int, num_top: int, kernels: Selection) -> LogProbabilities:
    """Log softmax of the raw logits (num_vocab,) at ``token`` and at the ``num_top`` best tokens."""
    total = kernels.log_sum_exp(logits)
    chosen = max(float(logits[token]) - total, LOWEST_LOG_PROBABILITY)
    if num_top == 0:
        return LogProbabilities(chosen, (), ())
    ids, values = kernels.top_k(logits, min(num_top, logits.size))
    top = np.maximum(values.astype(np.float64) - total, LOWEST_LOG_PROBABILITY)
    return LogProbabilities(chosen, tuple(ids.tolist()), tuple(top.tolist()))


@contextmanager
def _penalized(
    logits: Floats, options: SamplingOptions, recent: RecentTokens | None, forbidden: Collection[int]
) -> Iterator[None]:
    """Edit the few logits that penalties touch, and put them back."""
    counts = recent.counts if recent is not None and has_penalties(options) else {}
    if not counts and not forbidden:
        yield
        return
    ids = np.fromiter((*counts, *forbidden), np.intp, len(counts) + len(forbidden))
    saved = logits[ids]
    if counts:
        occurrences = np.fromiter(counts.values(), np.float32, len(counts))
        logits[ids[: len(counts)]] = penalize(saved[: len(counts)], occurrences, options)
    logits[ids[len(counts) :]] = -np.inf
    try:
        yield
    finally:
        logits[ids] = saved


def penalize(values: Floats, occurrences: Floats, options: SamplingOptions) -> Floats:
    """Logits of tokens that occur ``occurrences`` times (at least once) among the recent ones, lowered."""
    with np.errstate(over="ignore", invalid="ignore"):
        factor = np.float32(options.repeat_penalty)
        scaled = np.where(values > 0, values / factor, values * factor)
        lowered: Floats = (
            scaled - occurrences * np.float32(options.frequency_penalty) - np.float32(options.presence_penalty)
        )
    return lowered


def _draw_from_best(logits: Floats, options: SamplingOptions, draw: float, kernels: Selection) -> int:
    """The candidates are the top_k best, or all: a set that is known as a whole, so its probabilities add up to 1."""
    k = min(options.top_k, logits.size) if options.top_k > 0 else logits.size
    ids, best = kernels.top_k(logits, k)
    values = best.astype(np.float64)
    if options.typical_p < 1:
        kept = _typical(values, options.typical_p)
        ids, values = ids[kept], values[kept]
    num_kept = _num_kept(values, _log_sum_exp(values), options)
    return int(ids[_pick(values[:num_kept], options.temperature, draw)])


def _draw_from_all(logits: Floats, options: SamplingOptions, draw: float, kernels: Selection) -> int:
    """Every token is a candidate, but only as many are sorted as the cuts or the draw reach."""
    is_cut = options.top_p < 1 or options.min_p > 0
    log_total = kernels.log_sum_exp(logits) if options.top_p < 1 else 0.0
    total = None if is_cut else _tempered_total(logits, options.temperature, kernels)
    k = min(FIRST_CANDIDATES, logits.size)
    while True:
        ids, best = kernels.top_k(logits, k)
        values = best.astype(np.float64)
        num_kept = _num_kept(values, log_total, options)
        if k == logits.size or num_kept < k:
            return int(ids[_pick(values[:num_kept], options.temperature, draw, total)])
        if not is_cut and (index := _search(values, options.temperature, draw, total)) < k:
            return int(ids[index])
        k = min(4 * k, logits.size)


def _typical(values: Doubles, p: float) -> NDArray[np.intp]:
    """Indices of the typical candidates, ascending (so the values stay in descending order)."""
    log_p = values - _log_sum_exp(values)
    probability = np.exp(log_p)
    surprise = -np.where(probability > 0, log_p, 0.0)
    distance = np.abs(surprise - np.dot(probability, surprise))
    distance[probability == 0] = np.inf
    order = np.argsort(distance, kind="stable")
    num_kept = int(np.searchsorted(np.cumsum(probability[order]), p, side="right")) + 1
    return np.sort(order[:num_kept])


def _num_kept(values: Doubles, log_total: float, options: SamplingOptions) -> int:
    """How many of the candidates (descending logits) top_p and min_p keep: both cut off a tail, so the shorter wins."""
    kept = values.size
    if options.top_p < 1:
        cumulative = np.cumsum(np.exp(values - log_total))
        kept = min(kept, int(np.searchsorted(cumulative, options.top_p, side="left")) + 1)
    if options.min_p > 0:
        kept = min(kept, int(np.count_nonzero(values >= values[0] + math.log(options.min_p))))
    return kept


def _pick(values: Doubles, temperature: float, draw: float, total: float | None = None) -> int:
    """Index of the candidate in whose share of [0, 1) ``draw`` falls. Shares are in descending order."""
    return min(_search(values, temperature, draw, total), values.size - 1)


def _search(values: Doubles, temperature: float, draw: float, total: float | None) -> int:
    """As ``_pick``; ``values.size`` when the draw lies beyond these candidates. ``total`` is the weight of all."""
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((values - values[0]) / min(temperature, MAX_TEMPERATURE))
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, draw * (cumulative[-1] if total is None else total), side="right"))


def _tempered_total(logits: Floats, temperature: float, kernels: Selection) -> float:
    """Sum over all tokens of exp((logit - best logit) / temperature)."""
    with np.errstate(over="ignore", under="ignore"):
        scaled: NDArray[Any] = (logits - logits.max()) / np.float32(max(min(temperature, MAX_TEMPERATURE), 1e-30))
    return math.exp(kernels.log_sum_exp(scaled.astype(np.float32, copy=False)))


def _log_sum_exp(values: Doubles) -> float:
    """Of descending finite or -inf values, the first one finite."""
    return float(values[0]) + math.log(float(np.sum(np.exp(values - values[0]))))
