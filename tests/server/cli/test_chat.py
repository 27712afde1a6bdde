"""What ``shale run`` says beside the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.cli.chat import Conversation, timings
from server.cli.client import CommandError

END = {"message": {"content": ""}, "done": True, "eval_count": 3, "eval_duration": 10**9}


class Scripted:
    """A client whose answers are these parts; an exception among them is raised in its place."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.asked: list[Any] = []

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.asked.append(body["messages"])
        for part in self.parts:
            if isinstance(part, BaseException):
                raise part
            yield {"message": {"content": part}, "done": False} if isinstance(part, str) else part


def conversation(*parts: Any, verbose: bool = False) -> Conversation:
    return Conversation(Scripted(*parts), "demo", None, {}, verbose)  # type: ignore[arg-type]


def test_an_answer_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    conversation("a", "b", END).ask("x")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("ab\n", "")


def test_the_timings_are_lines_of_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    conversation("a", END, verbose=True).ask("x")
    said = capsys.readouterr()
    assert said.out == "a\n"
    assert said.err == f"\n{timings(END)}\n"


@pytest.mark.parametrize(("parts", "out"), [((), ""), (("a",), "a\n")])
def test_an_error_begins_a_line_and_leaves_none_empty(
    capsys: pytest.CaptureFixture[str], parts: tuple[str, ...], out: str
) -> None:
    with pytest.raises(CommandError):
        conversation(*parts, CommandError("model 'demo' not found")).ask("x")
    assert capsys.readouterr().out == out


def test_what_was_said_is_part_of_the_next_question() -> None:
    client = Scripted("a", "b", END)
    talk = Conversation(client, "demo", "be", {}, False)  # type: ignore[arg-type]
    talk.ask("x")
    talk.ask("y")
    assert client.asked[1] == [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "y"},
    ]


def test_ctrl_c_keeps_what_came(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    client = Scripted("a", KeyboardInterrupt())
    talk = Conversation(client, "demo", None, {}, True)  # type: ignore[arg-type]
    talk.ask("x")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("a\n", "")


def test_counts_and_speeds() -> None:
    end = {"prompt_eval_count": 20, "prompt_eval_duration": 2 * 10**9, "eval_count": 3, "eval_duration": 10**9}
    assert timings({**end, "total_duration": 4 * 10**9}).splitlines() == [
        "prompt: 20 tokens, 10.0 tokens/s",
        "answer: 3 tokens, 3.0 tokens/s",
        "total:  4.00 s",
    ]


def test_what_came_from_the_cache_is_not_in_the_speed() -> None:
    end = {"prompt_eval_count": 20, "prompt_eval_cached": 12, "prompt_eval_duration": 10**9}
    assert timings(end).splitlines()[0] == "prompt: 20 tokens (12 cached), 8.0 tokens/s"
