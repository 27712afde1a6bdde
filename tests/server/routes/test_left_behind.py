"""A loaded model whose file has gone, or cannot be read any more: it can be unloaded by its name, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scheduler.scheduler import ModelFile, ModelState

UNLOAD = {"model": "plain", "keep_alive": 0, "stream": False}
LATER = datetime(2030, 1, 2, tzinfo=UTC)


@pytest.fixture
def left(site: Any, models: Path) -> Any:
    """The site, after ``plain`` was loaded and its file deleted."""
    assert site.post("/api/generate", {"model": "plain", "stream": False}).status_code == 200
    model = ModelFile("plain", models / "plain.gguf")
    site.scheduler.loading = [ModelState(model, "ready", 1.0, LATER, 4096, None)]
    model.path.unlink()
    return site


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("name", ["plain", "Plain:latest"])
def test_it_is_unloaded_by_name(left: Any, path: str, name: str) -> None:
    answer = left.post(path, {**UNLOAD, "model": name})
    assert (answer.status_code, answer.json().get("done_reason")) == (200, "unload")
    assert left.scheduler.unloaded == ["plain"]


def test_so_is_one_whose_file_is_damaged(left: Any, models: Path) -> None:
    (models / "plain.gguf").write_bytes(b"GGUF" + bytes(100))
    assert left.post("/api/generate", UNLOAD).status_code == 200
    assert left.scheduler.unloaded == ["plain"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/api/generate", {"prompt": "hi"}),
        ("/api/generate", {"prompt": "hi", "stream": False, "keep_alive": 0}),
        ("/api/generate", {}),
        ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/api/embed", {"input": "hi"}),
        ("/api/show", {}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
def test_for_everything_else_there_is_no_such_model(left: Any, path: str, more: dict[str, Any]) -> None:
    num_acquired = len(left.scheduler.acquired)
    answer = left.post(path, {"model": "plain", **more})
    assert answer.status_code == 404
    assert "not found" in answer.text
    assert len(left.scheduler.acquired) == num_acquired


def test_one_that_is_not_loaded_is_not_found(left: Any) -> None:
    left.scheduler.loading = []
    assert left.post("/api/generate", UNLOAD).status_code == 404
    left.post("/api/generate", {"model": "chat", "stream": False})  # what was loaded before is forgotten
    assert [path.stem for path in left.app.state.service._acquired] == ["chat"]
    assert left.post("/api/generate", {**UNLOAD, "model": "never"}).status_code == 404
