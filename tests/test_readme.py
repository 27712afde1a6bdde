"""The documents agree with the code and with each other."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import server.engine_metrics
import server.gauges
import server.metrics
from server.app import create_app
from server.cli.commands import app as shale
from server.schemas.base import Request
from server.schemas.ollama import DetokenizeRequest, TokenizeRequest
from server.schemas.openai import EmbeddingRequest, GenerationRequest
from server.schemas.options import LOADING
from server.schemas.plan import PlanRequest
from server.settings import Settings, rows
from tools.make_gguf import RECIPES, SHAPES, write_model

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/ARCHITECTURE.md",
    "docs/API.md",
    "docs/PLAN.md",
    "docker/README.md",
    "demo/README.md",
    "tools/README.md",
)
OPENAI_FIELDS = {
    "model", "stream", "stream_options", "max_tokens", "n", "seed", "stop", "temperature", "top_p", "frequency_penalty",
    "presence_penalty", "logit_bias", "user", "input", "encoding_format", "dimensions",
}  # fmt: skip


def test_the_settings_table_has_every_setting(repository_root: Path) -> None:
    text = (repository_root / "README.md").read_text("utf-8")
    in_table = set(re.findall(r"^\| `(SHALE_\w+)` \|", text, re.MULTILINE))
    assert in_table == {row.names[0] for row in rows().values()}


def test_the_defaults_in_the_table_are_the_defaults(repository_root: Path) -> None:
    text = (repository_root / "README.md").read_text("utf-8")
    default = Settings()
    assert f"| `SHALE_HOST` | `{default.address.host}:{default.address.port}` |" in text
    assert f"| `SHALE_MAX_QUEUE` | `{default.max_queue}` |" in text
    assert f"| `SHALE_NUM_PARALLEL` | `{default.num_parallel or 'auto'}` |" in text
    assert f"| `SHALE_KERNELS` | `{default.kernels}` |" in text
    assert default.keep_alive_s == default.load_timeout_s == 300


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(document: str, repository_root: Path) -> None:
    path = repository_root / document
    for target in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{document} links to {target}"


def test_every_make_target_in_the_documents_exists(repository_root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository_root / "Makefile").read_text("utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        text = (repository_root / document).read_text("utf-8")
        assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets, document


def test_every_metric_in_the_documents_exists(repository_root: Path) -> None:
    told = f"{server.metrics.__doc__} {server.gauges.__doc__} {server.engine_metrics.__doc__}"
    known = set(re.findall(r"shale_\w+", told))
    for document in DOCUMENTS:
        text = (repository_root / document).read_text("utf-8")
        found = {name.removesuffix("_bucket") for name in re.findall(r"\bshale_[a-z_]+_[a-z_]+\b", text)}
        assert found <= known, document


# ---- plans -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents plan for, which have no weights."""
    folder = tmp_path_factory.mktemp("headers")
    for name in ("llama-70b", "llama-30b-a3b"):
        write_model(folder / f"{name}.gguf", SHAPES[name], RECIPES["q4_k_m"], header_only=True)
    return folder


def plans(text: str) -> list[tuple[list[str], list[str]]]:
    """Arguments and printed lines of every ``$ shale plan`` in the text."""
    found = re.findall(r"^\$ shale (plan .*)\n((?:(?!\$ |```).*\n)*)", text, re.MULTILINE)
    return [(command.split(), output.strip().splitlines()) for command, output in found]


@pytest.mark.parametrize("document", ["README.md", "docs/PLAN.md"])
def test_a_plan_in_the_documents_is_what_the_command_prints(
    document: str, repository_root: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("SHALE_", "OLLAMA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(headers)
    shown = plans((repository_root / document).read_text("utf-8"))
    assert len(shown) == 2
    for arguments, expected in shown:
        printed = CliRunner().invoke(shale, arguments).stdout
        assert [line.rstrip() for line in printed.splitlines()] == expected


# ---- what is there is told ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Duplicate Operation ID")  # GET and HEAD of one function
def test_every_route_is_in_the_readme(repository_root: Path) -> None:
    text = (repository_root / "README.md").read_text("utf-8")
    paths = set(create_app(Settings()).openapi()["paths"])
    assert {"/api/chat", "/v1/chat/completions"} < paths
    assert {path for path in paths if not re.search(rf"`(GET |POST )?{re.escape(path)}`", text)} == set()


@pytest.mark.parametrize("kind", [TokenizeRequest, DetokenizeRequest, PlanRequest, GenerationRequest, EmbeddingRequest])
def test_every_added_field_is_in_the_api_document(kind: type[Request], repository_root: Path) -> None:
    text = (repository_root / "docs" / "API.md").read_text("utf-8")
    assert {name for name in kind.model_fields if not re.search(rf"`{name}\b", text)} <= OPENAI_FIELDS


def test_every_option_of_a_load_is_in_the_api_document(repository_root: Path) -> None:
    text = (repository_root / "docs" / "API.md").read_text("utf-8")
    assert {name for name in LOADING if f"`{name}`" not in text} == set()


def test_every_tool_is_in_the_table(repository_root: Path) -> None:
    folder = repository_root / "tools"
    table = "".join(re.findall(r"^\| `.*? \|", (folder / "README.md").read_text("utf-8"), re.MULTILINE))
    there = {path.name for path in folder.iterdir() if path.suffix in (".py", ".sh")}
    folders = {f"{path.name}/" for path in folder.iterdir() if any(path.glob("*.py"))}
    assert set(re.findall(r"`(.*?)`", table)) == there | folders
