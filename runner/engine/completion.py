"""One completion inside the engine: its prompt made to fit, its tokens drawn, its text told line by line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from runner.engine.work import Line
from runner.output import Output, Released
from runner.protocol import CompletionRequest, SamplingOptions
from runner.random import fresh_seed, uniform
from runner.sampling import Floats, LogProbabilities, RecentTokens, Selection, has_penalties, log_probabilities, sample
from runner.sequence import Int32Array

if TYPE_CHECKING:
    from runner.load import LoadedModel
    from runner.sequence import Sequence as CacheSequence
    from runner.tokenizer import Tokenizer

MAX_CONTEXTS = 10
"""An answer without a limit of its own ends after so many contexts, as Ollama's does: a model may never stop."""

MAX_STOP_CHARACTERS = 1 << 16


class RequestError(ValueError):
    """A request that cannot be served. ``status`` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Completion:
    """The life of one request: waiting, then its prompt is evaluated, then tokens are generated, then it is over.

    One that is put back while others need its cells waits again; what it has computed is computed anew, to the same
    bits, and nobody is told anything twice.

    The engine's thread owns it; only ``is_cancelled`` is set by others. Whoever delivers its lines calls ``receive``.
    """

    def __init__(self, request: CompletionRequest, model: LoadedModel, receive: Callable[[Line], None]) -> None:
        """Tokenizes the prompt, so call it where that may take time. Raises RequestError."""
        options = request.options
        _check(request, model)
        num_ctx = min(request.num_ctx or model.request.num_ctx, model.request.num_ctx)
        tokens = _tokens(request.prompt, model)
        fitted = fit_prompt(tokens, num_ctx, options, truncate=request.truncate)
        self.prompt: Int32Array = np.array(fitted, np.int32)
        self.context = self.prompt  # what is evaluated before the next token is drawn
        self.receive = receive
        self.is_cancelled = False
        self.is_cached = request.cache_prompt  # may take cached prefixes, and become one
        self.sequence: CacheSequence | None = None
        self.is_put_back = False  # it has had a sequence before
        self.num_evaluated = 0  # tokens of the context whose keys and values are in the cache
        self.num_generated = 0
        self._num_cached = 0  # prompt tokens that were there before
        self._num_ctx = num_ctx
        self._num_dropped = len(tokens) - len(self.prompt)
        self.num_shifted = 0  # tokens that went out of the context to make room for the answer
        self._request = request
        self._options = options
        self._seed = options.seed if options.seed >= 0 else fresh_seed()
        self._tokenizer = model.tokenizer
        # Some models have more rows than the vocabulary has tokens; those rows are never drawn.
        self._num_tokens = model.tokenizer.num_tokens or model.spec.num_vocab
        self._end_ids = model.tokenizer.eog_ids
        self._forbidden = sorted(self._end_ids) if options.ignore_eos else ()
        self._output = Output(model.tokenizer.detokenizer(), options.stop)
        window = num_ctx if options.repeat_last_n < 0 else options.repeat_last_n
        self._recent = RecentTokens(window, self.prompt[-window:].tolist()) if has_penalties(options) else None
        room = num_ctx - len(self.prompt) + 1  # the last token needs no cell
        limit = MAX_CONTEXTS * num_ctx if request.shift and model.spec.can_shift else room
        self._max_generated = min(options.num_predict, limit) if options.num_predict > 0 else limit
        self._drawn: list[int] = []
        self._arrived_ns = self._last_token_ns = time.monotonic_ns()
        self._started_ns = self._prompt_done_ns = 0

    @property
    def num_left(self) -> int:
        """Tokens that are evaluated before the next one is drawn; 0 while it is generating."""
        return len(self.context) - self.num_evaluated

    @property
    def num_ready(self) -> int:
        """How many of them go into the context before it is full: the answer of one that was put back may be longer."""
        return min(self.num_left, self._num_ctx - self.opened.num_past)

    @property
    def is_generating(self) -> bool:
        """Whether its context is evaluated: the prompt, and after it was put back what it had generated."""
        return not self.num_left

    @property
    def beginning(self) -> Int32Array:
        """Its context up to where that is full for the first time: what another sequence may have stored of it."""
        return self.context[: self._num_ctx]

    @property
    def opened(self) -> CacheSequence:
        assert self.sequence is not None, "it was admitted"
        return self.sequence

    def begin(self) -> None:
        """It has got its ``sequence``, perhaps with the beginning of its prompt in it."""
        self.num_evaluated = self.opened.num_past
        if not self.is_put_back:
            self._num_cached = self.opened.num_past

    def put_back(self) -> None:
        """It has lost its ``sequence``, and goes on where it was when it has another one."""
        self.is_put_back = True
        self.context = np.concatenate([self.prompt, np.array(self._drawn, np.int32)])
        self.num_evaluated = self.num_shifted = 0

    def next_tokens(self, count: int) -> Int32Array:
        """What goes through the model next: the last token, or ``count`` tokens of the context."""
        if self.is_generating:
            return np.array(self._drawn[-1:], np.int32)
        return self.context[self.num_evaluated : self.num_evaluated + count]

    def start(self) -> None:
        """A forward pass with its tokens is about to begin."""
        self._started_ns = self._started_ns or time.monotonic_ns()

    def advance(self, num_tokens: int) -> None:
        """A forward pass over ``num_tokens`` of its tokens has succeeded."""
        if not self.is_generating:
            self.num_evaluated += num_tokens

    @property
    def is_context_full(self) -> bool:
        """Whether its next token has no room."""
        return self.opened.num_past >= self._num_ctx

    @property
    def num_keep(self) -> int:
        """How many tokens stay at the beginning of a full context."""
        return kept(self._options, self._num_ctx, len(self.prompt))

    def waited_s(self) -> float:
        """Since its arrival."""
        return (time.monotonic_ns() - self._arrived_ns) / 1e9

    def since_last_token_s(self) -> float:
        """Time since the call before this one; the first time since its arrival."""
        before, self._last_token_ns = self._last_token_ns, time.monotonic_ns()
        return (self._last_token_ns - before) / 1e9

    def draw(self, logits: Floats, kernels: Selection) -> list[Line]:
        """Choose the next token from a row of logits; return the lines that it makes certain, the final one included.

        Raises BrokenLogitsError.
        """
        position = len(self.prompt) + self.num_generated
        draw = uniform(self._seed, position)
        known = logits[: self._num_tokens]
        token = sample(known, self._options, draw, kernels, recent=self._recent, forbidden=self._forbidden)
        self.num_generated += 1
        self._prompt_done_ns = self._prompt_done_ns or time.monotonic_ns()
        if token in self._end_ids:
            return self._finish("stop")
        self._drawn.append(token)
        if self._recent is not None:
            self._recent.push(token)
        top = self._request.top_logprobs
        detail = None if top is None else log_probabilities(known, token, top, kernels)
        lines = self._told(self._output.push(token, detail))
        if self._output.stopped_by is not None or self.num_generated >= self._max_generated:
            lines += self._finish("length")
        return lines

    def end_of_context(self) -> list[Line]:
        """The rest of the answer when its context is full and cannot be shifted."""
        return self._finish("length")

    def _finish(self, reason: str) -> list[Line]:
        """The rest of the text and the final line. A stop string that completes with the last token is a stop."""
        now = time.monotonic_ns()
        lines = self._told(self._output.finish())
        stopped_by = self._output.stopped_by
        final: Line = {
            "done": True,
            "done_reason": reason if stopped_by is None else "stop",
            "prompt_eval_count": len(self.prompt),
            "prompt_eval_cached": self._num_cached,
            "prompt_eval_duration": self._prompt_done_ns - self._started_ns,
            "eval_count": self.num_generated,
            "eval_duration": now - self._prompt_done_ns,
        }
        if self._request.return_prompt_tokens:
            final["prompt_tokens"] = self.prompt.tolist()
        if stopped_by is not None:
            final["stopped_by"] = stopped_by
        if self._num_dropped:
            final["truncated"] = self._num_dropped
        if self.num_shifted:
            final["shifted"] = self.num_shifted
        return [*lines, final]

    def _told(self, released: Released) -> list[Line]:
        if not released:
            return []
        line: Line = {"content": released.text, "tokens": released.tokens}
        if self._request.top_logprobs is not None:
            pairs = zip(released.tokens, released.details, strict=True)
            line["logprobs"] = [_token_logprob(self._tokenizer, token, detail) for token, detail in pairs]
        return [line]


def fit_prompt(tokens: Sequence[int], num_ctx: int, options: SamplingOptions, *, truncate: bool) -> Sequence[int]:
    """The prompt as it is evaluated: one of more than ``num_ctx`` tokens loses tokens after its first ``num_keep``.

    It loses so many that the answer has room: ``num_predict`` tokens, but at most half of what ``num_keep`` leaves.
    Raises RequestError if it is too long and may not be cut.
    """
    if len(tokens) <= num_ctx:
        return tokens
    if not truncate:
        raise RequestError(
            f"the input length exceeds the context length: the prompt has {len(tokens)} tokens, the context {num_ctx}"
        )
    keep = kept(options, num_ctx, len(tokens))
    half = max((num_ctx - keep) // 2, 1)
    room = min(options.num_predict, half) if options.num_predict > 0 else half
    tail = num_ctx - keep - room
    return [*tokens[:keep], *tokens[len(tokens) - tail :]]


def kept(options: SamplingOptions, num_ctx: int, num_prompt: int) -> int:
    """Tokens at the beginning that are never dropped: ``num_keep``, or all of the prompt; one may always go."""
    return min(num_prompt if options.num_keep < 0 else options.num_keep, num_ctx - 1)


def check_ids(ids: Sequence[int], num_vocab: int) -> None:
    """Raises RequestError for the first id that the model has no embedding for."""
    for index, token in enumerate(ids):
        if not 0 <= token < num_vocab:
            raise RequestError(f"token {index} is {token}; this model's tokens are 0 to {num_vocab - 1}")


def _tokens(prompt: str | Sequence[int], model: LoadedModel) -> Sequence[int]:
    if isinstance(prompt, str):
        tokens: Sequence[int] = model.tokenizer.encode_prompt(prompt) if prompt else ()
    else:
        tokens = prompt
    if not tokens:
        raise RequestError("the prompt is empty; at least one token is needed")
    check_ids(tokens, model.spec.num_vocab)
    return tokens


def _check(request: CompletionRequest, model: LoadedModel) -> None:
    """Raises RequestError for what this model, or this version of the engine, cannot do."""
    if not model.spec.is_causal:
        raise RequestError(f"this model does not support completion: {model.spec.architecture} gives embeddings only")
    if request.echo:
        raise RequestError("echo is not supported")
    options = request.options
    for name in ("temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"):
        if not math.isfinite(value := getattr(options, name)):
            raise RequestError(f"option {name} is {value}; it must be a finite number")
    if (length := sum(map(len, options.stop))) > MAX_STOP_CHARACTERS:
        raise RequestError(f"the stop strings have {length} characters; at most {MAX_STOP_CHARACTERS} are allowed")


def _token_logprob(tokenizer: Tokenizer, token: int, detail: LogProbabilities) -> Line:
    return {
        **_described(tokenizer, token, detail.chosen),
        "top_logprobs": [
            _described(tokenizer, other, value) for other, value in zip(detail.top_ids, detail.top, strict=True)
        ],
    }


def _described(tokenizer: Tokenizer, token: int, logprob: float) -> Line:
    return {
        "id": token,
        "token": tokenizer.token_text(token),
        "bytes": list(tokenizer.token_bytes(token)),
        "logprob": logprob,
    }
