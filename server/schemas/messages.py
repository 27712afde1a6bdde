"""Chat messages as templates want them: plain dicts with a role and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROLE_OF_ALIAS = {"developer": "system"}
REFUSED_PARTS = {
    "image_url": "images are not supported yet",
    "input_image": "images are not supported yet",
    "input_audio": "audio is not supported",
    "file": "files are not supported",
}


class MessageError(ValueError):
    """A message cannot be used. The text says which one and why."""


def read_messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check roles and contents; null fields are dropped, text parts joined. Every other field goes to the template.

    Raises MessageError.
    """
    return [_message(f"messages[{index}]", message) for index, message in enumerate(given)]


def _message(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    message = {name: value for name, value in given.items() if value is not None}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise MessageError(f"{where}: field 'role' must be a string such as system, user or assistant")
    if message.pop("images", None):
        raise MessageError(f"{where}: images are not supported yet")
    message["role"] = ROLE_OF_ALIAS.get(role, role)
    message["content"] = _text(where, message.get("content", ""))
    return message


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MessageError(
            f"{where}: field 'content' must be a string or a list of text parts (found {type(content).__name__})"
        )
    return "".join(_part(f"{where}.content[{index}]", part) for index, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in REFUSED_PARTS:
        raise MessageError(f"{where}: {REFUSED_PARTS[kind]}")
    if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
        raise MessageError(f'{where}: must be {{"type": "text", "text": …}}')
    text: str = part[kind]
    return text
