"""What each kind of job does with an engine, and what it finds. Imports nothing of the project, as ``worker``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median

from tools.bench.worker import Embedder, Engine, Figures, Job, Request, Trace

FIRST_TOKEN = 5  # below lie the special tokens of some vocabularies
SHALLOW = 32
FILL_CHUNK = 512
BEFORE = 16  # tokens of a running sequence before others arrive
_PRIME, _STEP = 7919, 31
_fresh = itertools.count()


def measure(engine: Engine, job: Job) -> Figures:
    """Runs a job. Raises KeyError for an unknown kind."""
    return (KINDS | EMBEDDING_KINDS)[job.kind](engine, job)


def measure_embeddings(engine: Embedder, job: Job) -> Figures:
    """Runs a job that only needs embeddings. Raises KeyError for any other."""
    return EMBEDDING_KINDS[job.kind](engine, job)


def tokens(engine: Embedder, length: int) -> list[int]:
    """A prompt whose first tokens no earlier prompt had, so that no cached prefix helps."""
    key, usable = next(_fresh), engine.num_vocab // 2
    return [FIRST_TOKEN + (key * _PRIME + i * (_STEP + key)) % usable for i in range(length)]


# ---- one sequence -------------------------------------------------------------------------------


def prefill(engine: Engine, job: Job) -> Figures:
    """A prompt in one batch, from an empty sequence."""
    engine.reset()
    started = time.perf_counter()
    engine.forward(tokens(engine, job.prompt))
    return {"tokens/s": job.prompt / (time.perf_counter() - started)}


def decode(engine: Engine, job: Job) -> Figures:
    """Token by token behind a prompt, which is not counted."""
    engine.reset()
    engine.forward(tokens(engine, job.prompt))
    return {"tokens/s": job.generated / _seconds(engine, job.generated)}


def deep(engine: Engine, job: Job) -> Figures:
    """What attention to ``depth`` tokens adds to a token, and to a chunk of ``prompt`` tokens; and that chunk's speed.

    Both are differences to the same behind ``SHALLOW`` tokens.
    """
    _fill(engine, job.depth)
    engine.rewind(0, 1)
    engine.forward(tokens(engine, SHALLOW), 1)
    near = _chunks(engine, job, SHALLOW, 1)
    far = _chunks(engine, job, job.depth, 0)
    return {
        "attention of a token, ms": 1e3 * (far[0] - near[0]),
        f"attention of {job.prompt} tokens, ms": 1e3 * (far[1] - near[1]),
        f"chunk of {job.prompt}, tokens/s": job.prompt / far[1],
    }


def _fill(engine: Engine, depth: int) -> None:
    """Sequence 0 gets ``depth`` tokens, unless it has them from the job before."""
    if engine.num_past(0) < depth:
        engine.rewind(0, 0)
        for start in range(0, depth, FILL_CHUNK):
            engine.forward(tokens(engine, min(FILL_CHUNK, depth - start)), 0)


def _chunks(engine: Engine, job: Job, depth: int, sequence: int) -> tuple[float, float]:
    """Seconds of a token, and of a chunk, behind ``depth`` tokens."""
    engine.rewind(depth, sequence)
    engine.forward((FIRST_TOKEN,), sequence)  # threads awake, caches warm
    each = _seconds(engine, job.generated, sequence) / job.generated
    engine.rewind(depth, sequence)
    started = time.perf_counter()
    engine.forward(tokens(engine, job.prompt), sequence)
    chunk = time.perf_counter() - started
    engine.rewind(depth, sequence)
    return each, chunk


def _seconds(engine: Engine, num_tokens: int, sequence: int = 0) -> float:
    started = time.perf_counter()
    for token in range(num_tokens):
        engine.forward((FIRST_TOKEN + token,), sequence)
    return time.perf_counter() - started


# ---- many sequences -----------------------------------------------------------------------------


def together(engine: Engine, job: Job) -> Figures:
    """Sequences that generate side by side: their tokens a second, from the moment when all generate."""
    requests = [Request(tokens(engine, job.prompt), job.generated) for _ in range(job.sequences)]
    traces = engine.complete(requests)
    started, ended = max(trace[0] for trace in traces), min(trace[-1] for trace in traces)
    counted = sum(sum(started < when <= ended for when in trace) for trace in traces)
    return {"tokens/s": counted / (ended - started)}


ARRIVALS = 3


def mixed(engine: Engine, job: Job) -> Figures:
    """Prompts arrive while ``sequences`` generate: all tokens, those of the prompts included, a second.

    ``ARRIVALS`` prompts of ``prompt`` tokens, evenly over the first half of what the others generate.
    """
    requests = [Request(tokens(engine, SHALLOW), job.generated) for _ in range(job.sequences)]
    requests += [
        Request(tokens(engine, job.prompt), 1, after=1 + job.generated * i // (2 * ARRIVALS)) for i in range(ARRIVALS)
    ]
    traces = engine.complete(requests)
    started = max(trace[0] for trace in traces[: job.sequences])
    counted = sum(when > started for trace in traces for when in trace) + ARRIVALS * job.prompt
    return {"tokens/s": counted / (max(trace[-1] for trace in traces) - started)}


def gaps(engine: Engine, job: Job) -> Figures:
    """The time between two tokens of a running sequence; with ``prompt``, while one of that length is evaluated."""
    running = Request(tokens(engine, SHALLOW), job.generated, is_background=bool(job.prompt))
    if not job.prompt:
        return _percentiles(engine.complete([running])[0])
    trace, other = engine.complete([running, Request(tokens(engine, job.prompt), 1, after=BEFORE)])
    if trace[-1] < other[0] and len(trace) == job.generated:
        raise RuntimeError(f"{job.generated} tokens were generated before a prompt of {job.prompt} was evaluated")
    return _percentiles(trace[BEFORE - 1 :])


def _percentiles(trace: Trace) -> Figures:
    each = sorted(b - a for a, b in itertools.pairwise(trace))
    return {"p50 ms": 1e3 * median(each), "p99 ms": 1e3 * each[min(len(each) - 1, int(0.99 * len(each)))]}


def first_token(engine: Engine, job: Job) -> Figures:
    """From arrival to the first token of a prompt; ``depth`` of its tokens are a cached prefix."""
    prompt = tokens(engine, job.prompt)
    if job.depth:
        engine.complete([Request(prompt, 1)])
        prompt = [*prompt[: job.depth], *tokens(engine, job.prompt - job.depth)]
    started = time.perf_counter()
    return {"ms": 1e3 * (engine.complete([Request(prompt, 1)])[0][0] - started)}


# ---- embeddings ---------------------------------------------------------------------------------


def embed(engine: Embedder, job: Job) -> Figures:
    """``sequences`` inputs of about ``prompt`` tokens in one call."""
    inputs = [_input(engine, job.prompt, i) for i in range(job.sequences)]
    started = time.perf_counter()
    engine.embed(inputs)
    return {"inputs/s": job.sequences / (time.perf_counter() - started)}


def embed_singly(engine: Embedder, job: Job) -> Figures:
    """The same inputs, one a call."""
    inputs = [_input(engine, job.prompt, i) for i in range(job.sequences)]
    started = time.perf_counter()
    for each in inputs:
        engine.embed([each])
    return {"inputs/s": job.sequences / (time.perf_counter() - started)}


def _input(engine: Embedder, length: int, index: int) -> Sequence[int]:
    """Lengths from 4/5 to 6/5 of ``length``."""
    return tokens(engine, max(1, length + (index * 7 % 41 - 20) * length // 100))


KINDS: dict[str, Callable[[Engine, Job], Figures]] = {
    "prefill": prefill,
    "decode": decode,
    "deep": deep,
    "together": together,
    "mixed": mixed,
    "gaps": gaps,
    "first_token": first_token,
}
EMBEDDING_KINDS: dict[str, Callable[[Embedder, Job], Figures]] = {"embed": embed, "embed_singly": embed_singly}
