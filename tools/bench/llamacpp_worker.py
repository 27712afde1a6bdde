"""Measures llama.cpp: python -m tools.bench.llamacpp_worker MODEL SETTINGS.

Runs under the Python that has llama_cpp. Only the C API is called: of llama-cpp-python's own Python nothing is timed
but one ctypes call a forward pass. What a step carries is the policy of llama.cpp's own server: a token of every
sequence that generates, then prompts in the order of their arrival, up to ``num_batch`` tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import llama_cpp
import numpy as np

from tools.bench.measures import measure
from tools.bench.worker import Request, Settings, Trace, serve

NUM_EMBEDDING_SEQUENCES = 64
# One cache for all sequences, or one for each: 1 to 16 of them decode as fast either way (within 3 %), and with its own
# a short sequence does not pay for a long one. Flash attention is left to llama.cpp; on or off made less than 10 %.
KV_UNIFIED = False


@dataclass(slots=True)
class _Run:
    """A request under way."""

    request: Request
    sequence: int = -1  # none yet
    num_evaluated: int = 0
    last: int = -1
    trace: Trace = field(default_factory=list)

    @property
    def num_left(self) -> int:
        return len(self.request.prompt) - self.num_evaluated

    @property
    def is_done(self) -> bool:
        return len(self.trace) == self.request.num_generated


class LlamaCppEngine:
    """A llama.cpp context over one file."""

    def __init__(self, path: str, settings: Settings) -> None:
        """Raises RuntimeError when llama.cpp does not load the file."""
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self._settings = settings
        is_causal = not llama_cpp.llama_model_is_recurrent(model) and _architecture(model) != "bert"
        self._context = llama_cpp.llama_init_from_model(model, _parameters(settings, is_causal))
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._num_past: dict[int, int] = {}
        self._batch = llama_cpp.llama_batch_init(settings.num_batch, 0, 1)
        flags = llama_cpp.llama_print_system_info().decode().replace(" = 1", "").replace(" |", "").split()
        self.description = f"llama.cpp (llama-cpp-python {llama_cpp.__version__}), {' '.join(flags)}"

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)
        self._num_past.clear()

    def num_past(self, sequence: int = 0) -> int:
        return self._num_past.get(sequence, 0)

    def rewind(self, num_past: int, sequence: int = 0) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, num_past, -1)
        self._num_past[sequence] = min(num_past, self.num_past(sequence))

    def forward(self, tokens: Sequence[int], sequence: int = 0) -> None:
        self._step([(sequence, tokens, True)])

    def complete(self, requests: Sequence[Request]) -> list[Trace]:
        self.reset()
        runs = [_Run(request) for request in requests]
        free = list(range(self._settings.num_parallel))
        while not all(run.is_done for run in runs if not run.request.is_background):
            arrived = [run for run in runs if not run.is_done and run.request.after <= len(runs[0].trace)]
            for run in arrived:
                if run.sequence < 0 and free:
                    run.sequence = free.pop(0)
            served = [run for run in arrived if run.sequence >= 0]
            self._serve(served)
            free += [run.sequence for run in served if run.is_done]
        return [run.trace for run in runs]

    def embed(self, inputs: Sequence[Sequence[int]]) -> None:
        """As many inputs in a step as its tokens and sequences allow."""
        step: list[tuple[int, Sequence[int], bool]] = []
        for each in inputs:
            if sum(len(tokens) for _, tokens, _ in step) + len(each) > self._settings.num_batch:
                self._embed_step(step)
                step = []
            step.append((len(step), each, True))
        self._embed_step(step)

    def _serve(self, runs: Sequence[_Run]) -> None:
        """One step for requests that have a sequence and are not done."""
        steps = [(run, [run.last]) for run in runs if not run.num_left]
        room = self._settings.num_batch - len(steps)
        for run in runs:
            if run.num_left and room:
                begin = run.num_evaluated
                steps.append((run, list(run.request.prompt[begin : begin + room])))
                run.num_evaluated += len(steps[-1][1])
                room -= len(steps[-1][1])
        rows = self._step([(run.sequence, tokens, not run.num_left) for run, tokens in steps])
        now = time.perf_counter()
        drawing = [run for run, _ in steps if not run.num_left]
        for run, row in zip(drawing, rows, strict=True):
            run.last = self._best(row)
            run.trace.append(now)
            if run.is_done:
                self.rewind(0, run.sequence)

    def _step(self, runs: Sequence[tuple[int, Sequence[int], bool]]) -> list[int]:
        """A forward pass over (sequence, tokens, whether its last logits are wanted); the rows of those logits."""
        batch, rows, row = self._batch, [], 0
        for sequence, tokens, is_wanted in runs:
            first = self.num_past(sequence)
            for position, token in enumerate(tokens, first):
                batch.token[row], batch.pos[row], batch.logits[row] = token, position, False
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                row += 1
            self._num_past[sequence] = first + len(tokens)
            if is_wanted:
                batch.logits[row - 1] = True
                rows.append(row - 1)
        batch.n_tokens = row
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        llama_cpp.llama_synchronize(self._context)
        return rows

    def _embed_step(self, runs: Sequence[tuple[int, Sequence[int], bool]]) -> None:
        self._num_past.clear()
        self._step(runs)
        for sequence, _, _ in runs:
            if not llama_cpp.llama_get_embeddings_seq(self._context, sequence):
                raise RuntimeError(f"llama.cpp has no embedding for input {sequence}")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self.num_vocab,)).argmax())


def _architecture(model: object) -> str:
    text = (llama_cpp.ctypes.c_char * 64)()
    llama_cpp.llama_model_meta_val_str(model, b"general.architecture", text, len(text))
    return bytes(text.value).decode()


def _parameters(settings: Settings, is_causal: bool) -> llama_cpp.llama_context_params:
    params = llama_cpp.llama_context_default_params()
    params.n_seq_max = settings.num_parallel if is_causal else NUM_EMBEDDING_SEQUENCES
    params.n_ctx = settings.num_ctx * settings.num_parallel
    params.n_batch = params.n_ubatch = settings.num_batch
    params.n_threads = params.n_threads_batch = settings.num_thread
    params.embeddings = not is_causal
    params.kv_unified = KV_UNIFIED
    return params


if __name__ == "__main__":
    engine = LlamaCppEngine(sys.argv[1], Settings(**json.loads(sys.argv[2])))
    serve(engine.description, partial(measure, engine))
