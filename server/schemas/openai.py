"""Requests of the OpenAI API, with Shale's additions. Defaults of temperature and top_p are OpenAI's (1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from runner.protocol import MAX_TOP_LOGPROBS, SamplingOptions
from server.schemas.base import Integer, KeepAlive, ModelName, Request, UnsupportedError, only, only_with
from server.schemas.options import OptionError, read_loading, sampling_options

MAX_CHOICES = 128  # for each prompt
MAX_PROMPTS = 2048
MAX_COMPLETIONS = 2048  # prompts times choices

Prompt = str | tuple[int, ...]

SAMPLING_FIELDS = (
    "temperature", "top_p", "frequency_penalty", "presence_penalty", "top_k", "min_p", "typical_p", "repeat_penalty",
    "repeat_last_n", "ignore_eos", "num_predict",
)  # fmt: skip


def _refused(name: str, *neutral: Any) -> BeforeValidator:
    return only(*neutral, sentence=f"field {name!r} is not supported yet")


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value or []
    if not isinstance(strings, list) or not all(isinstance(each, str) for each in strings):
        raise ValueError("must be a string or a list of strings")
    return tuple(each for each in strings if each)


def _response_format(value: Any) -> None:
    if value is None or (isinstance(value, dict) and value.get("type") == "text"):
        return
    raise UnsupportedError(
        'field \'response_format\' (structured output) is not supported yet; allowed: {"type": "text"}'
    )


def is_token_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and 0 <= each < 1 << 31 for each in value)


def read_prompts(value: Any) -> tuple[Prompt, ...]:
    """The four forms of OpenAI's ``prompt`` and ``input``: text, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if is_token_list(value):
        return (tuple(value),)
    if (
        isinstance(value, list)
        and 0 < len(value) <= MAX_PROMPTS
        and all(isinstance(each, str) or is_token_list(each) for each in value)
    ):
        return tuple(each if isinstance(each, str) else tuple(each) for each in value)
    raise ValueError(
        f"must be a string, a list of strings, token ids, or a list of lists of token ids (1 to {MAX_PROMPTS} prompts)"
    )


def _context_length(value: Any) -> Any:
    try:
        return None if value is None else read_loading("num_ctx", value)
    except OptionError as error:
        raise UnsupportedError(str(error)) from error


NumCtx = Annotated[int | Literal["auto"] | None, BeforeValidator(_context_length)]

Prompts = Annotated[tuple[Prompt, ...], BeforeValidator(read_prompts)]


class StreamOptions(Request):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis; there is none to leave out


class GenerationRequest(Request):
    """What both completion routes share."""

    model: ModelName = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Integer | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stop)] = ()
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[Any, _refused("logit_bias", {})] = None
    user: str | None = None
    # additions: samplers and load options under Ollama's names
    top_k: Integer | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Integer | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    truncate: bool | None = None
    num_ctx: NumCtx = None
    keep_alive: KeepAlive = None
    return_token_ids: bool | None = None

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(cls, given: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        if given is not None and not others.data.get("stream"):
            raise only_with("stream_options", "stream")
        return given

    @property
    def num_predict(self) -> int | None:
        return self.max_tokens

    @property
    def has_usage_chunk(self) -> bool:
        return bool(self.stream and self.stream_options and self.stream_options.include_usage)

    @property
    def loading(self) -> Mapping[str, Any]:
        """Load-time options that the request names."""
        return {} if self.num_ctx is None else {"num_ctx": self.num_ctx}

    def sampling(self, choice: int = 0) -> SamplingOptions:
        """How choice number ``choice`` is sampled; with a seed, each choice gets its own. Raises OptionError."""
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS if getattr(self, name) is not None}
        if self.seed is not None:
            given["seed"] = self.seed + choice if self.seed >= 0 else self.seed
        return sampling_options({"temperature": 1.0, "top_p": 1.0, "stop": self.stop, **given})


class ChatCompletionRequest(GenerationRequest):
    messages: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[Any, _refused("tools", [])] = None
    tool_choice: Annotated[Any, _refused("tool_choice", "none", "auto")] = None
    functions: Annotated[Any, _refused("functions", [])] = None
    function_call: Annotated[Any, _refused("function_call", "none", "auto")] = None
    response_format: Annotated[Any, BeforeValidator(_response_format)] = None
    reasoning_effort: Annotated[Any, _refused("reasoning_effort", "none")] = None
    modalities: Annotated[Any, _refused("modalities", ["text"])] = None
    audio: Annotated[Any, _refused("audio")] = None
    prediction: Annotated[Any, _refused("prediction")] = None
    web_search_options: Annotated[Any, _refused("web_search_options")] = None
    parallel_tool_calls: bool | None = None  # says nothing without tools
    metadata: dict[str, Any] | None = None  # for the provider's records; Shale keeps none
    store: Annotated[Any, _refused("store", False)] = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _check_top_logprobs(cls, given: int | None, others: ValidationInfo) -> int | None:
        if given and not others.data.get("logprobs"):
            raise only_with("top_logprobs", "logprobs")
        return given

    @property
    def num_predict(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    prompt: Prompts
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: Annotated[Any, _refused("echo", False)] = None
    suffix: Annotated[Any, _refused("suffix", "")] = None
    best_of: Annotated[Any, _refused("best_of", 1)] = None

    @model_validator(mode="after")
    def _check_completions(self) -> CompletionRequest:
        count = len(self.prompt) * (self.n or 1)
        if count > MAX_COMPLETIONS:
            raise UnsupportedError(
                f"{len(self.prompt)} prompts with n {self.n} are {count} completions; at most {MAX_COMPLETIONS} are "
                "allowed in one request"
            )
        return self


class EmbeddingRequest(Request):
    model: ModelName = ""
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[Integer, Field(ge=1)] | None = None
    user: str | None = None
    truncate: bool | None = None
    num_ctx: NumCtx = None
    keep_alive: KeepAlive = None
