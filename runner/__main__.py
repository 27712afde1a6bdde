"""``python -P -m runner --model PATH --fd N``: host one model behind a listening socket that the parent has bound.

Environment: the bearer token (``runner.protocol.TOKEN_ENVIRONMENT_NAME``), ``SHALE_KERNELS``, ``SHALE_CPU_ISA``,
``SHALE_DEVICES``, ``SHALE_SIM_LEDGER``, ``SHALE_DEBUG``. Lines on standard output and error are the log; what ends the
process begins with "error: ".
"""

from __future__ import annotations

import os

# The kernels have their own threads. NumPy reads this when it is imported, so it stands before all other imports.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse  # noqa: E402
import logging  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, cast  # noqa: E402

from runner.lifeline import die_with_parent  # noqa: E402
from runner.protocol import TOKEN_ENVIRONMENT_NAME  # noqa: E402

if TYPE_CHECKING:
    from runner.kernels import KernelName

SHUTDOWN_S = 1


@dataclass(frozen=True)
class Settings:
    """Everything that this process is told from outside."""

    model: Path
    fd: int
    token: str
    kernels: KernelName
    isa: str | None
    devices: str
    sim_ledger: Path | None
    is_debugging: bool


def read_settings(arguments: Sequence[str], environment: dict[str, str] | os._Environ[str]) -> Settings:
    """Reads them, and takes the token out of ``environment``. Raises SystemExit."""
    parser = argparse.ArgumentParser(prog="runner", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--fd", type=int, required=True, help="inherited file descriptor of the listening socket")
    given = parser.parse_args(arguments)
    token = environment.pop(TOKEN_ENVIRONMENT_NAME, "")
    if not token:
        raise SystemExit(f"error: {TOKEN_ENVIRONMENT_NAME} is not set; the parent process sets it")
    ledger = environment.get("SHALE_SIM_LEDGER")
    return Settings(
        model=given.model,
        fd=given.fd,
        token=token,
        kernels=cast("KernelName", environment.get("SHALE_KERNELS") or "fast"),  # select() checks it
        isa=environment.get("SHALE_CPU_ISA") or None,
        devices=environment.get("SHALE_DEVICES", ""),
        sim_ledger=Path(ledger) if ledger else None,
        is_debugging=environment.get("SHALE_DEBUG", "") not in ("", "0", "false"),
    )


def serve(settings: Settings) -> None:
    """Answers until SIGTERM. Raises what opening the model raises."""
    import uvicorn

    from runner.app import create_app
    from runner.devices.base import Device
    from runner.devices.choice import open_devices
    from runner.devices.cpu import CpuDevice
    from runner.kernels import select
    from runner.load import Loader
    from runner.protocol import RunnerInfo

    kernels = select(settings.kernels, settings.isa, 0)
    devices: list[Device] = [CpuDevice(), *open_devices(settings.devices, settings.sim_ledger)]
    loader = Loader(settings.model, kernels, devices[0], devices[1:])

    def describe() -> RunnerInfo:
        return RunnerInfo(
            devices=tuple(device.info() for device in devices),
            kernels=kernels.name,
            isa=kernels.isa,
            num_thread=kernels.num_thread,
        )

    app = create_app(loader, settings.token, describe)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.host.leave("the runner was told to end")  # instead of waiting for answers under way
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it is done; then all is in order
        signal.signal(number, lambda *_: None)
    with socket.socket(fileno=settings.fd) as listener:
        listener.set_inheritable(False)
        Server(config).run([listener])


def main() -> None:
    die_with_parent()
    settings = read_settings(sys.argv[1:], os.environ)
    level = logging.DEBUG if settings.is_debugging else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        serve(settings)
    except (OSError, ValueError) as error:  # the model's file, the kernels' name, the socket
        raise SystemExit(f"error: {error}") from error
    # The engine's thread may be inside a forward pass: leave without taking down what it works with.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
