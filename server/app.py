"""The front server's application: routes, access rules, errors, and the scheduler's life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

from scheduler.errors import SchedulerError
from scheduler.scheduler import Scheduler
from scheduler.settings import SchedulerSettings
from server import version
from server.catalog import Catalog
from server.errors import ApiError, Failure, body_of, failure_of, status_of
from server.metrics import Metrics
from server.routes import access, ollama, openai
from server.routes import metrics as metrics_route
from server.routes.meter import Meter
from server.routes.reply import json_response
from server.routes.service import Service
from server.schemas.messages import MessageError
from server.schemas.options import OptionError
from server.settings import Settings


def create_app(settings: Settings, catalog: Catalog | None = None, metrics: Metrics | None = None) -> FastAPI:
    """The application. When it ends, its scheduler ends all runners.

    Raises the scheduler's SettingsError for devices that cannot be used.
    """
    metrics = metrics or Metrics()
    scheduler = Scheduler(scheduler_settings(settings), observer=metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(settings, catalog or Catalog(settings.models), scheduler, metrics)
        try:
            yield
        finally:
            await scheduler.close()

    app = FastAPI(title="Shale", version=version(), lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(ollama.router)
    app.include_router(openai.router)
    app.include_router(metrics_route.router)
    _add_access_rules(app, settings)
    app.add_middleware(Meter, metrics=metrics)  # last, which makes it the outermost
    _add_error_handlers(app)
    return app


def scheduler_settings(settings: Settings) -> SchedulerSettings:
    return SchedulerSettings(
        keep_alive_s=settings.keep_alive_s,
        num_parallel=settings.num_parallel,
        fail_if_not_gpu=settings.fail_if_not_gpu,
        load_timeout_s=settings.load_timeout_s,
        max_loaded_models=settings.max_loaded_models,
        max_queue=settings.max_queue,
        context_length=settings.context_length,
        kv_cache_type=settings.kv_cache_type,
        kernels=settings.kernels,
        cpu_isa=None if settings.cpu_isa == "auto" else settings.cpu_isa,
        devices=settings.devices,
        sim_ledger=settings.sim_ledger,
        is_spread=settings.sched_spread,
        gpu_overhead_bytes=settings.gpu_overhead_bytes,
        debug=settings.debug,
    )


def _add_access_rules(app: FastAPI, settings: Settings) -> None:
    pattern = access.origin_pattern(settings.origins)
    app.add_middleware(CORSMiddleware, allow_origin_regex=pattern, allow_methods=["*"], allow_headers=["*"])
    if settings.address.is_loopback:
        app.add_middleware(access.HostCheck)


def _add_error_handlers(app: FastAPI) -> None:
    for kind in (ApiError, SchedulerError, OptionError, MessageError, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)


async def _answer_error(request: Request, error: Exception) -> Response:
    # A defect is logged, with its traceback, by the web server: Starlette raises it again after this answer.
    return _answer(request, failure_of(error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: a path that is not there, a method that the path does not have."""
    assert isinstance(error, HTTPException)
    where = {404: f"path {request.url.path!r} not found", 405: f"method {request.method} not allowed"}
    message = where.get(error.status_code, error.detail or HTTPStatus(error.status_code).phrase)
    return _answer(request, Failure(error.status_code, message, headers=dict(error.headers or {})))


def _answer(request: Request, failure: Failure) -> Response:
    path = request.url.path
    return json_response(body_of(failure, path), status_of(failure, path), dict(failure.headers))
