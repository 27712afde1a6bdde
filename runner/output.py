"""What of a growing answer is certain: its text, and the tokens whose text has been released in full.

Between a token and its text stand two delays: bytes wait for the rest of their UTF-8 character (in the detokenizer),
and characters wait while they may turn out to begin a stop string (in the scanner). A token, and with it its log
probability, is released together with the last of its text and is dropped when a stop string takes all of its text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from runner.stop import StopScanner


class Detokenizer(Protocol):
    """Turns tokens into text one by one; ``runner.tokenizer``'s stream detokenizer is one."""

    def push(self, token_id: int, /) -> str:
        """The characters that this token completes."""


@dataclass(slots=True)
class _Pending:
    """A token with the span of its text. Without text of its own it shares the span of the next one that has some."""

    token: int
    detail: Any
    begin: int
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """Text that is certain, and the tokens (with what was pushed beside them) that are out in full with it."""

    text: str
    tokens: list[int]
    details: list[Any]

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class Output:
    """Collects the tokens of one answer and releases text and tokens in order, each exactly once."""

    def __init__(self, detokenizer: Detokenizer, stops: Iterable[str]) -> None:
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stops)
        self._pending: deque[_Pending] = deque()
        self._num_decoded = 0  # characters that went into the scanner
        self._num_released = 0  # characters that came out of it

    @property
    def stopped_by(self) -> str | None:
        return self._scanner.stopped_by

    def push(self, token: int, detail: Any = None) -> Released:
        """Take the next token. ``detail`` travels with it."""
        self._pending.append(_Pending(token, detail, self._num_decoded))
        return self._release(self._scanner.push(self._decoded(self._detokenizer.push(token))))

    def finish(self) -> Released:
        """Release what is left, except for the bytes of a character that is not whole: there is no text for them."""
        text = self._scanner.finish()
        self._close_spans()
        return self._release(text)

    def _decoded(self, piece: str) -> str:
        self._num_decoded += len(piece)
        if piece:
            self._close_spans()
        return piece

    def _close_spans(self) -> None:
        for pending in reversed(self._pending):
            if pending.end is not None:
                break
            pending.end = self._num_decoded

    def _release(self, text: str) -> Released:
        self._num_released += len(text)
        out = Released(text, [], [])
        while self._pending and self._is_certain(self._pending[0]):
            pending = self._pending.popleft()
            out.tokens.append(pending.token)
            out.details.append(pending.detail)
        if self.stopped_by is not None:
            self._pending.clear()
        return out

    def _is_certain(self, pending: _Pending) -> bool:
        if self.stopped_by is not None:  # the stop begins at num_released: a token stays if some of its text does
            return pending.begin < self._num_released
        return pending.end is not None and pending.end <= self._num_released
