"""The option ``kv_cache_type`` as people write it: ``q8_0``, or ``q8_0,f16`` for keys of one and values of another."""

from __future__ import annotations

from typing import get_args

from runner.protocol import CacheType

KV_CACHE_TYPES: tuple[str, ...] = get_args(CacheType)

KVCacheType = str | tuple[str, str]
"""One type for both, or that of keys and that of values."""


def parse_kv_cache_type(text: str) -> KVCacheType:
    """One type or two; two that are the same are one. Raises ValueError for more; which ones exist is not looked at."""
    names = [name.strip().lower() for name in text.split(",")]
    if len(names) > 2 or not all(names):
        raise ValueError('one type, or those of keys and of values, such as "q8_0,f16"')
    return names[0] if len(set(names)) == 1 else (names[0], names[1])


def parse_kv_cache_type_setting(text: str) -> KVCacheType:
    """Like ``parse_kv_cache_type``, for an environment variable: an unknown type is a ValueError as well."""
    given = parse_kv_cache_type(text)
    if not set((given,) if isinstance(given, str) else given) <= set(KV_CACHE_TYPES):
        raise ValueError(f"{', '.join(KV_CACHE_TYPES)}, or those of keys and of values, such as q8_0,f16")
    return given


def written(given: KVCacheType) -> str:
    """The same as text, for ``parse_kv_cache_type``."""
    return given if isinstance(given, str) else ",".join(given)
