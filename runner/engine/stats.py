"""What the engine counts while it steps."""

from __future__ import annotations

from runner.engine.durations import Durations
from runner.protocol import CacheStats, RunnerStats


class EngineStats:
    """Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self.step = Durations()
        self.queue = Durations()
        self.first_token = Durations()
        self.inter_token = Durations()
        self._num_steps = 0
        self._num_batch_sequences = 0
        self._num_batch_tokens = 0

    def stepped(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """A forward pass has ended."""
        self.step.add(seconds)
        self._num_steps += 1
        self._num_batch_sequences += num_sequences
        self._num_batch_tokens += num_tokens

    def snapshot(self, *, num_waiting: int, num_active: int, num_parallel: int, cache: CacheStats) -> RunnerStats:
        return RunnerStats(
            num_waiting=num_waiting,
            num_active=num_active,
            num_parallel=num_parallel,
            num_steps=self._num_steps,
            num_batch_sequences=self._num_batch_sequences,
            num_batch_tokens=self._num_batch_tokens,
            cache=cache,
            step=self.step.histogram(),
            queue=self.queue.histogram(),
            first_token=self.first_token.histogram(),
            inter_token=self.inter_token.histogram(),
        )
