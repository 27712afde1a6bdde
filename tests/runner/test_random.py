"""The random stream against the generator's published answers."""

from __future__ import annotations

import numpy as np
import pytest

from runner.random import fresh_seed, philox4x32, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of the authors' Random123 library, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    assert philox4x32(counter, key) == words


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    forward = [uniform(7, p) for p in range(50)]
    backward = [uniform(7, p) for p in reversed(range(50))]
    assert forward == backward[::-1]
    assert len({*forward, *(uniform(8, p) for p in range(50))}) == 100


def test_draws_are_uniform_over_positions_and_over_seeds() -> None:
    for draws in ([uniform(1, p) for p in range(4000)], [uniform(s, 1) for s in range(4000)]):
        counts, _ = np.histogram(draws, bins=20, range=(0, 1))
        assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
        assert min(draws) >= 0
        assert max(draws) < 1


def test_seeds_count_modulo_two_to_the_64() -> None:
    assert uniform(5, 3) == uniform(5 + 2**64, 3) != uniform(5 + 2**63, 3)


def test_fresh_seeds_differ_and_are_not_negative() -> None:
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
