"""Counts how many questions about the standard library a running server answers right.

    python -m demo.score [--url http://127.0.0.1:11434] [--model shale-demo] [--sample N]

Right means: the answer contains the docstring's first sentence, letter by letter. Greedy; every name once, asked
"What does NAME do?". The questions come from the Python that runs this script; the model has read those of 3.11.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from demo.conversations import ask
from demo.data import Item, collect

SEED = 3
MAX_TOKENS = 200
CLIENTS = 2


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one question."""

    name: str
    expected: str
    answer: str

    @property
    def is_right(self) -> bool:
        return self.expected in self.answer


def chat(url: str, model: str, question: str) -> str:
    """The greedy answer of the server. Raises urllib.error.URLError when it cannot be had."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": False,
        "options": {"temperature": 0, "num_predict": MAX_TOKENS},
    }
    request = urllib.request.Request(f"{url}/api/chat", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(json.load(response)["message"]["content"])


def questions(items: dict[str, Item], sample: int) -> list[tuple[str, Item]]:
    """All items, or ``sample`` of them drawn with a fixed seed."""
    rows = list(items.items())
    return random.Random(SEED).sample(rows, sample) if 0 < sample < len(rows) else rows


def score(rows: Iterable[tuple[str, Item]], reply: Callable[[str], str]) -> list[Result]:
    def one(row: tuple[str, Item]) -> Result:
        name, item = row
        return Result(name, item.sentence, reply(ask(name, item).question))

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:11434")
    parser.add_argument("--model", default="shale-demo")
    parser.add_argument("--sample", type=int, default=0, help="how many questions; 0: all")
    arguments = parser.parse_args()
    rows = questions(collect(), arguments.sample)
    results = score(rows, lambda question: chat(arguments.url, arguments.model, question))
    for result in results:
        if not result.is_right:
            print(f"{result.name}\n  expected {result.expected}\n  got      {result.answer}")
    right = sum(result.is_right for result in results)
    print(f"{right} of {len(results)} answers right (questions from Python {sys.version.split()[0]})")


if __name__ == "__main__":
    main()
