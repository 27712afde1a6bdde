"""What the kernel counts of those it killed for memory, and whose death that explains."""

from __future__ import annotations

import pytest

from scheduler.crashes import is_out_of_memory
from scheduler.oom_kills import EXPLANATION, OomKills, count_oom_kills


@pytest.fixture
def count(tmp_path):
    """Counts by made-up files: ``outer/inner`` is our group; a text is what such a file says."""
    (tmp_path / "self").write_text("4:memory:/x\n0::/outer/inner\n")
    (tmp_path / "fs/outer/inner").mkdir(parents=True)

    def count(inner=None, outer=None, vmstat=None):
        for path, text in (
            ("fs/outer/inner/memory.events", inner),
            ("fs/outer/memory.events", outer),
            ("vmstat", vmstat),
        ):
            if text is not None:
                (tmp_path / path).write_text(text)
        return count_oom_kills(tmp_path / "fs", tmp_path / "self", tmp_path / "vmstat")

    return count


def test_our_own_group_is_asked_then_those_around_it_then_the_machine(count):
    assert count() is None
    assert count(vmstat="pgfault 7\noom_kill 9\ndrop_pagecache 0\n") == 9
    assert count(outer="low 0\noom 5\noom_kill 4\noom_group_kill 0\n") == 4
    assert count(inner="low 0\nhigh 0\nmax 8\noom 3\noom_kill 2\n") == 2


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill x\n", "oom 3\noom_group_kill 3\n"])
def test_what_is_not_understood_does_not_count(count, text):
    assert count(inner=text) is None


def test_each_kill_explains_one_death_since_its_mark():
    number = 3
    kills = OomKills(lambda: number)
    early, late = kills.mark(), kills.mark()
    assert not kills.explain(early)
    number = 4
    assert kills.explain(early)
    assert not kills.explain(late)
    number = 6
    assert kills.explain(late)
    assert kills.explain(early)
    assert not kills.explain(early)
    number = 7
    assert not kills.explain(kills.mark())  # that was before it started


def test_a_system_that_does_not_tell():
    kills = OomKills(lambda: None)
    assert not kills.explain(kills.mark())


def test_such_a_death_counts_as_one_for_want_of_memory():
    assert is_out_of_memory(f"signal: SIGKILL (Killed)\n{EXPLANATION}")
