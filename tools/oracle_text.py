"""Tokenizers and chat templates against the reference data: one row for each vocabulary and each template.

for name, ok, detail in tokenizer_rows(Path("../shared/oracle")): ...
"""

from __future__ import annotations

import json
import lzma
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.gguf import open_gguf
from runner.tokenizer import Tokenizer
from server.chat_template import ChatTemplate, TemplateError

Row = tuple[str, bool, str]

_SEPARATOR = "\n__ggml_vocab_test__\n"
_MAX_SHOWN = 80

APPENDS_TO_LISTS = "appends to lists, which is allowed here and was forbidden for the reference"
KNOWN_TEMPLATE_DIFFERENCES: Mapping[tuple[str, str], str] = {
    ("Kimi-K2-Instruct", "tool_call_dict_args"): APPENDS_TO_LISTS,
    ("Kimi-K2-Instruct", "tool_call_string_args"): APPENDS_TO_LISTS,
}
"""(template, conversation) → why it renders here while the reference raised."""


@dataclass(slots=True)
class _Tally:
    """Counts comparisons; remembers the first that failed."""

    num_checked: int = 0
    failures: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def check(self, kind: str, given: object, expected: object, found: object, known: str | None = None) -> None:
        self.num_checked += 1
        if expected == found:
            return
        if known is not None:
            self.differences.append(known)
            return
        self.failures.append(f"{kind} of {given!r:.{_MAX_SHOWN}}: expected {expected!r:.{_MAX_SHOWN}}, found {found!r}")

    def row(self, name: str) -> Row:
        detail = f"{self.num_checked - len(self.failures)} of {self.num_checked}"
        for reason in dict.fromkeys(self.differences):
            detail += f"; {self.differences.count(reason)} known difference(s): {reason}"
        if self.failures:
            detail += f"; first failure: {self.failures[0]:.{4 * _MAX_SHOWN}}"
        return name, not self.failures, detail


# ---- tokenizers --------------------------------------------------------------------------------


def tokenizer_rows(root: Path, names: Iterable[str] | None = None) -> list[Row]:
    """One row for each vocabulary below ``root``, or for each of ``names``: every text encoded and decoded."""
    wanted = None if names is None else frozenset(names)
    entries = _read_json(root / "tokenizers" / "index.json")
    return [_tokenizer_row(root, entry) for entry in entries if wanted is None or entry["name"] in wanted]


def load_tokenizer(root: Path, entry: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of an entry of ``tokenizers/index.json``."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(lzma.decompress((root / entry["file_xz"]).read_bytes()))
        file.flush()
        with open_gguf(file.name) as gguf:
            return Tokenizer.from_metadata(gguf.metadata)


def _tokenizer_row(root: Path, entry: Mapping[str, Any]) -> Row:
    tokenizer = load_tokenizer(root, entry)
    tally = _Tally()
    for case in _read_json(root / entry["cases"])["cases"]:
        text, ids = case["text"], case["ids"]
        tally.check("ids", text, ids, tokenizer.encode(text, add_special=False, parse_special=False))
        special = tokenizer.encode(text, add_special=True, parse_special=True)
        tally.check("special ids", text, case["ids_special"], special)
        tally.check("text", ids, case["detok"], tokenizer.decode(ids))
    for text, ids in _inputs_and_outputs(root, entry):
        tally.check("ids", text, ids, tokenizer.encode(text, add_special=False, parse_special=False))
    return tally.row(entry["name"])


def _inputs_and_outputs(root: Path, entry: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """llama.cpp's own pairs of texts and ids, which some vocabularies have."""
    if "inp" not in entry:
        return
    # Decoded from bytes, for reading as text would turn "\r" into "\n".
    texts = (root / entry["inp"]).read_bytes().decode().split(_SEPARATOR)
    lines = (root / entry["out"]).read_text("utf-8").split("\n")
    for text, line in zip(texts, lines, strict=False):  # the last line feed is followed by nothing
        yield text, [int(number) for number in line.split()]


# ---- templates ---------------------------------------------------------------------------------


def template_rows(root: Path) -> list[Row]:
    """One row for each template below ``root``: every conversation rendered, or refused where it should be."""
    index = _read_json(root / "templates" / "index.json")
    return [_template_row(root, index, entry) for entry in index["templates"]]


def _template_row(root: Path, index: Mapping[str, Any], entry: Mapping[str, Any]) -> Row:
    template = ChatTemplate((root / entry["template"]).read_bytes().decode())
    now = datetime.fromisoformat(index["fixed_now"])
    expected = _read_json(root / entry["expected"])
    tally = _Tally()
    for name, conversation in index["conversations"].items():
        variables = {**index["token_variables"], "tools": None, "documents": None, **conversation}
        found = _text_or_none(template, variables, now)
        known = None if found is None else KNOWN_TEMPLATE_DIFFERENCES.get((entry["name"], name))
        tally.check("rendering", name, expected[name].get("text"), found, known)
    return tally.row(entry["name"])


def _text_or_none(template: ChatTemplate, variables: Mapping[str, Any], now: datetime) -> str | None:
    """The text, or None where the template raised: messages of errors are not compared."""
    try:
        return template.render_exactly(variables, now)
    except TemplateError:
        return None


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
