"""The steps of a soak as they happen, several at a time, and the looks in between."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import httpx
import psutil

from tools.soaking.accounts import Accounts, loaded
from tools.soaking.asking import Answer, End, Outcome, do
from tools.soaking.front import Front, model_of
from tools.soaking.models import FLEET, Question
from tools.soaking.steps import QUOTAS, Kill, KillMidway, Resize, Step
from tools.soaking.verdicts import Event, judge

ROUND = 15  # steps between two quiet moments
CALM_S = 60.0  # for models to go that were told to
REST_S = 40.0  # more than a model is left alone at most after its runners have crashed
LEFTOVER_S = 30.0  # for processes to end after the server

_LOG_DEFECTS = re.compile(r"Traceback|internal error|was never (?:retrieved|awaited)")
_FIGURES = ("shale_loads_total", "shale_evictions_total", "shale_unloads_total", "shale_crashes_total")


@dataclass(slots=True)
class Report:
    """What a soak found. It passed if there are no ``problems``."""

    labels: Counter[str] = field(default_factory=Counter)  # requests by outcome
    troubles: Counter[str] = field(default_factory=Counter)
    figures: dict[str, int] = field(default_factory=dict)  # the server's own counts
    problems: list[str] = field(default_factory=list)
    num_balances: int = 0
    most_bytes: int = 0  # held at one of the quiet moments


class Storm:
    """One server under way. In this order: ``rage``, ``calm_down``, and when the server has ended ``look_back``."""

    def __init__(
        self, http: httpx.AsyncClient, front: Front, accounts: Accounts, truth: Mapping[Question, Answer]
    ) -> None:
        self.report = Report()
        self._http = http
        self._front = front
        self._accounts = accounts
        self._truth = truth
        self._events: list[Event] = []
        self._seen: set[psutil.Process] = set()

    async def rage(self, steps: Sequence[Step], num_clients: int) -> None:
        """All steps, with a quiet moment after every ``ROUND`` of them."""
        for first in range(0, len(steps), ROUND):
            todo = deque(steps[first : first + ROUND])
            outcomes: list[Outcome] = []
            await asyncio.gather(*(self._client(todo, outcomes) for _ in range(num_clients)))
            self._judge(outcomes)
            await self._balance()

    async def calm_down(self) -> None:
        """Gives the devices back, sees that every model answers, unloads all, and counts what is still held."""
        self._accounts.resize(QUOTAS)
        for number, question in enumerate({question.model: question for question in self._truth}.values()):
            await self._ask_again(Step(number, question.model, "ask", question))
        await self._balance()
        self.report.figures = await self._figures()
        await self._unload_all()
        held = self._accounts.held()
        if any(held.values()):
            self.report.problems.append(f"all is unloaded, and still held: {held}")
        if runners := self._front.runners():
            self.report.problems.append(f"all is unloaded, and still there: {runners}")

    def look_back(self, status: int) -> None:
        """After the server's end: its exit status, its log, its children, its ledgers."""
        if status not in (0, -signal.SIGTERM):  # uvicorn, once all is in order, ends by the signal that it was sent
            self.report.problems.append(f"the server ended with status {status}")
        if defect := _LOG_DEFECTS.search(log := self._front.log.read_text()):
            begin = max(0, defect.start() - 500)
            self.report.problems.append(f"the server's log says: …{log[begin : defect.end() + 2500]}…")
        _, alive = psutil.wait_procs(self._seen, LEFTOVER_S)
        if alive:
            self.report.problems.append(f"processes that outlived the server: {alive}")
        if left := self._accounts.leftovers():
            self.report.problems.append(f"nobody lives, and the ledgers count {left}")

    # --------------------------------------------------------------------------------------------

    async def _client(self, todo: deque[Step], outcomes: list[Outcome]) -> None:
        while todo:
            step = todo.popleft()
            await asyncio.sleep(step.pause_s)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._make_trouble(step.trouble))
                outcomes.append(await do(self._http, self._front.url, step, partial(self._hear, step)))

    async def _make_trouble(self, trouble: Kill | KillMidway | Resize | None) -> None:
        if isinstance(trouble, Resize):
            self._accounts.ledgers[f"sim{trouble.device}"].set_quota(trouble.quota_bytes)
            self._events.append(Event(time.monotonic()))
            self.report.troubles["devices resized"] += 1
        elif isinstance(trouble, Kill):
            await asyncio.sleep(trouble.after_s)
            if runners := self._look_at_runners():
                self._kill(runners[int(trouble.choice * len(runners))])

    def _hear(self, step: Step, line: int) -> None:
        if isinstance(step.trouble, KillMidway) and line == step.trouble.lines:
            for runner in self._look_at_runners():
                if model_of(runner) == step.model:
                    self._kill(runner)

    def _kill(self, runner: psutil.Process) -> None:
        if model := model_of(runner):
            self._events.append(Event(time.monotonic(), model))
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
                runner.kill()
            self.report.troubles["runners killed"] += 1

    def _look_at_runners(self) -> list[psutil.Process]:
        runners = sorted(self._front.runners(), key=lambda process: process.pid)
        self._seen.update(runners)
        return runners

    def _judge(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            verdict = judge(outcome, self._truth, self._events)
            self.report.labels[verdict.label] += 1
            if verdict.problem:
                self.report.problems.append(verdict.problem)

    async def _ask_again(self, step: Step) -> None:
        """Asks until the server no longer leaves the model alone for its crashes; then the answer must be right."""
        deadline = time.monotonic() + REST_S
        while True:
            outcome = await do(self._http, self._front.url, step)
            verdict = judge(outcome, self._truth, self._events)
            if verdict.label != "error: left alone after crashes" or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        self.report.labels["asked again when all was quiet"] += 1
        if outcome.end is not End.ANSWERED or verdict.problem:
            self.report.problems.append(f"after the storm: {verdict.problem or verdict.label}")

    async def _balance(self) -> None:
        try:
            balance = await self._accounts.balance(self._http, self._front)
        except TimeoutError as error:
            self.report.problems.append(str(error))
            return
        self._look_at_runners()
        self.report.num_balances += not balance.problems
        self.report.most_bytes = max(self.report.most_bytes, sum(balance.held.values()))
        self.report.problems += balance.problems

    async def _figures(self) -> dict[str, int]:
        """The server's counters, all labels of each: ``shale_loads_total{result="loaded"}`` → 17."""
        text = (await self._http.get(f"{self._front.url}/metrics")).text
        lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(_FIGURES))
        return {name: int(float(value)) for name, _, value in lines}

    async def _unload_all(self) -> None:
        for number, model in enumerate(FLEET):
            outcome = await do(self._http, self._front.url, Step(number, model, "unload"))
            if outcome.end is not End.ANSWERED:
                self.report.problems.append(f"unloading {model}: {outcome.end.value}: {outcome.error}")
        deadline = time.monotonic() + CALM_S
        while left := await loaded(self._http, self._front.url):
            if time.monotonic() > deadline:
                self.report.problems.append(f"all was unloaded, and /api/ps lists {left}")
                return
            await asyncio.sleep(0.05)
