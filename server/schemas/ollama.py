"""Requests of the Ollama API. Fields and defaults are Ollama's; what Shale does not do yet is refused in a sentence."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from runner.protocol import MAX_TOP_LOGPROBS
from server.schemas.base import Integer, KeepAlive, ModelName, Request, UnsupportedError, only, only_with, whole

TEMPLATE_SENTENCE = (
    "field 'template' is a Go template in Ollama, which Shale does not run; the chat template in the GGUF file is used"
)
SUFFIX_SENTENCE = "field 'suffix' (fill in the middle) is not supported yet"
FORMAT_SENTENCE = "field 'format' (structured output) is not supported yet"
IMAGES_SENTENCE = "field 'images' is not supported yet"
TOOLS_SENTENCE = "field 'tools' is not supported yet"
IMAGE_MODEL_SENTENCE = "fields 'width', 'height' and 'steps' belong to image generation, which is not supported"
MAX_TOKENS = 1 << 20


def _whole_each(value: Any) -> Any:
    """``whole`` for each, where there is any other than an integer: a long list is not gone through for nothing."""
    return list(map(whole, value)) if isinstance(value, list) and float in set(map(type, value)) else value


def _think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, (bool, str)):
        return value
    raise ValueError("must be true, false or a string")


Format = Annotated[Any, only("", sentence=FORMAT_SENTENCE)]
ImageSize = Annotated[Any, only(0, sentence=IMAGE_MODEL_SENTENCE)]
Tokens = Annotated[tuple[int, ...], BeforeValidator(_whole_each), Field(strict=False, max_length=MAX_TOKENS)]


class ModelRequest(Request):
    """A request for one model."""

    model: ModelName = ""
    keep_alive: KeepAlive = None
    options: dict[str, Any] | None = None


class CompletionFields(ModelRequest):
    """What ``generate`` and ``chat`` share."""

    stream: bool | None = None
    format: Format = None
    think: Annotated[bool | str | None, BeforeValidator(_think)] = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> CompletionFields:
        if not 0 <= (self.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
            raise UnsupportedError(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
        if self.top_logprobs and not self.logprobs:
            raise only_with("top_logprobs", "logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """``top_logprobs`` of the completion: None when no logprobs were asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None


class GenerateRequest(CompletionFields):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: Tokens | None = None
    template: Annotated[Any, only("", sentence=TEMPLATE_SENTENCE)] = None
    suffix: Annotated[Any, only("", sentence=SUFFIX_SENTENCE)] = None
    images: Annotated[Any, only([], sentence=IMAGES_SENTENCE)] = None
    width: ImageSize = None
    height: ImageSize = None
    steps: ImageSize = None

    @model_validator(mode="before")
    @classmethod
    def _check_raw(cls, given: Any) -> Any:
        if (
            isinstance(given, dict)
            and given.get("raw")
            and any(given.get(name) for name in ("template", "system", "context"))
        ):
            raise UnsupportedError("raw mode does not support template, system, or context")
        return given


class ChatRequest(CompletionFields):
    messages: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] | None = None
    tools: Annotated[Any, only([], sentence=TOOLS_SENTENCE)] = None


class EmbedRequest(ModelRequest):
    input: Any = None  # "invalid input type" is Ollama's sentence, said by the route
    truncate: bool | None = None
    dimensions: Annotated[Integer, Field(ge=0)] | None = None


class EmbeddingsRequest(ModelRequest):
    prompt: str | None = None


class ShowRequest(Request):
    model: str = ""
    name: str = ""  # the older field; litellm sends it
    verbose: bool | None = None
    system: str | None = None
    options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_name(self) -> ShowRequest:
        if not (self.model or self.name):
            raise UnsupportedError("model is required")
        return self


class TokenizeRequest(Request):
    model: ModelName = ""
    text: str
    add_special: bool = True
    parse_special: bool = True
    keep_alive: KeepAlive = None


class DetokenizeRequest(Request):
    model: ModelName = ""
    tokens: Tokens
    keep_alive: KeepAlive = None
