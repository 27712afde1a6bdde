"""From what a request asks for to what a runner is told: pure, with the model's header and the settings as input."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from runner.protocol import LoadRequest, Operation
from scheduler.errors import SettingsError
from scheduler.settings import SchedulerSettings

MIN_NUM_CTX = 4
DEFAULT_NUM_BATCH = 512


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

    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    num_gpu: int | None = None  # -1: as many layers as fit
    main_gpu: int | None = None
    use_mmap: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """The facts of a GGUF header that loading depends on."""

    architecture: str
    context_length: int  # tokens that the model was trained for


def resolve(options: LoadOptions, header: ModelHeader, settings: SchedulerSettings) -> LoadRequest:
    """The load request (operation FIT, empty layout) for these options; the context is clamped to the trained length.

    Raises SettingsError for a value that cannot be meant.
    """
    _check(options)
    asked = settings.default_num_ctx if options.num_ctx is None else options.num_ctx
    num_ctx = max(MIN_NUM_CTX, min(asked, header.context_length))
    return LoadRequest(
        operation=Operation.FIT,
        num_ctx=num_ctx,
        num_parallel=settings.num_parallel,
        num_batch=min(options.num_batch or DEFAULT_NUM_BATCH, num_ctx),
        num_thread=options.num_thread or 0,
        use_mmap=options.use_mmap is not False,
    )


def needs_reload(loaded: LoadRequest, wanted: LoadRequest, old: LoadOptions, new: LoadOptions, num_gpus: int) -> bool:
    """Whether a runner that was loaded for ``loaded`` (from ``old``) cannot serve ``wanted`` (from ``new``).

    A smaller context is served by a larger one. Any other option matters only where the request names it, and the
    options about GPUs only where there are GPUs.
    """
    if wanted.num_ctx > loaded.num_ctx:
        return True
    if new.num_batch is not None and min(new.num_batch, loaded.num_ctx) != loaded.num_batch:
        return True
    if new.num_thread and wanted.num_thread != loaded.num_thread:
        return True
    if new.use_mmap is not None and wanted.use_mmap != loaded.use_mmap:
        return True
    return num_gpus > 0 and _differ_on_gpus(old, new)


def merge(old: LoadOptions, new: LoadOptions) -> LoadOptions:
    """Options for a reload that serves the old requests as well.

    What ``new`` leaves open stays, and the context only grows. Without this, two clients with different options would
    reload each other's model for ever.
    """
    merged = replace(
        old,
        **{field.name: value for field in fields(new) if (value := getattr(new, field.name)) is not None},
    )
    if old.num_ctx is not None and merged.num_ctx is not None:
        merged = replace(merged, num_ctx=max(old.num_ctx, merged.num_ctx))
    return merged


def _differ_on_gpus(old: LoadOptions, new: LoadOptions) -> bool:
    has_other_count = new.num_gpu is not None and new.num_gpu >= 0 and new.num_gpu != old.num_gpu
    return has_other_count or (new.main_gpu is not None and new.main_gpu != old.main_gpu)


def _check(options: LoadOptions) -> None:
    minimum = {"num_batch": 1, "num_thread": 0, "num_gpu": -1, "main_gpu": 0}
    for name, low in minimum.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise SettingsError(f"{name} must be at least {low}, found {value}")
