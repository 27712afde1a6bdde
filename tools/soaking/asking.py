"""Does one step as a client: sends the request, reads the answer or leaves, and tells what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx

from tools.soaking.models import CHAT, EMBED, EMBEDDING_MODELS, GENERATE, Question
from tools.soaking.steps import Step

REQUEST_TIMEOUT_S = 120.0  # far above what any request of a soak takes


class End(Enum):
    """How a request ended, as its client saw it."""

    ANSWERED = "answered"
    LEFT = "left"  # by the client itself
    REFUSED = "refused"  # a status of 400 and above, or an error line
    HUNG = "hung"
    BROKEN = "broken"  # no HTTP answer, or one that does not end as it should


@dataclass(frozen=True, slots=True)
class Answer:
    """What must be the same every time."""

    content: str
    done_reason: str = ""
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """``answer``: whole where ``end`` is ANSWERED, as far as it was read where the client left. Times are monotonic."""

    step: Step
    end: End
    began_at: float
    ended_at: float
    answer: Answer = Answer("")
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at


class _LeftError(Exception):
    """The client has read as much as it wanted."""


class _RefusedError(Exception):
    pass


async def do(
    http: httpx.AsyncClient, url: str, step: Step, on_line: Callable[[int], None] = lambda number: None
) -> Outcome:
    """Returns whatever happens. ``on_line`` hears of every line of a stream, by its number from 1."""
    began_at = time.monotonic()
    route, body = request_of(step)
    read: list[str] = []
    end, answer, error = End.ANSWERED, Answer(""), ""
    try:
        async with asyncio.timeout(step.leave_after_s or REQUEST_TIMEOUT_S):
            if step.is_streamed:
                answer = await _stream(http, url + route, body, read, step.leave_after_lines, on_line)
            else:
                answer = await _post(http, url + route, body)
    except TimeoutError:
        end, answer = (End.LEFT if step.leave_after_s else End.HUNG), Answer("".join(read))
    except _LeftError:
        end, answer = End.LEFT, Answer("".join(read))
    except _RefusedError as refusal:
        end, error = End.REFUSED, str(refusal)
    except (httpx.HTTPError, ValueError, KeyError) as broken:
        end, error = End.BROKEN, f"{type(broken).__name__}: {broken}"
    return Outcome(step, end, began_at, time.monotonic(), answer, error)


def request_of(step: Step) -> tuple[str, dict[str, Any]]:
    """Route and body of a step's request."""
    body = step.question.body() if step.question else {"model": step.model}
    route = step.question.route if step.question else EMBED if step.model in EMBEDDING_MODELS else GENERATE
    if step.action == "unload":
        return GENERATE, body | {"keep_alive": 0, "stream": False}
    body["options"] = {**body.get("options", {}), **step.loading}
    if route != EMBED:
        body["stream"] = step.is_streamed
    if step.keep_alive is not None:
        body["keep_alive"] = step.keep_alive
    return route, body


async def _post(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Answer:
    response = await http.post(url, json=body)
    if response.status_code != httpx.codes.OK:
        raise _RefusedError(_error_of(response.status_code, response.text))
    return _read(response.json())


async def _stream(
    http: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    read: list[str],
    leave_after_lines: int | None,
    on_line: Callable[[int], None],
) -> Answer:
    """Puts the pieces of text into ``read`` as they come."""
    last: dict[str, Any] = {}
    async with http.stream("POST", url, json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise _RefusedError(_error_of(response.status_code, (await response.aread()).decode()))
        async for line in response.aiter_lines():
            last = json.loads(line)
            if "error" in last:
                raise _RefusedError(f"200: {last['error']}")
            read.append(_text(last))
            on_line(len(read))
            if len(read) == leave_after_lines and not last["done"]:
                raise _LeftError
    if not last.get("done"):
        raise ValueError("the stream ended without its last line")
    return Answer("".join(read), last["done_reason"], last.get("eval_count", 0))


def _error_of(status: int, body: str) -> str:
    """``500: text``. Raises ValueError or KeyError where the body is not an error as the API has them."""
    return f"{status}: {json.loads(body)['error']}"


def _read(body: dict[str, Any]) -> Answer:
    if "embeddings" in body:
        return Answer(json.dumps(body["embeddings"]))
    return Answer(_text(body), body["done_reason"], body.get("eval_count", 0))


def _text(body: dict[str, Any]) -> str:
    return str(body["message"]["content"] if "message" in body else body["response"])


async def ask_all(http: httpx.AsyncClient, url: str, asked: tuple[Question, ...]) -> dict[Question, Answer]:
    """One answer after the other. Raises RuntimeError where there is none."""
    answers = {}
    for number, question in enumerate(asked):
        outcome = await do(http, url, Step(number, question.model, "ask", question, is_streamed=question.route == CHAT))
        if outcome.end is not End.ANSWERED:
            raise RuntimeError(f"{question}: {outcome.end.value}: {outcome.error}")
        answers[question] = outcome.answer
    return answers
