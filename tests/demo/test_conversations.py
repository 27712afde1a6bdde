"""Exchanges that the demo model is trained on."""

from __future__ import annotations

from demo.conversations import QUESTIONS, SMALL_TALK, Sampler, ask
from demo.data import Item

ITEMS = {
    "textwrap.dedent": Item("function", "Remove any common leading whitespace.", "(text)"),
    "json": Item("module", "A data interchange format.", ""),
}


def test_an_answer_is_name_signature_kind_and_sentence() -> None:
    exchange = ask("textwrap.dedent", ITEMS["textwrap.dedent"])
    assert exchange.question == "What does textwrap.dedent do?"
    assert exchange.answer == "textwrap.dedent(text) is a function. Remove any common leading whitespace."


def test_every_wording_names_the_name() -> None:
    assert all("json" in ask("json", ITEMS["json"], wording).question for wording in QUESTIONS)


def test_the_same_seed_draws_the_same_exchanges() -> None:
    first, second, other = Sampler(ITEMS, 1), Sampler(ITEMS, 1), Sampler(ITEMS, 2)
    drawn = [first.draw() for _ in range(50)]
    assert drawn == [second.draw() for _ in range(50)]
    assert drawn != [other.draw() for _ in range(50)]


def test_small_talk_is_rare_but_there() -> None:
    questions = {question for question, _ in SMALL_TALK}
    sampler = Sampler(ITEMS, 1)
    count = sum(sampler.draw().question in questions for _ in range(5000))
    assert 50 < count < 200
