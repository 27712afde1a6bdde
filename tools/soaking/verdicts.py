"""Which outcomes are right, which errors have a cause that the soak itself made, and what is left: a defect."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tools.soaking.asking import Answer, End, Outcome
from tools.soaking.models import Question

SLACK_S = 4.0  # a killed process is noticed, and its last words are waited for, so much later on a busy machine


@dataclass(frozen=True, slots=True)
class Event:
    """Trouble that was made: a kill of ``model``'s runner, or (``model`` empty) a device that changed its size."""

    at: float  # monotonic
    model: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """An error that must be expected: its text, and whether this request could meet it."""

    name: str
    text: re.Pattern[str]
    is_given: Callable[[Outcome, Sequence[Event]], bool]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``label`` is what the outcome counts as; ``problem`` is empty unless it is a defect."""

    label: str
    problem: str = ""


def _was_killed(outcome: Outcome, events: Sequence[Event]) -> bool:
    return any(event.model == outcome.step.model and _meets(outcome, event) for event in events)


def _was_killed_before(outcome: Outcome, events: Sequence[Event]) -> bool:
    return sum(event.model == outcome.step.model and event.at <= outcome.ended_at for event in events) > 1


def _was_resized(outcome: Outcome, events: Sequence[Event]) -> bool:
    return any(not event.model and _meets(outcome, event) for event in events)


def _asked_for_layers(outcome: Outcome, events: Sequence[Event]) -> bool:
    return outcome.step.loading.get("num_gpu", 0) > 0


def _meets(outcome: Outcome, event: Event) -> bool:
    return outcome.began_at - SLACK_S <= event.at <= outcome.ended_at


_SIGKILL = r"signal: SIGKILL \(Killed\)"

EXPECTED: tuple[Cause, ...] = (
    Cause("killed while it loaded", re.compile(rf"500: llama runner process has terminated: {_SIGKILL}"), _was_killed),
    Cause(
        "killed before it answered",
        re.compile(rf"500: model runner has unexpectedly stopped, .*{_SIGKILL}"),
        _was_killed,
    ),
    Cause(
        "killed while it answered",
        re.compile(rf"(200|500): an error was encountered while running the model: {_SIGKILL}"),
        _was_killed,
    ),
    Cause(
        "left alone after crashes",
        re.compile(rf"503: model runner has crashed \d+ times in a row, next try in \d+ s: {_SIGKILL}"),
        _was_killed_before,
    ),
    Cause(
        "num_gpu does not fit",
        re.compile(r"500: memory layout cannot be allocated with num_gpu = \d+(: out of memory on sim\d: .*)?"),
        _asked_for_layers,
    ),
    Cause(
        "no layout while a device shrank",
        re.compile(r"500: memory layout cannot be allocated: out of memory on sim\d: .*"),
        _was_resized,
    ),
)
"""Every error that a soak may end a request with. The texts are those of ``scheduler.errors``."""

DONE_REASONS = {"load": "load", "unload": "unload"}
"""Of the steps that ask nothing."""


def judge(outcome: Outcome, truth: Mapping[Question, Answer], events: Sequence[Event]) -> Verdict:
    return _JUDGES[outcome.end](outcome, truth, events)


def _judge_answer(outcome: Outcome, truth: Mapping[Question, Answer], events: Sequence[Event]) -> Verdict:
    step, found = outcome.step, outcome.answer
    if step.question is None:
        is_right = found.done_reason == DONE_REASONS[step.action] or found == Answer("[]")  # embeddings of nothing
        return Verdict(f"{step.action}ed", "" if is_right else f"{_named(outcome)}: answered {found}")
    expected = truth[step.question]
    if found == expected:
        return Verdict("answered")
    return Verdict("wrong", f"{_named(outcome)}:\n  expected {expected}\n  found    {found}")


def _judge_leaving(outcome: Outcome, truth: Mapping[Question, Answer], events: Sequence[Event]) -> Verdict:
    question, found = outcome.step.question, outcome.answer.content
    if question is None or truth[question].content.startswith(found):
        return Verdict("client left")
    return Verdict("wrong", f"{_named(outcome)}: expected {truth[question].content!r}, began with {found!r}")


def _judge_refusal(outcome: Outcome, truth: Mapping[Question, Answer], events: Sequence[Event]) -> Verdict:
    for cause in EXPECTED:
        if cause.text.fullmatch(outcome.error):
            problem = "" if cause.is_given(outcome, events) else f"{_named(outcome)}: without a cause: {outcome.error}"
            return Verdict(f"error: {cause.name}", problem)
    return Verdict("unexpected error", f"{_named(outcome)}: {outcome.error}")


def _judge_failure(outcome: Outcome, truth: Mapping[Question, Answer], events: Sequence[Event]) -> Verdict:
    return Verdict(outcome.end.value, f"{_named(outcome)}: {outcome.end.value}: {outcome.error}")


_JUDGES: Mapping[End, Callable[[Outcome, Mapping[Question, Answer], Sequence[Event]], Verdict]] = {
    End.ANSWERED: _judge_answer,
    End.LEFT: _judge_leaving,
    End.REFUSED: _judge_refusal,
    End.HUNG: _judge_failure,
    End.BROKEN: _judge_failure,
}


def _named(outcome: Outcome) -> str:
    step = outcome.step
    what = f"{step.action} {step.question.route if step.question else ''}".strip()
    return f"step {step.number} ({what} {step.model} {dict(step.loading)}, {outcome.seconds:.2f} s)"
