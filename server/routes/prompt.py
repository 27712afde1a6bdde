"""Prompts: a template rendered over messages, shortened to the context where the request allows it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.scheduler import RunningModel

from runner.protocol import TokenizeRequest
from server.catalog import Entry
from server.chat_template import FALLBACK_TEMPLATE, ChatTemplate, TemplateError
from server.errors import InvalidRequestError
from server.routes.service import Service, compile_template

Messages = Sequence[Mapping[str, Any]]

SPECIAL_TOKENS = 4
"""Tokens that a tokenizer may add of itself (BOS, EOS, a leading blank), beyond one for each byte of text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the runner gets: text, or token ids where they had to be counted."""

    value: str | tuple[int, ...]
    truncated_messages: int = 0
    truncated_tokens: int = 0


async def chat_prompt(
    service: Service, entry: Entry, running: RunningModel, messages: Messages, truncate: bool, **variables: Any
) -> Prompt:
    """Render ``messages``; while that is over the context, leave out the oldest that is neither system nor the last.

    Raises InvalidRequestError when the template refuses the messages.
    """
    template = await asyncio.to_thread(_template_or_fallback, service, entry)
    text = await _render(template, messages, variables)
    prompt = await counted(running, text)
    if not truncate or not prompt.truncated_tokens:
        return prompt
    return await _shortened(template, running, messages, variables) or prompt


async def generate_prompt(
    service: Service,
    entry: Entry,
    running: RunningModel,
    text: str,
    system: str,
    context: Sequence[int],
    **variables: Any,
) -> Prompt:
    """The prompt of ``/api/generate``: through the file's template if it has one, after the tokens of ``context``."""
    template = await asyncio.to_thread(service.template, entry)
    if template is None and system:
        template = await asyncio.to_thread(compile_template, entry, FALLBACK_TEMPLATE)
    if template is not None:
        messages = [{"role": "system", "content": system}] if system else []
        text = await _render(template, [*messages, {"role": "user", "content": text}], variables)
    if not context:
        return await counted(running, text)
    answer = await running.client.tokenize(TokenizeRequest(text=text, add_special=False))
    return _of_ids((*context, *answer.tokens), running.num_ctx)


async def counted(running: RunningModel, text: str) -> Prompt:
    """The text as it is where it surely fits the context, its token ids where they must be counted."""
    if len(text.encode("utf-8", "surrogatepass")) + SPECIAL_TOKENS <= running.num_ctx:
        return Prompt(text)
    answer = await running.client.tokenize(TokenizeRequest(text=text))
    return _of_ids(answer.tokens, running.num_ctx)


def _of_ids(ids: tuple[int, ...], num_ctx: int) -> Prompt:
    return Prompt(ids, truncated_tokens=max(len(ids) - num_ctx, 0))


async def _shortened(
    template: ChatTemplate, running: RunningModel, messages: Messages, variables: Mapping[str, Any]
) -> Prompt | None:
    """The prompt with the fewest messages left out that fits, by bisection; None when not even the last fits."""
    droppable = [i for i, message in enumerate(messages[:-1]) if message["role"] != "system"]
    low, high, best = 1, len(droppable), None
    while low <= high:
        middle = (low + high) // 2
        found = await _first_that_renders(template, messages, droppable, middle, variables)
        prompt = await counted(running, found[1]) if found else None
        if found and prompt and not prompt.truncated_tokens:
            best, high = Prompt(prompt.value, truncated_messages=found[0]), middle - 1
        else:
            low = (found[0] if found else high) + 1
    return best


async def _first_that_renders(
    template: ChatTemplate, messages: Messages, droppable: Sequence[int], count: int, variables: Mapping[str, Any]
) -> tuple[int, str] | None:
    """Leave out ``count`` messages, or the next number that renders: many templates insist on user, assistant, user."""
    for number in range(count, len(droppable) + 1):
        left_out = set(droppable[:number])
        kept = [message for i, message in enumerate(messages) if i not in left_out]
        try:
            return number, await _render(template, kept, variables)
        except InvalidRequestError:
            continue
    return None


def _template_or_fallback(service: Service, entry: Entry) -> ChatTemplate:
    return service.template(entry) or compile_template(entry, FALLBACK_TEMPLATE)


async def _render(template: ChatTemplate, messages: Messages, variables: Mapping[str, Any]) -> str:
    try:
        return await asyncio.to_thread(template.render, list(messages), **variables)
    except TemplateError as error:
        raise InvalidRequestError(str(error), param="messages") from error
