"""Ollama's ``options``: one table of what each is, where it goes, and what is known but not done here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from runner.protocol import SamplingOptions
from scheduler.kv_cache_type import KVCacheType, parse_kv_cache_type
from scheduler.options import AUTO

MAX_INTEGER = 2**63 - 1
MAX_FLOAT32 = 3.4028234663852886e38


class OptionError(ValueError):
    """An option is unknown, of the wrong type, out of range, or not implemented. The message names it."""


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError("integer")
    if value != int(value):
        raise ValueError("integer")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_FLOAT32:
        raise ValueError("float32")
    return float(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("boolean")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("string")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise ValueError("array")
    if not all(isinstance(each, str) for each in value):
        raise ValueError("an array of strings")
    return tuple(value)


def _cache_type(value: Any) -> KVCacheType:
    """``"q8_0"``, or keys and values: ``"q8_0,f16"``, ``["q8_0", "f16"]``, ``{"k": "q8_0", "v": "f16"}``."""
    if isinstance(value, dict) and set(value) == {"k", "v"}:
        value = [value["k"], value["v"]]
    try:
        if isinstance(value, list) and len(value) == 2:
            value = ",".join(map(_text, value))
        return parse_kv_cache_type(_text(value))
    except ValueError as error:
        raise ValueError('string, such as "q8_0", or "q8_0,f16" for keys and values') from error


def _or_auto(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``read``, and beside what it takes the word "auto"."""

    def read_or_auto(value: Any) -> Any:
        try:
            return AUTO if value == AUTO else read(value)
        except ValueError as error:
            raise ValueError(f'{error}, or "{AUTO}"') from error

    return read_or_auto


SAMPLING: Mapping[str, Callable[[Any], Any]] = {
    "num_keep": _integer,
    "seed": _integer,
    "num_predict": _integer,
    "top_k": _integer,
    "top_p": _number,
    "min_p": _number,
    "typical_p": _number,
    "repeat_last_n": _integer,
    "temperature": _number,
    "repeat_penalty": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "stop": _strings,
    "ignore_eos": _boolean,
}
"""Options of one completion, named as the fields of ``SamplingOptions``."""

CACHE_PROMPT = "cache_prompt"
"""Option of one completion that is no matter of sampling (llama.cpp's name): whether the cache may have its prompt."""

COMPLETION: Mapping[str, Callable[[Any], Any]] = {**SAMPLING, CACHE_PROMPT: _boolean}
"""All options of one completion."""

LOADING: Mapping[str, tuple[Callable[[Any], Any], int | None]] = {
    "num_ctx": (_or_auto(_integer), 4),
    "num_batch": (_integer, 1),
    "num_thread": (_integer, 0),
    "num_gpu": (_integer, -1),
    "main_gpu": (_integer, 0),
    "use_mmap": (_boolean, None),
    "kv_cache_type": (_cache_type, None),
    "num_parallel": (_integer, 1),
    "flash_attention": (_or_auto(_boolean), None),
    "fail_if_not_gpu": (_boolean, None),
}
"""Options that a model is loaded with, and the least value each may have."""

ANY = object()

WITHOUT_EFFECT: Mapping[str, Any] = {
    "numa": False,
    "low_vram": False,
    "f16_kv": True,
    "logits_all": False,
    "vocab_only": False,
    "use_mlock": False,
    "penalize_newline": True,
    "mirostat": 0,
    "mirostat_tau": ANY,  # act only with mirostat
    "mirostat_eta": ANY,
    "tfs_z": 1,
    "draft_num_predict": ANY,  # acts only with a draft model
}
"""Options that Ollama has or had and Shale does not, with the value that asks for nothing."""


@dataclass(frozen=True, slots=True)
class Options:
    """A request's options, sorted by whom they concern. ``loading`` holds only what the request named."""

    sampling: SamplingOptions
    loading: Mapping[str, Any]
    cache_prompt: bool = True


def read_options(given: Mapping[str, Any] | None) -> Options:
    """Sort and check a request's ``options``; a null value counts as not given. Raises OptionError."""
    found = {name: _read_any(name, value) for name, value in (given or {}).items() if value is not None}
    return Options(
        sampling=sampling_options({name: value for name, value in found.items() if name in SAMPLING}),
        loading={name: value for name, value in found.items() if name in LOADING},
        cache_prompt=found.get(CACHE_PROMPT, True),
    )


def _read_any(name: str, value: Any) -> Any:
    """The checked value; None for an option without effect. Raises OptionError."""
    if name in COMPLETION:
        return _read(name, value, COMPLETION[name])
    if name in LOADING:
        return read_loading(name, value)
    _refuse_unless_without_effect(name, value)
    return None


def read_loading(name: str, value: Any) -> Any:
    """Check one load-time option. Raises OptionError."""
    read, minimum = LOADING[name]
    value = _read(name, value, read)
    if minimum is not None and value != AUTO and value < minimum:
        raise OptionError(f'option "{name}" must be at least {minimum} (found {value})')
    return value


def sampling_options(values: Mapping[str, Any]) -> SamplingOptions:
    """``SamplingOptions`` of checked types. Raises OptionError when a value is out of range."""
    try:
        return SamplingOptions(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Input ").lower()
        raise OptionError(f'option "{first["loc"][0]}" {message} (found {first["input"]})') from error


def _read(name: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except ValueError as error:
        kind = str(error)
        of_type = kind if kind.startswith("an ") else f"type {kind}"
        raise OptionError(f'option "{name}" must be of {of_type}') from error


def _refuse_unless_without_effect(name: str, value: Any) -> None:
    if name not in WITHOUT_EFFECT:
        raise OptionError(f'unknown option "{name}"; known: {", ".join((*COMPLETION, *LOADING))}')
    neutral = WITHOUT_EFFECT[name]
    if neutral is not ANY and value != neutral:
        raise OptionError(
            f'option "{name}" is not supported by Shale; leave it out or set it to {str(neutral).lower()}'
        )
