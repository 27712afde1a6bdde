"""The commands and their options."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from scheduler.errors import SettingsError
from server import version
from server.cli.client import Client, CommandError
from server.cli.tables import columns, human_bytes, since, until
from server.settings import SettingError, Settings, rows

app = typer.Typer(
    name="shale",
    help="Serves GGUF language models to Ollama and OpenAI clients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="Name of a model, as `shale list` shows it.")]


def main() -> None:
    """Run the command line. An error is one line, and exit status 1."""
    try:
        app()
    except (CommandError, SettingError, SettingsError) as error:
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


@app.command(epilog="  ".join(f"{row.names[0]}: {row.description}." for row in rows().values()))
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
    run_server(Settings.from_environment({**os.environ, **options}))


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
    """List the models that are loaded."""
    rows = [_loaded(model) for model in Client.of_environment().get("/api/ps")["models"]]
    print(columns(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows))


def _loaded(model: dict[str, Any]) -> tuple[str, ...]:
    on_gpu = round(100 * model["size_vram"] / model["size"]) if model["size"] else 0
    processor = {0: "100% CPU", 100: "100% GPU"}.get(on_gpu, f"{100 - on_gpu}%/{on_gpu}% CPU/GPU")
    size, context = human_bytes(model["size"]), str(model["context_length"])
    return model["name"], model["digest"][:12], size, processor, context, until(model["expires_at"])


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
def stop(model: Model) -> None:
    """Unload a model."""
    Client.of_environment().post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
