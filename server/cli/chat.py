"""``shale run``: one answer, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import orjson

from server.cli.client import Client, CommandError
from server.cli.progress import load_bar

PROMPT = ">>> "
HELP = "/bye leaves, /clear forgets the conversation, Ctrl-C stops an answer."

Message = dict[str, str]


class Conversation:
    """The messages so far with one model."""

    def __init__(
        self, client: Client, model: str, system: str | None, options: Mapping[str, Any], verbose: bool
    ) -> None:
        self._client = client
        self._options = options
        self._model = model
        self._start: list[Message] = [{"role": "system", "content": system}] if system else []
        self._verbose = verbose
        self._messages = list(self._start)

    def clear(self) -> None:
        self._messages = list(self._start)

    def load(self) -> None:
        """Load the model, so that the first answer does not wait for it. Raises CommandError."""
        with load_bar(self._client, self._model):
            self._client.post("/api/chat", {"model": self._model, "options": self._options, "stream": False})

    def ask(self, text: str) -> None:
        """Print the answer as it comes. Ctrl-C ends it early; what came until then stays in the conversation."""
        messages = [*self._messages, {"role": "user", "content": text}]
        body = {"model": self._model, "messages": messages, "options": self._options}
        parts = self._client.stream("/api/chat", body)
        pieces: list[str] = []
        try:
            with closing(parts):  # type: ignore[type-var]
                end = self._print(parts, pieces)
        except CommandError:
            if pieces:  # the error gets a line of its own
                print()
            raise
        print(flush=True)
        if end and self._verbose:
            print(f"\n{timings(end)}", file=sys.stderr)
        self._messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _print(self, parts: Iterator[dict[str, Any]], pieces: list[str]) -> dict[str, Any] | None:
        """Print the answer and add its pieces to ``pieces``; its last part, None where Ctrl-C ended it."""
        end = None
        try:
            for part in self._from_first(parts):
                pieces.append(part["message"]["content"])
                print(pieces[-1], end="", flush=True)
                if part["done"]:
                    end = part
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        return end

    def _from_first(self, parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same parts; a bar shows while the model loads, for as long as the first is waited for."""
        with load_bar(self._client, self._model):
            first = next(parts, None)
        if first is not None:
            yield first
            yield from parts


def timings(end: dict[str, Any]) -> str:
    """Counts and speeds of an answer's last part."""
    rows = []
    for label, name in (("prompt", "prompt_eval"), ("answer", "eval")):
        count, duration = end.get(f"{name}_count", 0), end.get(f"{name}_duration", 0)
        cached = end.get(f"{name}_cached", 0)  # of a prompt: not computed, so not in its speed either
        speed = f", {(count - cached) / duration * 1e9:.1f} tokens/s" if duration else ""
        rows.append(f"{label}: {count} tokens{f' ({cached} cached)' if cached else ''}{speed}")
    return "\n".join((*rows, f"total:  {end.get('total_duration', 0) / 1e9:.2f} s"))


def read_option(text: str) -> tuple[str, Any]:
    """``temperature=0`` → ``("temperature", 0)``; what is no JSON is text. Raises CommandError."""
    name, separator, value = text.partition("=")
    if not separator:
        raise CommandError(f"option {text!r} must be written name=value")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def run(conversation: Conversation, prompt: str) -> None:
    """Answer ``prompt`` and what is piped in, or talk until /bye. Raises CommandError."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(part for part in (prompt, piped.rstrip("\n")) if part)
    if text:
        conversation.ask(text)
    elif sys.stdin.isatty():
        _talk(conversation)
    else:
        raise CommandError("no prompt: give one as an argument or on standard input")


def _talk(conversation: Conversation) -> None:
    import readline  # noqa: F401  # line editing and history for input()

    conversation.load()
    print(HELP)
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}")
            continue
        if line == "/bye":
            return
        if line == "/clear":
            conversation.clear()
        elif line.startswith("/"):
            print(HELP)
        elif line:
            _ask(conversation, line)


def _ask(conversation: Conversation, line: str) -> None:
    try:
        conversation.ask(line)
    except CommandError as error:  # the conversation goes on: a runner that died is started again
        print(f"error: {error}", file=sys.stderr)
