"""The request of ``POST /api/plan``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from server.schemas.base import ModelName, Request
from server.schemas.options import LOADING, read_loading, read_options


def _devices(value: Any) -> str | None:
    """A list is written as text: ``["24GiB", 1024]`` → ``24GiB,1024``."""
    if isinstance(value, list) and all(isinstance(each, (str, int)) and not isinstance(each, bool) for each in value):
        value = ",".join(map(str, value)) if value else "cpu"
    if value is not None and not isinstance(value, str):
        raise ValueError('must be a text such as "24GiB,12GiB" or a list of sizes')
    return value or None


def _size(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
        raise ValueError('must be a size such as "64GiB" or a number of bytes')
    return None if value is None else str(value)


class PlanRequest(Request):
    """``devices`` and ``system_memory`` are of a machine that one thinks of; without them, this one as it is."""

    model: ModelName = ""
    devices: Annotated[str | None, BeforeValidator(_devices)] = None
    system_memory: Annotated[str | None, BeforeValidator(_size)] = None
    num_ctx: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    num_parallel: Any = None
    main_gpu: Any = None
    kv_cache_type: Any = None
    use_mmap: Any = None
    options: dict[str, Any] | None = Field(default=None, description="the same, as other requests have them")

    @property
    def loading(self) -> Mapping[str, Any]:
        """The options that concern loading, checked. Raises OptionError."""
        named = {name: value for name in LOADING if (value := getattr(self, name, None)) is not None}
        checked = {name: read_loading(name, value) for name, value in named.items()}
        return {**read_options(self.options).loading, **checked}
