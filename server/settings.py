"""Every setting of the server: read once from the environment, frozen, and passed down.

Each field of ``Settings`` carries its environment name and a sentence; Ollama's name is accepted in its place. Where
both names are set the ``SHALE_`` one counts. A value that cannot be used is an error; nothing falls back silently.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_type_hints
from urllib.parse import urlsplit

from scheduler.device_choice import parse_devices
from scheduler.keep_alive import parse_keep_alive_setting
from scheduler.kv_cache_type import parse_kv_cache_type_setting
from scheduler.options import MAX_NUM_PARALLEL, MIN_NUM_CTX
from scheduler.sizes import parse_bytes

DEFAULT_PORT = 11434
DEFAULT_MODELS = "~/.shale/models"
ISA_NAMES = ("auto", "portable", "avx2", "avxvnni", "avx512vnni", "amx")
PREFIX = "SHALE_"
OTHER_NAMES = frozenset({"SHALE_PEER_PYTHON"})
"""Variables of that prefix that people set for something else than the server (the Makefile)."""


class SettingError(ValueError):
    """An environment variable holds what is not allowed. The message names variable, value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """Base URL for a client on this machine; the unspecified address becomes loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


DEFAULT_ADDRESS = Address("127.0.0.1", DEFAULT_PORT)


def parse_address(text: str) -> Address:
    """``host``, ``host:port``, ``:port`` or a URL of these; without a port it is 11434."""
    if text.count(":") > 1 and "[" not in text and "/" not in text:
        text = f"[{text}]"
    parts = urlsplit(text if "://" in text else f"//{text}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if port == -1 or parts.path not in ("", "/") or parts.scheme not in ("", "http") or "@" in parts.netloc:
        raise ValueError("host, host:port or :port, with a port of 0 to 65535")
    return Address(parts.hostname or "127.0.0.1", DEFAULT_PORT if port is None else port)


def _whole(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    allowed = f"at least {minimum}" if maximum == math.inf else f"{minimum} to {maximum}"

    def parse(text: str) -> int:
        if not text.isascii() or not text.removeprefix("-").isdigit() or not minimum <= int(text) <= maximum:
            raise ValueError(f"a whole number of {allowed}")
        return int(text)

    return parse


def _or(word: str, stands_for: int, parse: Callable[[str], int]) -> Callable[[str], int]:
    """``parse``, and beside what it takes the one ``word``."""

    def parse_or(text: str) -> int:
        try:
            return stands_for if text.lower() == word else parse(text)
        except ValueError as error:
            raise ValueError(f"{word}, or {error}") from None

    return parse_or


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError(", ".join(names))
        return text.lower()

    return parse


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in values:
        raise ValueError("1 or 0")
    return values[text.lower()]


def _devices(text: str) -> str:
    parse_devices(text)
    return text


def _directory(text: str) -> Path:
    return Path(text).expanduser()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _timeout(text: str) -> float:
    seconds = parse_keep_alive_setting(text)
    return math.inf if seconds <= 0 else seconds


@dataclass(frozen=True, slots=True)
class Row:
    """What the environment calls a setting: ``SHALE_<name>`` and, where Ollama has the same, ``OLLAMA_<name>``."""

    name: str
    parse: Callable[[str], Any]
    description: str
    has_twin: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return (f"{PREFIX}{self.name}", f"OLLAMA_{self.name}") if self.has_twin else (f"{PREFIX}{self.name}",)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server was told. Build it with ``from_environment``."""

    address: Annotated[Address, Row("HOST", parse_address, "host:port to listen on, and to connect to")] = (
        DEFAULT_ADDRESS
    )
    models: Annotated[Path, Row("MODELS", _directory, f"directory of the GGUF files to serve ({DEFAULT_MODELS})")] = (
        field(default_factory=lambda: _directory(DEFAULT_MODELS))
    )
    keep_alive_s: Annotated[
        float,
        Row("KEEP_ALIVE", parse_keep_alive_setting, "how long an idle model stays loaded (5m); negative: for ever"),
    ] = 300.0
    num_parallel: Annotated[
        int,
        Row(
            "NUM_PARALLEL",
            _or("auto", 0, _whole(0, MAX_NUM_PARALLEL)),
            "sequences that a model works on at a time; auto or 0: as many as fit, at most 4",
        ),
    ] = 0
    devices: Annotated[
        str,
        Row(
            "DEVICES", _devices, "devices to use: auto, cpu, or simulated ones (sim:8GiB,sim:6GiB); empty: auto", False
        ),
    ] = ""
    sim_ledger: Annotated[
        Path | None,
        Row("SIM_LEDGER", _directory, "folder in which simulated devices are counted; empty: one is made", False),
    ] = None
    fail_if_not_gpu: Annotated[
        bool, Row("FAIL_IF_NOT_GPU", _flag, "1: an error where layers of a model would stay on the CPU", False)
    ] = False
    kernels: Annotated[
        str, Row("KERNELS", _one_of("fast", "reference"), "CPU kernels: fast, or reference (plain NumPy, slow)", False)
    ] = "fast"
    cpu_isa: Annotated[
        str, Row("CPU_ISA", _one_of(*ISA_NAMES), "instruction set of the fast kernels (auto)", False)
    ] = "auto"
    context_length: Annotated[
        int,
        Row(
            "CONTEXT_LENGTH",
            _or("0", 0, _whole(MIN_NUM_CTX)),
            "num_ctx where a request does not say; 0: the default (4096)",
        ),
    ] = 0
    kv_cache_type: Annotated[
        str | tuple[str, str],
        Row(
            "KV_CACHE_TYPE", parse_kv_cache_type_setting, "type of the KV cache (f16), or of keys and values: q8_0,f16"
        ),
    ] = "f16"
    load_timeout_s: Annotated[
        float, Row("LOAD_TIMEOUT", _timeout, "how long a load may make no progress (5m); 0 or negative: for ever")
    ] = 300.0
    max_queue: Annotated[int, Row("MAX_QUEUE", _whole(1), "requests that may wait for a model to load (512)")] = 512
    max_loaded_models: Annotated[
        int, Row("MAX_LOADED_MODELS", _whole(0), "models loaded at a time; 0: the server's choice")
    ] = 0
    origins: Annotated[
        tuple[str, ...], Row("ORIGINS", _names, "more browser origins to allow, separated by commas")
    ] = ()
    debug: Annotated[bool, Row("DEBUG", _flag, "1: log at debug level")] = False
    sched_spread: Annotated[
        bool, Row("SCHED_SPREAD", _flag, "1: spread a model over all GPUs even if fewer would do")
    ] = False
    gpu_overhead_bytes: Annotated[
        int, Row("GPU_OVERHEAD", parse_bytes, "memory of each GPU that no model gets: bytes, or a size such as 512MiB")
    ] = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read every setting. An empty value counts as not set. Raises SettingError for the first bad value."""
        values = {}
        for attribute, row in rows().items():
            name, text = _find(environment, row.names)
            if text:
                values[attribute] = _parse(name, text, row.parse)
        return cls(**values)


def rows() -> dict[str, Row]:
    """The row of every setting, by its attribute, in order."""
    hints = get_type_hints(Settings, include_extras=True)
    return {each.name: hints[each.name].__metadata__[0] for each in fields(Settings)}


def warnings(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a setting and is none. An empty one counts as not set."""
    known = {row.names[0] for row in rows().values()} | OTHER_NAMES
    given = {name for name, text in environment.items() if name.startswith(PREFIX) and text.strip()}
    return [_warning(name) for name in sorted(given - known)]


def _warning(name: str) -> str:
    alike = get_close_matches(name.removeprefix(PREFIX), [row.name for row in rows().values()], n=1)
    return f"{name} is no setting and has no effect" + (f"; is {PREFIX}{alike[0]} meant?" if alike else "")


def _find(environment: Mapping[str, str], names: Sequence[str]) -> tuple[str, str]:
    """Name and value of the first that is set, without the quotes and blanks that shells and unit files leave."""
    for name in names:
        text = environment.get(name, "").strip().strip("\"'").strip()
        if text:
            return name, text
    return names[0], ""


def _parse(name: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        allowed = str(error).partition("allowed: ")[2] or str(error)
        raise SettingError(f"{name}={text!r} cannot be used; allowed: {allowed}") from error
