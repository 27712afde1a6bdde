"""Measures this engine in process: python -m tools.bench.shale_worker MODEL SETTINGS.

One sequence is measured as a loop of forward passes; loads of several requests go through ``runner.engine``, as those
of the runner's HTTP do.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from runner.engine.completion import Completion
from runner.engine.embedding import EmbeddingJob
from runner.engine.engine import Engine
from runner.engine.work import Line
from runner.kernels import KernelName, select
from runner.load import LoadedModel, Loader
from runner.protocol import CompletionRequest, EmbeddingRequest, LoadRequest, Operation, SamplingOptions, Status
from runner.sequence import Sequence as CacheSequence
from tools.bench.measures import measure
from tools.bench.worker import Request, Settings, Trace, serve


class ShaleEngine:
    """A loaded model, its open sequences, and an engine over the same model."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Raises RuntimeError when the model cannot be loaded."""
        isa = os.environ.get("SHALE_CPU_ISA", "auto")
        name: KernelName = "reference" if os.environ.get("SHALE_KERNELS") == "reference" else "fast"
        kernels = select(name, None if isa == "auto" else isa, settings.num_thread)
        self._model = loaded(Loader(path, kernels), settings)
        self._sequences: dict[int, CacheSequence] = {}
        self._engine = Engine(self._model, _deliver)
        self._engine.start()
        self.num_vocab = self._model.tokenizer.num_tokens or self._model.spec.num_vocab
        self.description = f"shale, {kernels.name} kernels, {kernels.isa}"

    def reset(self) -> None:
        for sequence in self._sequences.values():
            self._model.cache.close(sequence, keep=False)
        self._sequences.clear()

    def num_past(self, sequence: int = 0) -> int:
        return self._sequences[sequence].num_past if sequence in self._sequences else 0

    def rewind(self, num_past: int, sequence: int = 0) -> None:
        if sequence in self._sequences:  # the cells behind stay its own and are written again
            self._sequences[sequence].num_past = min(num_past, self._sequences[sequence].num_past)

    def forward(self, tokens: Sequence[int], sequence: int = 0) -> None:
        opened = self._sequences.get(sequence) or self._open(sequence)
        self._model.forward([(opened, list(tokens), "last")])

    def _open(self, sequence: int) -> CacheSequence:
        opened = self._model.cache.open()
        if opened is None:
            raise RuntimeError("no free sequence")
        self._sequences[sequence] = opened
        return opened

    def complete(self, requests: Sequence[Request]) -> list[Trace]:
        self.reset()
        load = _Load(self._engine, self._model, requests)
        load.wait()
        return load.traces

    def close(self) -> None:
        """Ends the engine's thread."""
        self._engine.close("the measurement is over")
        self._engine.join()

    def embed(self, inputs: Sequence[Sequence[int]]) -> None:
        answers: list[Line] = []
        done = threading.Event()

        def receive(line: Line) -> None:
            answers.append(line)
            done.set()

        request = EmbeddingRequest(inputs=tuple(tuple(each) for each in inputs))
        self._engine.submit(EmbeddingJob(request, self._model, receive))
        done.wait()
        if "error" in answers[0]:
            raise RuntimeError(answers[0]["error"])


class _Load:
    """Requests on their way through the engine. All but the constructor and ``wait`` runs in the engine's thread."""

    def __init__(self, engine: Engine, model: LoadedModel, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._finished = threading.Event()
        self._error = ""
        self.traces: list[Trace] = [[] for _ in requests]
        works = [Completion(_completion(each), model, self._receiver(i)) for i, each in enumerate(requests)]
        self._awaited = {i for i, each in enumerate(requests) if not each.is_background}
        self._background = [work for i, work in enumerate(works) if i not in self._awaited]
        self._later = sorted((each.after, i, works[i]) for i, each in enumerate(requests) if each.after)
        for work, request in zip(works, requests, strict=True):
            if not request.after:
                engine.submit(work)

    def wait(self) -> None:
        """Returns when all requests are done. Raises RuntimeError when one failed."""
        self._finished.wait()
        if self._error:
            raise RuntimeError(self._error)

    def _receiver(self, number: int) -> Callable[[Line], None]:
        def receive(line: Line) -> None:
            now = time.perf_counter()
            self.traces[number] += [now] * len(line.get("tokens", ()))
            while number == 0 and self._later and self._later[0][0] <= len(self.traces[0]):
                self._engine.submit(self._later.pop(0)[2])
            if "content" not in line:
                self._end(number, line)

        return receive

    def _end(self, number: int, line: Line) -> None:
        self._error = self._error or str(line.get("error", ""))
        self._awaited.discard(number)
        if self._error or not self._awaited:
            for work in self._background:
                self._engine.cancel(work)
            self._finished.set()


def _deliver(deliveries: list[tuple[Callable[[Line], None], Line]]) -> None:
    for receive, line in deliveries:
        receive(line)


def _completion(request: Request) -> CompletionRequest:
    options = SamplingOptions(temperature=0, num_predict=request.num_generated, ignore_eos=True)
    return CompletionRequest(prompt=tuple(request.prompt), options=options)


def loaded(loader: Loader, settings: Settings) -> LoadedModel:
    """Takes a loader through fit, alloc and commit. Raises RuntimeError when that fails."""
    for operation in (Operation.FIT, Operation.ALLOC, Operation.COMMIT):
        request = LoadRequest(
            operation=operation,
            num_ctx=settings.num_ctx,
            num_batch=settings.num_batch,
            num_thread=settings.num_thread,
            num_parallel=settings.num_parallel,
        )
        response = loader.handle(request)
        if not response.success:
            raise RuntimeError(f"{operation.name.lower()}: {response.message}")
    loader.wait()
    if loader.model is None or loader.health().status != Status.READY:
        raise RuntimeError(f"not loaded: {loader.health()}")
    return loader.model


if __name__ == "__main__":
    engine = ShaleEngine(Path(sys.argv[1]), Settings(**json.loads(sys.argv[2])))
    serve(engine.description, partial(measure, engine))
