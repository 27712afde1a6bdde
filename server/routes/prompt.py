"""Prompts: a template rendered over messages, shortened to the context where the request allows it.

Rendering comes before loading, so that messages which the template refuses cost no load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.protocol import TokenizeRequest
from scheduler.scheduler import RunningModel
from server.catalog import Entry
from server.chat_template import ChatTemplate, TemplateError
from server.errors import InvalidRequestError
from server.routes.service import Service

SPECIAL_TOKENS = 4
"""Tokens that a tokenizer may add of itself (BOS, EOS, a leading blank), beyond one for each byte of text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation for the runner: text, or token ids where they had to be counted."""

    value: str | tuple[int, ...]
    truncated_messages: int = 0
    is_too_long: bool = False  # for the context; the runner cuts it, or refuses to


@dataclass(frozen=True, slots=True)
class Rendered:
    """Messages, the template that takes them, and the text that it makes of them."""

    template: ChatTemplate
    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]
    text: str = ""

    async def with_text(self) -> Rendered:
        """The same with its text. Raises InvalidRequestError when the template refuses the messages."""
        try:
            text = await asyncio.to_thread(self.template.render, self.messages, **self.variables)
        except TemplateError as error:
            raise InvalidRequestError(str(error), param="messages") from error
        return replace(self, text=text)


async def render(
    service: Service, entry: Entry, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> Rendered:
    """The messages through the model's template, or the usual one for a file that has none.

    Raises InvalidRequestError when the template refuses them, ApiError when it is broken.
    """
    template = await asyncio.to_thread(service.template, entry)
    return await Rendered(template, messages, variables).with_text()


async def render_generate(service: Service, entry: Entry, text: str, system: str, variables: Mapping[str, Any]) -> str:
    """The text of ``/api/generate``: as a conversation, or as it is where neither template nor system text is given."""
    if entry.facts.chat_template is None and not system:
        return text
    messages = [{"role": "system", "content": system}] if system else []
    return (await render(service, entry, [*messages, {"role": "user", "content": text}], variables)).text


async def chat_prompt(rendered: Rendered, running: RunningModel, truncate: bool) -> Prompt:
    """The prompt of a conversation; while it is over the context, its oldest messages but system and last ones go."""
    prompt = await _counted(running, rendered.text)
    if not truncate or not prompt.is_too_long:
        return prompt
    return await _shortened(rendered, running) or prompt


async def generate_prompt(running: RunningModel, text: str, context: Sequence[int]) -> str | tuple[int, ...]:
    """The text, after the tokens of ``context``."""
    if not context:
        return text
    answer = await running.client.tokenize(TokenizeRequest(text=text, add_special=False))
    return (*context, *answer.tokens)


async def _counted(running: RunningModel, text: str) -> Prompt:
    """The text as it is where it surely fits the context, its token ids where they must be counted."""
    if len(text.encode("utf-8", "surrogatepass")) + SPECIAL_TOKENS <= running.num_ctx:
        return Prompt(text)
    answer = await running.client.tokenize(TokenizeRequest(text=text))
    return Prompt(answer.tokens, is_too_long=len(answer.tokens) > running.num_ctx)


async def _shortened(rendered: Rendered, running: RunningModel) -> Prompt | None:
    """The prompt with the fewest messages left out that fits, by bisection; None when not even the last fits."""
    droppable = [i for i, message in enumerate(rendered.messages[:-1]) if message["role"] != "system"]
    low, high, best = 1, len(droppable), None
    while low <= high:
        middle = (low + high) // 2
        number, shorter = await _first_that_renders(rendered, droppable, middle)
        prompt = await _counted(running, shorter.text) if shorter else None
        if prompt and not prompt.is_too_long:
            best, high = Prompt(prompt.value, truncated_messages=number), middle - 1
        else:
            low = number + 1
    return best


async def _first_that_renders(rendered: Rendered, droppable: Sequence[int], count: int) -> tuple[int, Rendered | None]:
    """Leave out ``count`` messages, or the next number that renders: many templates insist on user, assistant, user."""
    for number in range(count, len(droppable) + 1):
        left_out = set(droppable[:number])
        kept = [message for i, message in enumerate(rendered.messages) if i not in left_out]
        try:
            return number, await replace(rendered, messages=kept).with_text()
        except InvalidRequestError:
            continue
    return len(droppable), None
