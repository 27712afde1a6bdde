"""Reference results of other engines, through the public API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest


def test_minilm_embeddings_are_those_of_the_reference(client: ollama.Client, shared: Path) -> None:
    name = "all-MiniLM-L6-v2-Q8_0"
    index = json.loads((shared / "oracle" / "index.json").read_text())
    (case,) = (case for case in index["models"] if case["id"] == name)
    found = np.array(client.embed(f"oracle/{name}", case["texts"]).embeddings)
    wanted = np.load(shared / "oracle" / case["expected"])["ref"]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert (found * wanted).sum(axis=1).min() >= 0.999


@pytest.mark.parametrize("mode", ["ids", "text"])
@pytest.mark.parametrize("case", ["llama-Q4_K_M", "qwen3-F16", "llama-split-F16"])
def test_completions_are_those_of_the_reference(server: Any, shared: Path, case: str, mode: str) -> None:
    root = shared / "oracle"
    command = [sys.executable, str(root / "check_engine.py"), "--root", str(root), "--base-url", server.url]
    command += ["--case", case, "--model", f"oracle/{case}", "--prompt-mode", mode]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1/1 cases pass" in result.stdout
