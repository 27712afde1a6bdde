"""Which tokens and which text of a growing answer are released, and when."""

from __future__ import annotations

import codecs
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.output import Output, Released


class Bytes:
    """A detokenizer over a fixed list of token bytes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self.decoder.decode(self.pieces[token_id])


def run(pieces: list[bytes], stops: list[str]) -> tuple[list[Released], Output]:
    """Feed token 0, 1, 2, …; each token's detail is its id as a string."""
    output = Output(Bytes(pieces), stops)
    released = []
    for token in range(len(pieces)):
        released.append(output.push(token, str(token)))
        if output.stopped_by is not None:
            break
    return [*released, output.finish()], output


def text_of(released: list[Released]) -> str:
    return "".join(each.text for each in released)


def tokens_of(released: list[Released]) -> list[int]:
    return [token for each in released for token in each.tokens]


TEXT = st.text("aé€😀<|", max_size=20)


@settings(deadline=None)
@given(TEXT, st.lists(st.text("aé<|", max_size=3), max_size=3), st.lists(st.integers(0, 80), max_size=20))
def test_any_cutting_into_tokens_gives_the_same_text_and_no_broken_character(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    released, _ = run(pieces, stops)
    found = [text.find(stop) for stop in stops if stop and stop in text]
    assert text_of(released) == text[: min(found, default=len(text))]
    assert "\ufffd" not in text_of(released)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=15))
def test_without_a_stop_every_token_comes_out_once_in_order_with_its_detail(pieces: list[bytes]) -> None:
    released, _ = run(pieces, ["never"])
    assert tokens_of(released) == list(range(len(pieces)))
    assert [detail for each in released for detail in each.details] == [str(i) for i in range(len(pieces))]


def test_a_token_waits_for_the_last_of_its_text() -> None:
    released, _ = run([b"ab<", b"x", b"y"], ["<|"])
    assert [(each.text, each.tokens) for each in released] == [("ab", []), ("<x", [0, 1]), ("y", [2]), ("", [])]


def test_a_stop_drops_the_tokens_whose_text_it_takes() -> None:
    released, output = run([b"a", b"b<", b"|", b"never"], ["<|"])
    assert output.stopped_by == "<|"
    assert text_of(released) == "ab"
    assert tokens_of(released) == [0, 1]  # token 1 lost half its text, token 2 all of it


def test_a_stop_takes_a_character_of_several_tokens_whole() -> None:
    released, _ = run([b"a", b"\xe2\x82", b"\xac"], ["€"])
    assert (text_of(released), tokens_of(released)) == ("a", [0])


def test_tokens_of_one_character_come_with_it() -> None:
    released, _ = run([b"\xe2", b"\x82", b"\xac!"], [])
    assert [(each.text, each.tokens) for each in released] == [("", []), ("", []), ("€!", [0, 1, 2]), ("", [])]


def test_an_unfinished_character_at_the_end_gives_no_text_but_its_token() -> None:
    released, _ = run([b"a", b"\xe2\x82"], [])
    assert (text_of(released), tokens_of(released)) == ("a", [0, 1])


def test_a_stop_that_waited_is_found_at_the_end() -> None:
    released, output = run([b"ab", b"c"], ["c", "bcd"])
    assert output.stopped_by == "c"
    assert (text_of(released), tokens_of(released)) == ("ab", [0])
