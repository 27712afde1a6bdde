"""The whole sentence between the scheduler and a runner: every value that crosses that wire.

The scheduler (and the front server) import this module and nothing else of the runner's but
``runner.gguf`` and ``runner.footprint``; the runner imports nothing of theirs. All values are frozen.
Bytes are plain ints, durations are nanoseconds and end in ``_duration``
on the wire because that is what the public API calls them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

TOKEN_ENVIRONMENT_NAME = "SHALE_RUNNER_TOKEN"
"""Environment variable through which the parent hands the child its bearer token."""

MAX_TOP_LOGPROBS = 20


class Message(BaseModel):
    """Base of everything on the wire: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- loading -----------------------------------------------------------------------------------


class Operation(IntEnum):
    """The four load operations, in the order in which they happen."""

    FIT = 0
    ALLOC = 1
    COMMIT = 2
    CLOSE = 3


class DeviceLayers(Message):
    """The layers that one device holds. Layer ``block_count`` is the output layer."""

    id: str
    library: str
    layers: tuple[int, ...]


Layout = tuple[DeviceLayers, ...]
"""Layers on devices other than the CPU; every layer not named stays on the CPU."""


class DeviceMemory(Message):
    """Bytes on one device, by layer. Both tuples have ``block_count + 1`` entries."""

    id: str
    library: str
    weights: tuple[int, ...]
    cache: tuple[int, ...]
    graph: int

    @property
    def total_bytes(self) -> int:
        return sum(self.weights) + sum(self.cache) + self.graph


