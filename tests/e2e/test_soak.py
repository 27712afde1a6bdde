"""A short soak of a real server, and proof that the soak would notice what it looks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runner.sim_ledger import SimLedger
from tools.soak import soak, table
from tools.soaking.accounts import Accounts, Balance
from tools.soaking.asking import Answer, End, Outcome
from tools.soaking.models import CHAT, FLEET, GENERATE, Question, questions
from tools.soaking.steps import Kill, KillMidway, Resize, Step, make_steps
from tools.soaking.verdicts import Event, judge

QUESTION = Question("llama", GENERATE, "def", 4)
TRUTH = {QUESTION: Answer("abcd", "length", 4)}
STEP = Step(0, "llama", "ask", QUESTION)
ANSWERED = Outcome(STEP, End.ANSWERED, 10.0, 11.0, TRUTH[QUESTION])
DIED = "200: an error was encountered while running the model: signal: SIGKILL (Killed)"
NO_ROOM = "500: memory layout cannot be allocated with num_gpu = 3: out of memory on sim0: 9 bytes asked, 1 bytes free"


async def test_fifty_requests_with_kills_and_shrinking_devices(tmp_path: Path) -> None:
    report = await soak(tmp_path / "soak", seed=10, num_steps=50)
    assert report.problems == [], table(report)
    assert report.labels["answered"] >= 20, table(report)
    assert report.troubles["runners killed"] >= 2, table(report)
    assert report.troubles["devices resized"] >= 2, table(report)
    assert report.num_balances == 5, table(report)
    assert report.most_bytes > 1 << 20, table(report)


# ---- the steps ---------------------------------------------------------------------------------


def test_a_seed_decides_the_steps() -> None:
    assert make_steps(3, 50) == make_steps(3, 80)[:50] != make_steps(4, 50)


def test_two_hundred_steps_have_everything_in_them() -> None:
    steps = make_steps(0, 200)
    assert {step.model for step in steps} == set(FLEET)
    assert {step.action for step in steps} == {"ask", "load", "unload"}
    assert {type(step.trouble) for step in steps} == {Kill, KillMidway, Resize, type(None)}
    assert {0, -1, 0.3, None} < {step.keep_alive for step in steps}
    assert any(step.leave_after_lines for step in steps)
    assert any(step.leave_after_s for step in steps)


def test_a_question_is_asked_without_sampling() -> None:
    for question in questions():
        assert question.body().get("options", {"temperature": 0})["temperature"] == 0
        assert ("messages" in question.body()) == (question.route == CHAT)


# ---- the verdicts ------------------------------------------------------------------------------


def refused(error: str, step: Step = STEP) -> Outcome:
    return Outcome(step, End.REFUSED, 10.0, 11.0, error=error)


def test_the_right_answer_is_no_problem() -> None:
    assert judge(ANSWERED, TRUTH, []).problem == ""


@pytest.mark.parametrize("answer", [Answer("abcx", "length", 4), Answer("abcd", "stop", 4), Answer("abc", "length", 3)])
def test_another_answer_is_a_problem(answer: Answer) -> None:
    assert "expected" in judge(replace(ANSWERED, answer=answer), TRUTH, []).problem


@pytest.mark.parametrize(("begin", "is_problem"), [("", False), ("ab", False), ("b", True)])
def test_what_was_read_before_leaving_must_begin_as_the_answer_does(begin: str, is_problem: bool) -> None:
    outcome = replace(ANSWERED, end=End.LEFT, answer=Answer(begin))
    assert bool(judge(outcome, TRUTH, []).problem) is is_problem


def test_death_is_expected_only_of_what_was_killed_at_that_time() -> None:
    assert judge(refused(DIED), TRUTH, [Event(10.5, "llama")]).problem == ""
    for events in ([], [Event(10.5, "qwen3")], [Event(5.0, "llama")], [Event(11.5, "llama")], [Event(10.5)]):
        assert "without a cause" in judge(refused(DIED), TRUTH, events).problem


def test_layers_that_do_not_fit_are_told_only_to_who_asked_for_them() -> None:
    assert judge(refused(NO_ROOM, replace(STEP, loading={"num_gpu": 3})), TRUTH, []).problem == ""
    assert judge(refused(NO_ROOM), TRUTH, [Event(10.5)]).problem


@pytest.mark.parametrize("end", [End.HUNG, End.BROKEN])
def test_no_answer_is_a_problem(end: End) -> None:
    assert judge(replace(ANSWERED, end=end), TRUTH, [Event(10.5, "llama")]).problem


def test_any_other_error_is_a_problem() -> None:
    assert judge(refused("500: internal error: KeyError: 'x'"), TRUTH, [Event(10.5, "llama")]).problem


# ---- the accounts ------------------------------------------------------------------------------


def test_a_byte_that_nobody_reports_is_a_problem() -> None:
    assert Balance({"sim0": 7}, {"cpu": 3, "sim0": 7}, 1, 1).problems == []
    assert Balance({"sim0": 8}, {"sim0": 7}, 1, 1).problems == ["sim0: 8 bytes are held, /api/ps reports 7"]
    assert Balance({"sim0": 1}, {}, 0, 0).problems == ["sim0: 1 bytes are held, /api/ps reports 0"]


def test_a_runner_that_is_not_listed_is_a_problem() -> None:
    assert Balance({}, {}, 1, 2).problems == ["/api/ps lists 1 models, 2 runners live"]


def test_what_a_living_process_holds_is_left_over_and_what_a_dead_one_held_is_not(tmp_path: Path) -> None:
    SimLedger(tmp_path, "sim0").set_quota(10)
    (tmp_path / "sim0.999999999.held").write_text("5")
    accounts = Accounts(tmp_path, 1)
    assert (accounts.held(), accounts.leftovers()) == ({"sim0": 0}, [])
    ledger = SimLedger(tmp_path, "sim0")
    ledger.take(4)
    assert (accounts.held(), len(accounts.leftovers())) == ({"sim0": 4}, 1)
