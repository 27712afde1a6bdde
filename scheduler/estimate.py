"""What a model will take, from its GGUF header alone, before any process is started for it.

The numbers come from ``runner.footprint``, the very functions that the runner allocates by. Headers are read once for
each state of a model's files; while none of them has changed, every question costs a ``stat`` of each and arithmetic.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runner.cache_types import CacheTypeError
from runner.footprint import DeviceName, Outline, footprint_of, outline
from runner.gguf import GGUFFile, open_gguf
from runner.protocol import LoadRequest, Memory
from scheduler.errors import ModelFileError, SettingsError
from scheduler.gpu import GPU
from scheduler.options import ModelHeader

_MAX_FILES = 64


class Estimates(Protocol):
    """What is asked about files; ``Estimator`` answers from their headers. Called on threads."""

    def header(self, path: Path) -> ModelHeader: ...

    def memory(self, path: Path, request: LoadRequest, devices: Sequence[DeviceName] = ()) -> Memory: ...


@dataclass(frozen=True, slots=True)
class _Stamp:
    """One state of one file. Its modification time can be set to anything (rsync, cp -p); the change time cannot."""

    path: Path
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class _Known:
    """What was learnt from one state of a model's files: of a model that no runner takes, why not."""

    stamps: tuple[_Stamp, ...]  # of every file of a split set
    header: ModelHeader
    outline: Outline | str

    @property
    def is_current(self) -> bool:
        return all(_stamp_or_none(stamp.path) == stamp for stamp in self.stamps)


class Estimator:
    """Reads headers and remembers. Blocking (a large vocabulary takes some 20 ms): call it on a thread. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def header(self, path: Path) -> ModelHeader:
        """Raises ModelFileError."""
        return self._look(path).header

    def memory(self, path: Path, request: LoadRequest, devices: Sequence[DeviceName] = ()) -> Memory:
        """What the model takes on the CPU and on ``devices`` when it is loaded as ``request`` says.

        Raises ModelFileError, also for a layout that cannot be; SettingsError for a type of the KV cache that does not
        go with the model's heads.
        """
        found = self._look(path).outline
        if isinstance(found, str):
            raise ModelFileError(found)
        try:
            return footprint_of(found, request, devices)
        except CacheTypeError as error:
            raise SettingsError(f"kv_cache_type: {error}") from error
        except ValueError as error:
            raise _refusal(error) from error

    def _look(self, path: Path) -> _Known:
        with self._lock:
            known = self._known.get(path)
            if known is None or not known.is_current:
                known = self._known[path] = _read(path)
                if len(self._known) > _MAX_FILES:
                    self._known.popitem(last=False)
            self._known.move_to_end(path)
            return known


def device_names(gpus: Sequence[GPU]) -> tuple[DeviceName, ...]:
    """The devices as ``Estimates.memory`` wants them."""
    return tuple(DeviceName(gpu.id, gpu.library) for gpu in gpus)


def _read(path: Path) -> _Known:
    stamp = _stamp(path)  # before it is read: a file that is replaced meanwhile will not be taken for the one known
    with _open(path) as gguf:
        others = (_stamp(shard) for shard in gguf.shards if shard != path)
        return _Known((stamp, *others), _header(gguf), _outline(gguf))


def _stamp(path: Path) -> _Stamp:
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelFileError(f"unable to load model: {error.strerror}: {path}") from error
    return _Stamp(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _stamp_or_none(path: Path) -> _Stamp | None:
    try:
        return _stamp(path)
    except ModelFileError:
        return None


def _open(path: Path) -> GGUFFile:
    try:
        return open_gguf(path)
    except (ValueError, OSError) as error:  # GGUFError is a ValueError
        raise _refusal(error) from error


def _header(gguf: GGUFFile) -> ModelHeader:
    try:
        architecture = gguf.architecture
    except ValueError as error:
        raise _refusal(error) from error
    name = f"{architecture}.context_length"
    length = gguf.metadata.get(name)
    if not isinstance(length, int) or length < 1:
        raise ModelFileError(f"unable to load model: {name} must be a positive integer, found {length!r} ({gguf.path})")
    return ModelHeader(architecture=architecture, context_length=length)


def _outline(gguf: GGUFFile) -> Outline | str:
    try:
        return outline(gguf)
    except ValueError as error:  # the model is of a kind that the runner refuses, in the same words
        return str(_refusal(error))


def _refusal(error: Exception) -> ModelFileError:
    return ModelFileError(f"unable to load model: {error}")
