"""From what a request asks for to what a runner is told: pure, with the model's header and the settings as input."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from runner.protocol import LoadRequest, Operation
from scheduler.errors import SettingsError
from scheduler.kv_cache_type import KV_CACHE_TYPES
from scheduler.settings import SchedulerSettings

MIN_NUM_CTX = 4
MAX_NUM_PARALLEL = 1024
MAX_AUTO_PARALLEL = 4
DEFAULT_NUM_BATCH = 512
MAX_NUM_THREAD = min(1024, max(64, 4 * (os.cpu_count() or 1)))
"""More would only wait for each other; the kernels' own limit is 1024."""

Auto = Literal["auto"]
AUTO: Auto = "auto"
"""As ``num_ctx``: the largest context with which the model still fits wholly, when it is loaded."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as the server's catalog knows it. ``path`` is its first (or only) GGUF file and its identity here."""

    name: str
    path: Path
    digest: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options of a request that concern loading. None: the server's default."""

    num_ctx: int | Auto | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    num_gpu: int | None = None  # -1: as many layers as fit
    main_gpu: int | None = None  # number of the GPU that is tried alone before others
    use_mmap: bool | None = None
    kv_cache_type: str | tuple[str, str] | None = None  # of both, or of keys and of values
    num_parallel: int | None = None
    flash_attention: bool | Auto | None = None
    fail_if_not_gpu: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """The facts of a GGUF header that loading depends on."""

    architecture: str
    context_length: int  # tokens that the model was trained for


@dataclass(frozen=True, slots=True)
class OnGPUs:
    """How much of a loaded model is on GPUs, and how many of these there were to choose from."""

    num_gpus: int = 0
    num_layers: int = 0
    num_placed: int = 0


def resolve(options: LoadOptions, header: ModelHeader, settings: SchedulerSettings) -> LoadRequest:
    """The load request (operation FIT, empty layout) for these options; the context is clamped to the trained length.

    ``"auto"`` becomes the trained length here, and a number of sequences that is left to the server 1:
    ``scheduler.plan`` finds what fits. Raises SettingsError for a value that cannot be meant.
    """
    _check(options)
    asked = settings.default_num_ctx if options.num_ctx is None else options.num_ctx
    if asked == AUTO:
        asked = header.context_length
    num_ctx = max(MIN_NUM_CTX, min(asked, header.context_length))
    return LoadRequest(
        operation=Operation.FIT,
        num_ctx=num_ctx,
        num_parallel=options.num_parallel or settings.num_parallel or 1,
        num_batch=min(options.num_batch or DEFAULT_NUM_BATCH, num_ctx),
        num_thread=options.num_thread or 0,
        kv_cache_type=options.kv_cache_type or settings.kv_cache_type,  # type: ignore[arg-type]  # _check has looked
        use_mmap=options.use_mmap is not False,
    )


def is_parallel_auto(options: LoadOptions, settings: SchedulerSettings) -> bool:
    """Whether the number of sequences is as many as fit."""
    return not (options.num_parallel or settings.num_parallel)


def must_be_on_gpu(options: LoadOptions, settings: SchedulerSettings) -> bool:
    """Whether layers on the CPU are an error."""
    return settings.fail_if_not_gpu if options.fail_if_not_gpu is None else options.fail_if_not_gpu


def layers_wanted(options: LoadOptions, num_layers: int) -> int:
    """How many of its layers are to be on GPUs: ``num_gpu``, or all where that is left open."""
    return num_layers if options.num_gpu is None or options.num_gpu < 0 else min(options.num_gpu, num_layers)


def context_of(options: LoadOptions, loaded_num_ctx: int) -> int:
    """The context of one request on a loaded model: what it asks for, where the model has more; else all there is."""
    if options.num_ctx is None or options.num_ctx == AUTO:
        return loaded_num_ctx
    return min(max(MIN_NUM_CTX, options.num_ctx), loaded_num_ctx)


def load_notes(options: LoadOptions, trained_num_ctx: int, num_ctx: int, num_parallel: int) -> tuple[str, ...]:
    """What a client should know where it did not get what it asked for, word for word.

    ``num_ctx`` is the request's own, ``num_parallel`` that of the loaded model.
    """
    asked = options.num_ctx
    notes = []
    if asked == AUTO:
        notes.append(f'num_ctx "auto" is {num_ctx}')
    elif asked is not None and 0 < trained_num_ctx < asked:
        notes.append(f"num_ctx {asked} was clamped to {trained_num_ctx}, the length the model was trained for")
    if options.num_parallel and options.num_parallel < num_parallel:
        notes.append(f"num_parallel {options.num_parallel}: the model is loaded with {num_parallel}")
    if options.flash_attention is False:
        notes.append("flash_attention false has no effect: attention always goes tile by tile")
    return tuple(notes)


