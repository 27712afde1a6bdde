"""The models that a directory holds: every GGUF file below it, served in place under a name made of its path.

``dir/name.gguf`` is the model ``dir/name``, with or without ``:latest``; a split set is named by its first file without
``-00001-of-0000N``. Names are looked up in the result of a scan and never joined to a path. Symbolic links are
followed, also out of the directory: who may write there decides what is served.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runner.gguf import GGUFError, open_gguf
from server.catalog.facts import Facts, read_digest, read_facts
from server.errors import InvalidRequestError

SUFFIX = ".gguf"
DEFAULT_TAG = ":latest"
MAX_NAME_LENGTH = 512

_SHARD = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)

Stamp = tuple[tuple[str, int, int], ...]
"""(path, mtime in ns, size) of every file of a model: the same stamp, the same model."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One served model."""

    name: str
    path: Path  # of the first file
    size_bytes: int
    modified_at: datetime
    digest: str
    facts: Facts
    stamp: Stamp


def check_name(name: str) -> str:
    """A model name without ``:latest``. Raises InvalidRequestError for what can be no name."""
    parts = name.split("/")
    is_strange = any(part in ("", ".", "..") for part in parts) or not name.isprintable() or "\\" in name
    if len(name) > MAX_NAME_LENGTH or is_strange:
        raise InvalidRequestError("invalid model name", param="model")
    return name.removesuffix(DEFAULT_TAG)


class Catalog:
    """The scan of one directory, kept up to date. All methods may block on the disk; call them in a thread.

    A file is read again only when its time or size has changed, and one that cannot be read is logged once.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._entries: Mapping[str, Entry] = {}  # replaced whole, so that readers need no lock
        self._unreadable: dict[Stamp, str] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """Every served model, newest first."""
        return sorted(self._scan().values(), key=lambda entry: (-entry.modified_at.timestamp(), entry.name))

    def find(self, name: str) -> Entry | None:
        """The model of that name (case does not matter), as the disk has it now. Raises InvalidRequestError."""
        wanted = check_name(name)
        known = _match(self._entries, wanted)
        if known is not None and _stamp_of(known.path) == known.stamp:
            return known
        return _match(self._scan(), wanted)

    def _scan(self) -> Mapping[str, Entry]:
        with self._lock:
            known = {entry.stamp: entry for entry in self._entries.values()}
            entries: dict[str, Entry] = {}
            for name, path in _named_files(self.directory):
                stamp = _stamp_of(path)
                entry = known.get(stamp) or self._read(name, path, stamp)
                if entry is not None and entry.name not in entries:
                    entries[entry.name] = entry
            self._entries = entries
            return entries

    def _read(self, name: str, path: Path, stamp: Stamp) -> Entry | None:
        if stamp in self._unreadable:
            return None
        try:
            return _read_entry(name, path, stamp)
        except (GGUFError, OSError) as error:
            self._unreadable[stamp] = str(error)
            log.warning("not served: %s: %s", path, error)
            return None


def _read_entry(name: str, path: Path, stamp: Stamp) -> Entry:
    with open_gguf(path) as file:
        facts = read_facts(file)
        if not facts.is_model:
            raise GGUFError("the file is no model of its own (a projector, an adapter or the like)", path)
        digest, size_bytes = read_digest(file), file.file_bytes
    modified = datetime.fromtimestamp(max(mtime for _, mtime, _ in stamp) / 1e9, UTC)
    return Entry(name, path, size_bytes, modified, digest, facts, stamp)


def _match(entries: Mapping[str, Entry], name: str) -> Entry | None:
    if name in entries:
        return entries[name]
    folded = name.casefold()
    return next((entry for entry in entries.values() if entry.name.casefold() == folded), None)


def _named_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """(model name, path) of every model file below the directory, in a fixed order."""
    for path in _gguf_files(str(directory)):
        name = path.relative_to(directory).as_posix()[: -len(SUFFIX)]
        match = _SHARD.fullmatch(name)
        if match is None:
            yield name, path
        elif int(match["number"]) == 1:
            yield match["prefix"], path


def _gguf_files(directory: str) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(directory, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and _is_new(os.path.join(folder, name), seen)
        )
        for name in sorted(files):
            if name.lower().endswith(SUFFIX) and not name.startswith("."):
                yield Path(folder, name)


def _is_new(path: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is seen for the first time: links may form circles."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _stamp_of(path: Path) -> Stamp:
    """Times and sizes of the model's files; a file that is missing has -1."""
    return tuple(_file_stamp(shard) for shard in _shards_of(path))


def _shards_of(path: Path) -> list[Path]:
    match = _SHARD.fullmatch(path.name[: -len(SUFFIX)])
    if match is None:
        return [path]
    count = min(int(match["count"]), 999)
    return [
        path.with_name(f"{match['prefix']}-{number:05}-of-{match['count']}{path.suffix}")
        for number in range(1, count + 1)
    ]


def _file_stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), status.st_mtime_ns, status.st_size
