"""What a model will take, from its GGUF header alone, before any process is started for it.

The numbers come from ``runner.footprint``, the very functions that the runner allocates by. Headers are read once
for each state of a file; a file that was seen and has not changed costs one ``stat``.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from runner.footprint import footprint
from runner.gguf import GGUFFile, open_gguf
from runner.protocol import LoadRequest, Memory, Operation
from scheduler.errors import ModelFileError
from scheduler.options import ModelHeader

_MAX_FILES = 64
_MAX_REQUESTS = 16  # of one file


@dataclass(slots=True)
class _Known:
    """What was learnt from one state of one file."""

    header: ModelHeader
    memory: dict[LoadRequest, Memory] = field(default_factory=dict)


class Estimator:
    """Reads headers and remembers. Blocking (a large vocabulary takes 0.1 s): call it on a thread. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int, int], _Known] = OrderedDict()
        self._lock = threading.Lock()

    def header(self, path: Path) -> ModelHeader:
        """Raises ModelFileError."""
        key = _key(path)
        with self._lock:
            if key not in self._known:
                with _open(path) as gguf:
                    self._remember(key, gguf)
            self._known.move_to_end(key)
            return self._known[key].header

    def memory(self, path: Path, request: LoadRequest) -> Memory:
        """What the model takes when it is loaded as ``request`` says. Raises ModelFileError."""
        request = request.model_copy(update={"operation": Operation.FIT})
        key = _key(path)
        with self._lock:
            known = self._known.get(key)
            if known is None or request not in known.memory:
                with _open(path) as gguf:
                    known = known or self._remember(key, gguf)
                    if len(known.memory) >= _MAX_REQUESTS:
                        known.memory.clear()
                    known.memory[request] = _footprint(gguf, request)
            self._known.move_to_end(key)
            return known.memory[request]

    def _remember(self, key: tuple[str, int, int], gguf: GGUFFile) -> _Known:
        known = self._known[key] = _Known(_header(gguf))
        if len(self._known) > _MAX_FILES:
            self._known.popitem(last=False)
        return known


def _key(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelFileError(f"unable to load model: {error.strerror}: {path}") from error
    return str(path), stat.st_mtime_ns, stat.st_size


def _open(path: Path) -> GGUFFile:
    try:
        return open_gguf(path)
    except (ValueError, OSError) as error:  # GGUFError is a ValueError
        raise ModelFileError(f"unable to load model: {error}") from error


def _header(gguf: GGUFFile) -> ModelHeader:
    try:
        architecture = gguf.architecture
    except ValueError as error:
        raise ModelFileError(f"unable to load model: {error}") from error
    name = f"{architecture}.context_length"
    length = gguf.metadata.get(name)
    if not isinstance(length, int) or length < 1:
        raise ModelFileError(f"unable to load model: {name} must be a positive integer, found {length!r} ({gguf.path})")
    return ModelHeader(architecture=architecture, context_length=length)


def _footprint(gguf: GGUFFile, request: LoadRequest) -> Memory:
    try:
        return footprint(gguf, request)
    except ValueError as error:  # the model is of a kind that the runner refuses, in the same words
        raise ModelFileError(f"unable to load model: {error}") from error
