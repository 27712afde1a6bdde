"""The commands and their options."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import Annotated, Any

import typer

from scheduler.errors import SettingsError
from scheduler.sizes import parse_bytes
from server import version
from server.cli.client import Client, CommandError
from server.cli.tables import UNKNOWN, cache_use, columns, human_bytes, loading, sequences, since, until
from server.schemas.options import OptionError
from server.settings import SettingError, Settings, rows, warnings

app = typer.Typer(
    name="shale",
    help="Serves GGUF language models to Ollama and OpenAI clients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

HELP_MARGIN = 4
MIN_HELP_WIDTH = 60

Model = Annotated[str, typer.Argument(help="Name of a model, as `shale list` shows it.")]


def main() -> None:
    """Run the command line. An error is one line, and exit status 1."""
    try:
        app()
    except (CommandError, OptionError, SettingError, SettingsError) as error:
        print(f"shale: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"shale {version()}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
]


@app.callback()
def shale(is_version_asked: Version = False) -> None:
    """Options that stand before a command."""


def settings_table(num_columns: int) -> str:
    """A line for each setting; what has no room on it goes on below its description."""
    names = {row.names[0]: row.description for row in rows().values()}
    indent = " " * (max(map(len, names)) + 2)
    lines = (
        textwrap.fill(text, num_columns, initial_indent=name.ljust(len(indent)), subsequent_indent=indent)
        for name, text in names.items()
    )
    return "\n".join(("Environment:", *lines))


@app.command(epilog=settings_table(max(shutil.get_terminal_size().columns - HELP_MARGIN, MIN_HELP_WIDTH)))
def serve(
    host: Annotated[str | None, typer.Option(help="host:port to listen on (SHALE_HOST).")] = None,
    models: Annotated[str | None, typer.Option(help="Directory of GGUF files (SHALE_MODELS).")] = None,
    devices: Annotated[str | None, typer.Option(help="Devices to use (SHALE_DEVICES).")] = None,
    kernels: Annotated[str | None, typer.Option(help="fast or reference (SHALE_KERNELS).")] = None,
    keep_alive: Annotated[str | None, typer.Option(help="How long idle models stay loaded (SHALE_KEEP_ALIVE).")] = None,
) -> None:
    """Start the server. Every setting is an environment variable; the options here come before them."""
    from server.cli.serve import serve as run_server

    given = {"HOST": host, "MODELS": models, "DEVICES": devices, "KERNELS": kernels, "KEEP_ALIVE": keep_alive}
    options = {f"SHALE_{name}": value for name, value in given.items() if value is not None}
    run_server(Settings.from_environment({**os.environ, **options}), warnings(os.environ))


@app.command(name="list")
def list_models() -> None:
    """List the models that the server has."""
    rows = [
        (model["name"], model["digest"][:12], human_bytes(model["size"]), since(model["modified_at"]))
        for model in Client.of_environment().get("/api/tags")["models"]
    ]
    print(columns(("NAME", "ID", "SIZE", "MODIFIED"), rows))


@app.command()
def show(model: Model, template: Annotated[bool, typer.Option(help="Print the chat template only.")] = False) -> None:
    """Show what a model is."""
    answer = Client.of_environment().post("/api/show", {"model": model})
    if template:
        print(answer["template"])
        return
    info, details = answer["model_info"], answer["details"]
    family = details["family"]
    rows = {
        "architecture": family,
        "parameters": details["parameter_size"],
        "quantization": details["quantization_level"],
        "context length": info.get(f"{family}.context_length", "unknown"),
        "embedding length": info.get(f"{family}.embedding_length", "unknown"),
        "tensors": len(answer["tensors"]),
        "capabilities": ", ".join(answer["capabilities"]),
        "license": answer["license"] or "unknown",
    }
    width = max(map(len, rows))
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items()))


@app.command()
def ps() -> None:
    """List the models that are loaded, loading or stopping."""
    rows = [_resident(model) for model in Client.of_environment().get("/api/ps")["models"]]
    print(columns(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "CACHE", "SEQUENCES", "STATE", "UNTIL"), rows))


def _resident(model: dict[str, Any]) -> tuple[str, ...]:
    size = human_bytes(model["size"]) if "size" in model else UNKNOWN
    processor = _processor(model["size"], model["size_vram"]) if "size" in model else UNKNOWN
    context = str(model.get("context_length", UNKNOWN))
    state = loading(model["progress"]) if model["state"] == "loading" else model["state"]
    work = cache_use(model.get("cache")), sequences(model.get("sequences"))
    return model["name"], model["digest"][:12], size, processor, context, *work, state, until(model["expires_at"])


def _processor(size: int, size_vram: int) -> str:
    on_gpu = round(100 * size_vram / size) if size else 0
    return {0: "100% CPU", 100: "100% GPU"}.get(on_gpu, f"{100 - on_gpu}%/{on_gpu}% CPU/GPU")


@app.command()
def run(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask; without it, a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Such as temperature=0; repeatable.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Print counts and speeds after the answer.")] = False,
) -> None:
    """Ask a model. Standard input that is piped in becomes part of the prompt."""
    from server.cli.chat import Conversation, read_option
    from server.cli.chat import run as run_chat

    options = dict(read_option(each) for each in option or ())
    conversation = Conversation(Client.of_environment(), model, system, options, verbose)
    run_chat(conversation, " ".join(prompt or ()))


@app.command()
def devices() -> None:
    """List the devices that layers of a model can go to."""
    from rich.console import Console

    from server.cli.devices import device_table

    Console().print(device_table(Client.of_environment().get("/api/devices")["devices"]))


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="Name of a model, or a GGUF file (then no server is needed).")],
    devices: Annotated[
        str | None, typer.Option(help="GPUs to think of, such as 24GiB,12GiB; without it, this machine's.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Host memory to think of, such as 64GiB.")] = None,
    ctx: Annotated[str | None, typer.Option(help="Tokens of context, or auto.")] = None,
    kv: Annotated[str | None, typer.Option(help="Type of the KV cache, or of keys and values: q8_0,f16.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Sequences at a time.")] = None,
    num_gpu: Annotated[int | None, typer.Option(help="Layers to place on GPUs; -1: as many as fit.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answer of /api/plan.")] = False,
) -> None:
    """Show where a model would go, without loading it."""
    import orjson
    from rich.console import Console

    from server.cli.plan import ask, draw

    _check_size("--memory", memory)
    given = {"devices": devices, "system_memory": memory, "num_ctx": _number_or_word(ctx), "kv_cache_type": kv,
             "num_parallel": parallel, "num_gpu": num_gpu}  # fmt: skip
    answer = ask(model, {name: value for name, value in given.items() if value is not None})
    if json:
        print(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
    else:
        draw(answer, Console(highlight=False))


def _check_size(option: str, text: str | None) -> None:
    try:
        parse_bytes(text or "0")
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from error


def _number_or_word(text: str | None) -> int | str | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


@app.command()
def stop(model: Model) -> None:
    """Unload a model."""
    Client.of_environment().post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
