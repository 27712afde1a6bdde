"""Messages become plain dicts with a role and text; what cannot be shown to a model is refused."""

from __future__ import annotations

from typing import Any

import pytest

from server.schemas.messages import MessageError, read_messages


def test_null_fields_are_dropped_and_others_kept_for_the_template() -> None:
    given = {"role": "assistant", "content": None, "tool_calls": None, "name": "x"}
    assert read_messages([given]) == [{"role": "assistant", "content": "", "name": "x"}]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "ab"}]


def test_developer_is_openai_for_system() -> None:
    assert read_messages([{"role": "developer", "content": "x"}])[0]["role"] == "system"


def test_an_empty_list_of_images_is_none() -> None:
    assert read_messages([{"role": "user", "content": "x", "images": []}]) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"content": "x"}, "messages[0]: field 'role' must be a string"),
        ({"role": 1}, "messages[0]: field 'role' must be a string"),
        ({"role": "user", "content": 5}, "messages[0]: field 'content' must be a string or a list of text parts"),
        ({"role": "user", "content": "x", "images": ["abc"]}, "messages[0]: images are not supported yet"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            "messages[0].content[0]: images are not supported yet",
        ),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]: must be"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]: must be"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_place(message: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MessageError) as caught:
        read_messages([message])
    assert str(caught.value).startswith(sentence)
