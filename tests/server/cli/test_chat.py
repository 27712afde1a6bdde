"""What ``shale run`` says beside the answer."""

from __future__ import annotations

from server.cli.chat import timings


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