class Memory(Message):
    """What a model takes, per device. An estimate and a measurement are the same type."""

    input_weights: int
    cpu: DeviceMemory
    gpus: tuple[DeviceMemory, ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.input_weights + self.cpu.total_bytes + sum(g.total_bytes for g in self.gpus)

    @property
    def gpu_bytes(self) -> int:
        return sum(g.total_bytes for g in self.gpus)


CacheType = Literal["f16", "bf16", "f32", "q8_0", "q4_0"]
"""How keys and values of past tokens are stored."""


def _one_type_where_both_are_the_same(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 2 and value[0] == value[1] else value


class LoadRequest(Message):
    """One load operation. A request that differs in more than its operation starts over."""

    operation: Operation
    layout: Layout = ()
    num_ctx: int = Field(default=4096, ge=4)  # tokens per sequence
    num_parallel: int = Field(default=1, ge=1, le=1024)  # sequences at a time
    num_batch: int = Field(default=512, ge=1)  # tokens of one forward pass
    num_thread: int = Field(default=0, ge=0)  # 0: one per usable core
    kv_cache_type: Annotated[
        CacheType | tuple[CacheType, CacheType], BeforeValidator(_one_type_where_both_are_the_same)
    ] = "f16"  # of both, or of keys and of values
    use_mmap: bool = True

    @property
    def key_cache_type(self) -> CacheType:
        return self.kv_cache_type if isinstance(self.kv_cache_type, str) else self.kv_cache_type[0]

    @property
    def value_cache_type(self) -> CacheType:
        return self.kv_cache_type if isinstance(self.kv_cache_type, str) else self.kv_cache_type[1]


class LoadResponse(Message):
    """``success`` false with HTTP 200 means that memory was short; ``memory`` says for what."""

    success: bool
    memory: Memory
    message: str = ""


class Status(IntEnum):
    READY = 0
    BUSY = 1
    LAUNCHED = 2
    LOADING = 3
    NOT_RESPONDING = 4
    ERROR = 5


class Health(Message):
    status: Status
    progress: float = 0.0  # of the weights, 0 … 1
    message: str = ""


class DeviceInfo(Message):
    """One place that can hold tensors, as the process that owns it sees it."""

    id: str
    library: str
    name: str
    total_bytes: int
    free_bytes: int


class RunnerInfo(Message):
    devices: tuple[DeviceInfo, ...]
    kernels: str  # "fast" or "reference"
    isa: str  # instruction set of the fast CPU kernels
    num_thread: int


# ---- what a runner tells about itself ----------------------------------------------------------


class CacheStats(Message):
    """The KV cache at one moment, in cells of the layers that see everything; counters since the model was loaded."""

    num_cells: int = 0
    num_used: int = 0  # by sequences and cached prefixes together
    num_shared: int = 0  # that have more than one owner
    num_cached: int = 0  # held by cached prefixes alone
    fragmentation: float = 0.0  # share of the free cells that lie in holes too short to be of use
    num_defragmentations: int = 0
    moved_bytes: int = 0
    num_prefixes: int = 0
    num_hits: int = 0  # prompts that began with a cached prefix
    num_misses: int = 0
    num_reused_tokens: int = 0


class CacheBudget(Message):
    """How many bytes the KV cache may hold from now on, on all devices together."""

    budget_bytes: int = Field(ge=0, le=2**62)


class CacheSize(Message):
    """What it holds then: as many cells as fit into the budget."""

    num_cells: int
    held_bytes: int


class Histogram(Message):
    """``counts[i]`` durations of at most ``bounds[i]`` seconds and more than the bound before; the last: all longer."""

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total_s: float = 0.0


class RunnerStats(Message):
    """The engine at one moment; counters and histograms since the model was loaded."""

    num_waiting: int = 0  # completions and inputs of embeddings without a sequence
    num_active: int = 0  # those that have one: at most num_parallel
    num_parallel: int = 0
    num_steps: int = 0
    num_batch_sequences: int = 0  # and inputs, summed over steps: with num_steps and num_parallel the occupancy
    num_batch_tokens: int = 0  # summed over steps
    cache: CacheStats = CacheStats()
    step: Histogram = Histogram()
    queue: Histogram = Histogram()  # of completions, from arrival to a sequence
    first_token: Histogram = Histogram()  # from arrival
    inter_token: Histogram = Histogram()


# ---- completion --------------------------------------------------------------------------------


class SamplingOptions(Message):
    """How the next token is drawn. Names, defaults and off values are Ollama's."""

    temperature: float = Field(default=0.8, ge=0)  # 0: greedy
    top_k: int = 40  # <= 0: off
    top_p: float = Field(default=0.9, ge=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    typical_p: float = Field(default=1.0, ge=0, le=1)
    repeat_last_n: int = 64  # 0: off, -1: num_ctx
    repeat_penalty: float = Field(default=1.0, gt=0)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1  # < 0: random
    num_predict: int = -1  # < 0: until the context is full
    num_keep: int = 4
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class CompletionRequest(Message):
    """``prompt`` is text (special tokens parsed, BOS added by the model's rule) or token ids, taken as they are."""

    prompt: str | tuple[int, ...]
    options: SamplingOptions = SamplingOptions()
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)  # None: no logprobs
    num_ctx: int | None = Field(default=None, ge=1)  # a smaller context than the model is loaded with
    truncate: bool = True
    shift: bool = True
    cache_prompt: bool = True
    return_prompt_tokens: bool = False  # the final line then carries prompt_tokens
    echo: bool = False  # not implemented by the runner yet; refused there


# A completion is a stream of JSON objects, one a line (application/x-ndjson). They are plain dicts on the
# hot path, never validated:
#   {"content": str, "tokens": [int], "logprobs": [TokenLogprob]}      any number of them, as text becomes certain
#   {"done": true, "done_reason": "stop"|"length", "prompt_eval_count": int, "prompt_eval_cached": int,
#    "prompt_eval_duration": ns, "eval_count": int, "eval_duration": ns, "prompt_tokens"?: [int],
#    "stopped_by"?: str, "truncated"?: int, "shifted"?: int}            exactly one, last
#   {"error": str}                                                     instead of the last, when the engine failed
# TokenLogprob = {"id": int, "token": str, "bytes": [int], "logprob": float,
#                 "top_logprobs": [{"id", "token", "bytes", "logprob"}]}
# Errors before the first line are HTTP 4xx/5xx with {"error": str}.


class EmbeddingRequest(Message):
    """One call for a whole batch; each input is text or token ids."""

    inputs: tuple[str | tuple[int, ...], ...]
    num_ctx: int | None = Field(default=None, ge=1)  # a smaller context than the model is loaded with
    truncate: bool = True  # false: an input longer than the context is an error
    normalize: bool = True


class EmbeddingResponse(Message):
    embeddings: tuple[tuple[float, ...], ...]
    prompt_eval_counts: tuple[int, ...]  # per input


class TokenizeRequest(Message):
    text: str
    add_special: bool = True
    parse_special: bool = True


class TokenizeResponse(Message):
    tokens: tuple[int, ...]


class DetokenizeRequest(Message):
    tokens: tuple[int, ...]


class DetokenizeResponse(Message):
    text: str
