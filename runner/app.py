"""The runner's HTTP API: load operations, completions, embeddings, tokens, health. See ``runner.protocol``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from runner.auth import RequireToken
from runner.engine.completion import Completion, RequestError, check_ids
from runner.engine.embedding import EmbeddingJob
from runner.engine.engine import Deliveries, Engine
from runner.protocol import (
    CacheBudget,
    CacheSize,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    Health,
    LoadRequest,
    LoadResponse,
    Operation,
    RunnerInfo,
    RunnerStats,
    Status,
    TokenizeRequest,
    TokenizeResponse,
)
from runner.stream import EngineResponse, Mailbox, json_response

if TYPE_CHECKING:
    from runner.load import LoadedModel, Loader

LOG = logging.getLogger(__name__)

Made = TypeVar("Made")

INLINE_LENGTH = 4096
"""Characters (or token ids) up to which a text is worked on in the event loop, in about a millisecond; longer ones go
to a worker thread."""

NOT_READY = {
    Status.LAUNCHED: "llm server launched, but no model is loaded",
    Status.LOADING: "llm server loading model",
    Status.ERROR: "llm server error",
}


class Host:
    """What this process hosts: a loader, and from the moment that its model is ready an engine."""

    def __init__(self, loader: Loader, describe: Callable[[], RunnerInfo]) -> None:
        self.loader = loader
        self.describe = describe
        self._engine: Engine | None = None
        self._model: LoadedModel | None = None
        self._is_leaving = False
        self._loading = asyncio.Lock()

    def ready(self) -> tuple[LoadedModel, Engine]:
        """Call on the event loop. Raises RequestError (503) before the model is ready."""
        model = self.loader.model
        if model is None or self._is_leaving:
            health = self.loader.health()
            detail = f": {health.message}" if health.message else ""
            raise RequestError(NOT_READY.get(health.status, "llm server closing model") + detail, status=503)
        if self._engine is None or self._model is not model:
            self._model, self._engine = (
                model,
                Engine(model, _Courier(asyncio.get_running_loop()), on_failure=_end_process),
            )
            self._engine.start()
        return model, self._engine

    async def handle(self, request: LoadRequest) -> LoadResponse:
        """One load operation. Raises what ``Loader.handle`` raises."""
        async with self._loading:
            if request.operation == Operation.CLOSE and (engine := self.leave("the model was unloaded")):
                await asyncio.to_thread(engine.join)
            try:
                return await asyncio.to_thread(self.loader.handle, request)
            finally:
                self._is_leaving = False

    def leave(self, reason: str) -> Engine | None:
        """Ends what the engine is doing, with ``reason`` as the error; returns the engine, which is about to end.

        From here on nobody gets an engine, until another load operation is done.
        """
        self._is_leaving = True
        engine, self._engine, self._model = self._engine, None, None
        if engine is not None:
            engine.close(reason)
        return engine


def _end_process() -> None:
    """Better a crash, which the front server sees at once, than a process that never answers again."""
    logging.shutdown()
    os._exit(1)


class _Courier:
    """Carries lines from the engine's thread to the event loop: one wake-up for all lines of a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, deliveries: Deliveries) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, deliveries)

    @staticmethod
    def _hand_out(deliveries: Deliveries) -> None:
        for receive, line in deliveries:
            receive(line)


def _host(http: Request) -> Host:
    host: Host = http.app.state.host
    return host


TheHost = Annotated[Host, Depends(_host)]


async def load(request: LoadRequest, host: TheHost) -> LoadResponse:
    return await host.handle(request)


async def completion(request: CompletionRequest, host: TheHost) -> Response:
    model, engine = host.ready()
    mailbox = Mailbox()
    is_long = len(request.prompt) > INLINE_LENGTH
    work = await _made(lambda: Completion(request, model, mailbox.put), in_thread=is_long)
    engine.submit(work)
    return EngineResponse(mailbox, lambda: engine.cancel(work), is_stream=True)


