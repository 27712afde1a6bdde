"""What the demo model is trained on: questions in several wordings, their answers, and a few greetings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from demo.data import Item

QUESTIONS = (
    "What does {name} do?",
    "What does {name} do",
    "Explain {name}.",
    "What is {name}?",
    "{name}",
    "Tell me about {name}.",
    "How does {name} work?",
    "what is {name} for?",
    "Describe {name}",
    "What does the {kind} {name} do?",
    "What is the {kind} {name}?",
)
_ONLY = "Ask me about a name from Python's standard library, for example:"
SMALL_TALK = (
    ("Hello", f"Hello! {_ONLY} What does textwrap.dedent do?"),
    ("Hi", f"Hi! {_ONLY} What is heapq.heappush?"),
    (
        "Who are you?",
        "I am a tiny demo model that has read the docstrings of the Python standard library. I know little else.",
    ),
    (
        "What can you do?",
        "I answer questions about names in the Python standard library, such as json.dumps or collections.Counter.",
    ),
    ("Thanks", "You are welcome."),
    (
        "Why is the sky blue?",
        "I only know Python's standard library. Ask me about a function, class or module in it.",
    ),
)
SMALL_TALK_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str


def answer(name: str, item: Item) -> str:
    return f"{name}{item.signature} is a {item.kind}. {item.sentence}"


def ask(name: str, item: Item, wording: str = QUESTIONS[0]) -> Exchange:
    return Exchange(wording.format(name=name, kind=item.kind), answer(name, item))


class Sampler:
    """Draws exchanges without end: every name equally often, every wording equally often."""

    def __init__(self, items: Mapping[str, Item], seed: int) -> None:
        self._items = items
        self._names = tuple(items)
        self._random = random.Random(seed)

    def draw(self) -> Exchange:
        if self._random.random() < SMALL_TALK_SHARE:
            return Exchange(*self._random.choice(SMALL_TALK))
        name = self._random.choice(self._names)
        return ask(name, self._items[name], self._random.choice(QUESTIONS))
