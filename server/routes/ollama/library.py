"""What Ollama does with its library, and Shale leaves to the file system: pull, push, create, copy, delete.

501 with a sentence before anything is streamed: Ollama's clients show it as it is, whether they stream or not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request, Response

from server.errors import NotDoneHereError
from server.routes.service import service_of

INSTEAD: Mapping[str, tuple[str, str]] = {
    "pull": ("POST", "copy a GGUF file into the folder {}"),
    "push": ("POST", "they are the GGUF files in the folder {}"),
    "create": ("POST", "copy a GGUF file into the folder {}"),
    "copy": ("POST", "copy the GGUF file in the folder {}"),
    "delete": ("DELETE", "remove the GGUF file from the folder {}"),
}
"""Name of an operation → its method, and what to do instead."""

router = APIRouter()


def _refusal(sentence: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:
        raise NotDoneHereError(sentence.format(f"{service_of(request).settings.models} (SHALE_MODELS)"))

    return refuse


for _name, (_method, _instead) in INSTEAD.items():
    router.add_api_route(f"/api/{_name}", _refusal(f"Shale does not {_name} models; {_instead}"), methods=[_method])
