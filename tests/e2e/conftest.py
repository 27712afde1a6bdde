"""One server for all tests here, with the demo model and tiny models, driven by the clients that people use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import ollama
import openai
import pytest

from tools.tiny_models import write_tiny_model

sys.path.insert(0, str(Path(__file__).parent))  # for serving.py

from serving import Server

ORACLE_MODELS = ("all-MiniLM-L6-v2-Q8_0", "llama-Q4_K_M", "qwen3-F16", "llama-split-F16")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, repository_root: Path) -> Path:
    """``shale-demo``, ``tiny/llama``, ``tiny/bert``, ``broken``; and ``oracle/…`` where there is reference data."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "shale-demo.gguf").symlink_to(demo_model)
    (folder / "tiny").mkdir()
    write_tiny_model(folder / "tiny" / "llama.gguf", "llama", "Q8_0")
    write_tiny_model(folder / "tiny" / "bert.gguf", "bert", "Q8_0")
    write_tiny_model(
        folder / "tiny" / "long.gguf", "llama", "Q8_0", context_length=8192, embedding_length=512, num_layers=6
    )
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    (folder / "oracle").mkdir()
    for name in ORACLE_MODELS:
        for path in (repository_root.parent / "shared" / "oracle" / "models").glob(f"{name}*.gguf"):
            (folder / "oracle" / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def server(models: Path, repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(repository_root, models, tmp_path_factory.mktemp("log") / "server.log", SHALE_MAX_LOADED_MODELS="9")
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()
    log = server.log.read_text()
    assert "Traceback" not in log, log
    assert "internal error" not in log, log


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(server.url)
    yield client
    client._client.close()


@pytest.fixture
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
