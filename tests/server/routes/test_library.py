"""What Ollama does with its library is refused with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("method", "name", "instead"),
    [
        ("POST", "pull", "copy a GGUF file into the folder"),
        ("POST", "push", "they are the GGUF files in the folder"),
        ("POST", "create", "copy a GGUF file into the folder"),
        ("POST", "copy", "copy the GGUF file in the folder"),
        ("DELETE", "delete", "remove the GGUF file from the folder"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_the_sentence_says_what_to_do(
    site: Any, models: Path, method: str, name: str, instead: str, stream: bool
) -> None:
    response = site.request(method, f"/api/{name}", json={"model": "llama3.2", "stream": stream})
    assert response.status_code == 501
    assert response.json() == {"error": f"Shale does not {name} models; {instead} {models} (SHALE_MODELS)"}


def test_the_methods_are_ollamas(site: Any) -> None:
    assert site.get("/api/pull").headers["allow"] == "POST"
    assert site.post("/api/delete", {}).headers["allow"] == "DELETE"