def needs_reload(loaded: LoadRequest, wanted: LoadRequest, old: LoadOptions, new: LoadOptions, there: OnGPUs) -> bool:
    """Whether a runner that was loaded for ``loaded`` (from ``old``) cannot serve ``wanted`` (from ``new``).

    A smaller context (``context_of``), or fewer sequences, are served by a model that has more. ``"auto"`` takes the
    model as it is loaded, and so does a request that leaves the context open where another asked for ``"auto"``. Any
    other option matters only where the request names it, and the options about GPUs only where they can make a
    difference to what is ``there``.
    """
    takes_any_context = new.num_ctx == AUTO or (new.num_ctx is None and old.num_ctx == AUTO)
    if wanted.num_ctx > loaded.num_ctx and not takes_any_context:
        return True
    if new.num_parallel is not None and new.num_parallel > loaded.num_parallel:
        return True
    if new.kv_cache_type is not None and wanted.kv_cache_type != loaded.kv_cache_type:
        return True
    if new.num_batch is not None and min(new.num_batch, loaded.num_ctx) != loaded.num_batch:
        return True
    if new.num_thread and wanted.num_thread != loaded.num_thread:
        return True
    if new.use_mmap is not None and wanted.use_mmap != loaded.use_mmap:
        return True
    return there.num_gpus > 0 and _differ_on_gpus(old, new, there)


def merge(old: LoadOptions, new: LoadOptions, default_num_ctx: int) -> LoadOptions:
    """Options for a reload that serves the old requests as well.

    What ``new`` leaves open stays, and numbers of tokens and sequences only grow (``"auto"`` gives way to a number; a
    context that is left open is one of ``default_num_ctx``). Without this, two clients with different options would
    reload each other's model for ever.
    """
    merged = replace(
        old,
        **{field.name: value for field in fields(new) if (value := getattr(new, field.name)) is not None},
    )
    return replace(
        merged,
        num_ctx=_larger_context(old.num_ctx, new.num_ctx, default_num_ctx),
        num_parallel=max(filter(None, (old.num_parallel, merged.num_parallel)), default=None),
    )


def _larger_context(old: int | Auto | None, new: int | Auto | None, default: int) -> int | Auto | None:
    if old == AUTO or new == AUTO:
        return next((each for each in (old, new) if isinstance(each, int)), AUTO)
    return max(old, new, key=lambda each: default if each is None else each)


def _differ_on_gpus(old: LoadOptions, new: LoadOptions, there: OnGPUs) -> bool:
    if new.num_gpu is not None and new.num_gpu >= 0:
        wanted = layers_wanted(new, there.num_layers)
        was_asked = old.num_gpu is not None and old.num_gpu >= 0 and wanted == layers_wanted(old, there.num_layers)
        if wanted != there.num_placed and not was_asked:  # what was asked for and not had would not be had again
            return True
    return there.num_gpus > 1 and new.main_gpu is not None and new.main_gpu != old.main_gpu


def _check_cache_type(asked: str | tuple[str, str] | None) -> None:
    types = [asked] if isinstance(asked, str) else list(asked or ())
    unknown = [each for each in types if each not in KV_CACHE_TYPES]
    if unknown:
        raise SettingsError(f"kv_cache_type must be one of {', '.join(KV_CACHE_TYPES)}, found {unknown[0]!r}")


def _check(options: LoadOptions) -> None:
    if isinstance(options.num_ctx, str) and options.num_ctx != AUTO:
        raise SettingsError(f'num_ctx must be a number or "{AUTO}", found {options.num_ctx!r}')
    _check_cache_type(options.kv_cache_type)
    if options.fail_if_not_gpu and options.num_gpu == 0:
        raise SettingsError("num_gpu 0 keeps all layers on the CPU, which fail_if_not_gpu makes an error")
    if options.num_parallel is not None and options.num_parallel > MAX_NUM_PARALLEL:
        raise SettingsError(f"num_parallel must be at most {MAX_NUM_PARALLEL}, found {options.num_parallel}")
    if options.num_thread is not None and options.num_thread > MAX_NUM_THREAD:
        raise SettingsError(f"num_thread must be at most {MAX_NUM_THREAD}, found {options.num_thread}")
    minimum = {"num_batch": 1, "num_thread": 0, "num_gpu": -1, "main_gpu": 0, "num_parallel": 1}
    for name, low in minimum.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise SettingsError(f"{name} must be at least {low}, found {value}")
