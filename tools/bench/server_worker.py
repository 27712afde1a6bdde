"""Measures a whole server: python -m tools.bench.server_worker MODEL SETTINGS.

Starts ``shale serve`` over the model's folder and asks it through HTTP, on one connection.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tools.bench.measures import measure_embeddings
from tools.bench.process import ROOT
from tools.bench.start import TIMEOUT_S, free_port, wait_for_port
from tools.bench.worker import Settings, serve

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ServerEngine:
    """A connection to a server that has loaded one model."""

    num_vocab = 2 * len(LETTERS)

    def __init__(self, model: str, port: int) -> None:
        self._model = model
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self.embed([[0]])  # loads the model
        self.description = f"shale serve, {model}"

    def embed(self, inputs: Sequence[Sequence[int]]) -> None:
        """Texts of as many words of one letter as there are tokens. Raises RuntimeError when the server refuses."""
        texts = [" ".join(LETTERS[token % len(LETTERS)] for token in each) for each in inputs]
        body = json.dumps({"model": self._model, "input": texts}).encode()
        self._connection.request("POST", "/api/embed", body, {"Content-Type": "application/json"})
        answer = json.load(self._connection.getresponse())
        if len(answer.get("embeddings", ())) != len(texts):
            raise RuntimeError(f"/api/embed answered {str(answer)[:200]}")


def main() -> None:
    path, settings = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
    port = free_port()
    environment = os.environ | {
        "SHALE_HOST": f"127.0.0.1:{port}",
        "SHALE_MODELS": str(path.parent),
        "SHALE_CONTEXT_LENGTH": str(settings.num_ctx),
    }
    server = subprocess.Popen([sys.executable, "-m", "server", "serve"], cwd=ROOT, env=environment, stdout=sys.stderr)
    try:
        wait_for_port(port)
        engine = ServerEngine(path.stem, port)
        serve(engine.description, partial(measure_embeddings, engine))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
