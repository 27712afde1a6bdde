"""Small GGUF files, and a scheduler that needs no runner."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for standin.py

from standin import StandInScheduler

WriteModel = Callable[..., Path]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def write_model(models: Path) -> WriteModel:
    """``write_model("dir/name.gguf", **metadata)`` writes a file with one tensor, enough to be listed."""

    def write(name: str, *, architecture: str = "llama", value: float = 0.0, **metadata: Any) -> Path:
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, architecture)
        for key, text in metadata.items():
            add = {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool}[type(text)]
            add(key.replace("__", "."), text)
        writer.add_token_list(["<s>", "</s>", "a"])
        writer.add_tensor("token_embd.weight", np.full((3, 64), value, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


class Site:
    """An application without a network: ``site.post(path, body)`` and what its scheduler was asked."""

    def __init__(self, models: Path, scheduler: Any) -> None:
        from server.app import create_app
        from server.catalog import Catalog
        from server.metrics import Metrics
        from server.routes.service import Service
        from server.settings import Settings

        settings = Settings(models=models)
        self.scheduler = scheduler
        metrics = Metrics()
        self.app = create_app(settings, metrics=metrics)
        self.app.state.service = Service(settings, Catalog(models), scheduler, metrics)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **more)

        return asyncio.run(send())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **more)


@pytest.fixture
def site(models: Path, write_model: WriteModel) -> Site:
    """Serves ``chat`` (with a template), ``plain`` (without one) and ``embed``."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    write_model("chat.gguf", tokenizer__chat_template=template)
    write_model("plain.gguf")
    write_model("embed.gguf", architecture="bert", bert__pooling_type=1, bert__embedding_length=3)
    return Site(models, StandInScheduler())
