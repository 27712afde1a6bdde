"""``shale serve``: bind the address, say what is served, run until told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence

from scheduler.environment import redact
from scheduler.scheduler import Scheduler
from server import version
from server.catalog import Catalog
from server.cli.client import CommandError
from server.cli.isa import check_isa
from server.settings import Address, Settings

BACKLOG = 2048
ANSWERS_END_S = 3  # how long answers in progress may go on after a SIGTERM; then their models are unloaded under them
SHUTDOWN_TIMEOUT_S = ANSWERS_END_S + 6  # by then every runner has ended, if need be by SIGKILL
MAX_MODELS_SHOWN = 5

log = logging.getLogger(__name__)

REASONS = {
    errno.EADDRINUSE: "the address is in use; is a server running there already? SHALE_HOST or --host names another",
    errno.EACCES: "not permitted; ports below 1024 are for root",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
}


class RedactedFormatter(logging.Formatter):
    """Lines without secrets, whoever wrote them: a client's URL may have its key in it, a traceback anything."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _start_log(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(RedactedFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def serve(settings: Settings, warnings: Sequence[str] = ()) -> None:
    """Log ``warnings``, then serve until SIGINT or SIGTERM.

    Raises CommandError when the address cannot be bound, SettingError for what the machine does not have.
    """
    import uvicorn

    from server.app import create_app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Streams that go on too long get a last line that says why, instead of being cut."""
            cut = asyncio.create_task(_unload_after(ANSWERS_END_S, app.state.service.scheduler))
            try:
                await super().shutdown(sockets)
            finally:
                cut.cancel()

    check_isa(settings)
    _start_log(logging.DEBUG if settings.debug else logging.INFO)
    listener, catalog = bind(settings.address), Catalog(settings.models)
    for warning in warnings:
        log.warning(warning)
    app = create_app(settings, catalog)
    print(announcement(settings, catalog, listener.getsockname()[1]), flush=True)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="info" if settings.debug else "warning",
        access_log=settings.debug,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
    )
    Server(config).run(sockets=[listener])


async def _unload_after(seconds: float, scheduler: Scheduler) -> None:
    await asyncio.sleep(seconds)
    await scheduler.close()


def bind(address: Address) -> socket.socket:
    """A listening socket. Raises CommandError with the reason."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise CommandError(f"cannot listen on {address.host}:{address.port}: {reason}") from error
    return listener


def announcement(settings: Settings, catalog: Catalog, port: int) -> str:
    """What a person who starts the server wants to know."""
    address = Address(settings.address.host, port)
    isa = f" ({settings.cpu_isa})" if settings.cpu_isa != "auto" else ""
    return "\n".join(
        (
            f"Shale {version()} listens on http://{_shown(address)}",
            f"  models   {_models(catalog)}",
            f"  kernels  {settings.kernels}{isa}",
        )
    )


def _shown(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


def _models(catalog: Catalog) -> str:
    if not catalog.directory.is_dir():
        return f"none: {catalog.directory} is not a directory (SHALE_MODELS)"
    names = [entry.name for entry in catalog.entries()]
    if not names:
        return f"none: no GGUF file below {catalog.directory} (SHALE_MODELS)"
    more = f" and {len(names) - MAX_MODELS_SHOWN} more" if len(names) > MAX_MODELS_SHOWN else ""
    return f"{', '.join(names[:MAX_MODELS_SHOWN])}{more}, from {catalog.directory}"
