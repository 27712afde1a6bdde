"""Speaks to one runner, in the words of ``runner.protocol``.

One ``httpx.AsyncClient`` per runner for its lifetime carries the questions with one answer. Completions go through
``scheduler.stream``: with 16 streams at 10 ms a token a line costs 16 to 25 µs of CPU there against 46 to 69 µs through
httpx. httpx is imported with the first client, while its runner starts: importing it takes 70 ms.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from runner.protocol import (
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    Health,
    LoadRequest,
    LoadResponse,
    RunnerInfo,
    RunnerStats,
    TokenizeRequest,
    TokenizeResponse,
)
from scheduler.errors import RunnerDiedError, RunnerRequestError, RunnerUnreachableError
from scheduler.stream import CONNECT_TIMEOUT_S, LineStream, read_body

HEALTH_TIMEOUT_S = 5.0

_MAX_ERROR_TEXT = 4096

Answer = TypeVar("Answer", bound=BaseModel)


class CompletionStream:
    """The lines of one completion as the runner sent them: JSON objects as bytes, without their ends.

    Raises RunnerDiedError when the runner goes away before its last line. ``aclose`` stops the generation.
    """

    def __init__(self, lines: LineStream, obituary: Callable[[], Awaitable[str]]) -> None:
        self._lines = lines
        self._obituary = obituary

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._lines.__anext__()
        except OSError as error:
            raise RunnerDiedError(await self._obituary() or str(error)) from error

    async def aclose(self) -> None:
        self._lines.close()


class RunnerClient:
    """All that can be asked of one runner. Every method raises

    - RunnerRequestError, with the runner's own status and text, if it refuses,
    - RunnerUnreachableError, with its last words, if it does not answer.
    """

    def __init__(self, port: int, token: str, obituary: Callable[[], Awaitable[str]]) -> None:
        """``obituary`` is asked when a connection broke: it waits a moment for the process's end and tells why."""
        import httpx

        self._port = port
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        self._obituary = obituary
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers=self._headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            # Servers drop connections that are idle for 5 s: ours go first, so that none breaks as it is reused.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=2.0),
            trust_env=False,  # a proxy of the environment has no business between us and the loopback
        )

    async def aclose(self) -> None:
        """Closes idle connections. Streams that are open stay open."""
        await self._http.aclose()

    @property
    def is_closed(self) -> bool:
        return self._http.is_closed

    # ---- work ----------------------------------------------------------------------------------

    async def completion(self, request: CompletionRequest) -> CompletionStream:
        """Returns once the runner has accepted the request, so that its refusal is an error here and not a line."""
        body = request.model_dump_json().encode()
        try:
            lines = await LineStream.open(self._port, "/completion", self._headers, body)
            if lines.status >= HTTPStatus.BAD_REQUEST:
                raise RunnerRequestError(lines.status, _error_text(lines.status, await read_body(lines)))
        except OSError as error:
            raise RunnerUnreachableError(await self._obituary()) from error
        return CompletionStream(lines, self._obituary)

    async def embedding(self, request: EmbeddingRequest) -> EmbeddingResponse:
        # Validated by hand: pydantic takes longer over a batch's floats than the runner over the batch.
        answer = orjson.loads(await self._ask("POST", "/embedding", request))
        return EmbeddingResponse.model_construct(
            embeddings=tuple(answer["embeddings"]), prompt_eval_counts=tuple(answer["prompt_eval_counts"])
        )

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        return _read(TokenizeResponse, await self._ask("POST", "/tokenize", request))

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        return _read(DetokenizeResponse, await self._ask("POST", "/detokenize", request))

    # ---- life ----------------------------------------------------------------------------------

    async def load(self, request: LoadRequest) -> LoadResponse:
        return _read(LoadResponse, await self._ask("POST", "/load", request))

    async def health(self, timeout_s: float = HEALTH_TIMEOUT_S) -> Health:
        """Raises TimeoutError as well: a runner that is busy may be late."""
        return _read(Health, await self._ask("GET", "/health", timeout_s=timeout_s))

    async def info(self) -> RunnerInfo:
        return _read(RunnerInfo, await self._ask("GET", "/info"))

    async def stats(self) -> RunnerStats:
        """May take as long as it likes: whoever asks sets the limit."""
        return _read(RunnerStats, await self._ask("GET", "/stats"))

    # --------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, request: BaseModel | None = None, timeout_s: float | None = None
    ) -> bytes:
        import httpx

        content = request.model_dump_json().encode() if request is not None else None
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            response = await self._http.request(method, path, content=content, timeout=timeout)
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            raise TimeoutError(f"no answer to {method} {path} within {timeout_s} s") from error
        except httpx.TransportError as error:
            raise RunnerUnreachableError(await self._obituary()) from error
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise RunnerRequestError(response.status_code, _error_text(response.status_code, response.content))
        return response.content


def _read(kind: type[Answer], body: bytes) -> Answer:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise RunnerRequestError(HTTPStatus.BAD_GATEWAY, f"the runner's answer is not understood: {error}") from error


def _error_text(status: int, body: bytes) -> str:
    """The ``error`` of a JSON object, or the body itself where it is something else."""
    with contextlib.suppress(orjson.JSONDecodeError):
        answer = orjson.loads(body)
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            return str(answer["error"])
    return body.decode(errors="replace").strip()[:_MAX_ERROR_TEXT] or f"runner error: status {status}"