async def embedding(request: EmbeddingRequest, host: TheHost) -> Response:
    model, engine = host.ready()
    mailbox = Mailbox()
    is_long = sum(len(each) for each in request.inputs) > INLINE_LENGTH
    work = await _made(lambda: EmbeddingJob(request, model, mailbox.put), in_thread=is_long)
    engine.submit(work)
    return EngineResponse(mailbox, lambda: engine.cancel(work), is_stream=False)


async def tokenize(request: TokenizeRequest, host: TheHost) -> TokenizeResponse:
    model, _ = host.ready()

    def encode() -> list[int]:
        text, special = request.text, request.add_special
        return model.tokenizer.encode(text, add_special=special, parse_special=request.parse_special)

    tokens = await _made(encode, in_thread=len(request.text) > INLINE_LENGTH)
    return TokenizeResponse(tokens=tuple(tokens))


async def detokenize(request: DetokenizeRequest, host: TheHost) -> DetokenizeResponse:
    model, _ = host.ready()
    check_ids(request.tokens, model.tokenizer.num_tokens or model.spec.num_vocab)
    is_long = len(request.tokens) > INLINE_LENGTH
    return DetokenizeResponse(text=await _made(lambda: model.tokenizer.decode(request.tokens), in_thread=is_long))


async def health(host: TheHost) -> Health:
    return host.loader.health()


async def info(host: TheHost) -> RunnerInfo:
    return host.describe()


async def stats(host: TheHost) -> RunnerStats:
    _, engine = host.ready()
    return engine.stats()


async def resize_cache(budget: CacheBudget, host: TheHost) -> CacheSize:
    _, engine = host.ready()
    return await asyncio.wrap_future(engine.resize_cache(budget.budget_bytes))


async def _made(make: Callable[[], Made], *, in_thread: bool) -> Made:
    return await asyncio.to_thread(make) if in_thread else make()


ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("/load", "POST", load),
    ("/completion", "POST", completion),
    ("/embedding", "POST", embedding),
    ("/tokenize", "POST", tokenize),
    ("/detokenize", "POST", detokenize),
    ("/health", "GET", health),
    ("/info", "GET", info),
    ("/stats", "GET", stats),
    ("/cache", "POST", resize_cache),
)


Handler = Callable[[Request, Exception], Awaitable[Response]]


def _errors() -> dict[type[Exception], Handler]:
    """What an error becomes. Imported here, because the loader's errors bring the whole model code with them."""
    from runner.cache.kv_cache import CacheFullError
    from runner.devices.base import OutOfMemoryError
    from runner.gguf import GGUFError
    from runner.load import OperationOrderError
    from runner.model.spec import ModelError
    from runner.tokenizer import TokenizerError

    return {
        RequestError: _answer_request_error,
        RequestValidationError: _answer_invalid,
        HTTPException: _answer_http_error,
        TokenizerError: _answer_with(400),
        OperationOrderError: _answer_with(409),
        CacheFullError: _answer_with(409),
        OutOfMemoryError: _answer_with(507),
        GGUFError: _answer_with(500),
        ModelError: _answer_with(500),
        Exception: _answer_with(500),
    }


def _answer_with(status: int) -> Handler:
    async def answer(_: Request, error: Exception) -> Response:
        return json_response({"error": str(error) or type(error).__name__}, status)

    return answer


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return json_response({"error": str(error)}, error.status)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response({"error": str(error.detail)}, error.status_code)


async def _answer_invalid(_: Request, error: Exception) -> Response:
    """One sentence: where in the request, what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    is_json = first["type"] != "json_invalid"
    where = ".".join(str(part) for part in first["loc"][1:]) if is_json else f"character {first['loc'][-1]}"
    return json_response({"error": f"invalid request: {where or 'body'}: {first['msg']}"}, 400)


def create_app(loader: Loader, token: str, describe: Callable[[], RunnerInfo]) -> FastAPI:
    """The application. Its ``state.host`` is the Host; end that when the server ends."""
    app = FastAPI(title="Shale runner", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.host = Host(loader, describe)
    app.add_middleware(RequireToken, token=token)
    for path, method, endpoint in ROUTES:
        app.add_api_route(path, endpoint, methods=[method])
    for error, handler in _errors().items():
        app.add_exception_handler(error, handler)
    return app
