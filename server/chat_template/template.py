"""A model's chat template."""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from server.chat_template.limits import Limits
from server.chat_template.renderer import RENDERER, RendererDiedError

FALLBACK_TEMPLATE: Final = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""ChatML, for a model that brings no template: the form that most models without one were trained on."""

_TOOL_WORDS: Final = ("tools", "tool_call")
_THINKING_WORDS: Final = ("<think>", "enable_thinking", "reasoning_content")

atexit.register(RENDERER.close)


class TemplateError(ValueError):
    """A template that does not compile, refuses the conversation, or takes too much; the message says where."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what if line is None else f"{what} (line {line} of the chat template)")
        self.line = line


class ChatTemplate:
    """Renders conversations as Hugging Face's ``apply_chat_template`` does, in a process of its own.

    Both the constructor and ``render`` wait for that process, some milliseconds or, the first time, a tenth of a
    second; in an event loop they belong in a thread. They may be called from several threads.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "", limits: Limits | None = None) -> None:
        """Raises TemplateError where ``source`` is no valid template."""
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._limits = limits or Limits()
        self._run((), None)

    @property
    def supports_tools(self) -> bool:
        """Whether the template does anything with tools, by its text."""
        return any(word in self.source for word in _TOOL_WORDS)

    @property
    def supports_thinking(self) -> bool:
        """Whether the template knows of reasoning apart from the answer, by its text."""
        return any(word in self.source for word in _THINKING_WORDS)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for ``messages``, which stay as they are. ``now``: what the template takes for the present.

        ``kwargs`` are more variables, such as ``enable_thinking``. Arguments of tool calls are best given as
        objects: where a template wants them as JSON text, they are given so in a second attempt. Raises
        TemplateError where the template raises, or goes beyond its limits.
        """
        variables = {
            **self._tokens,
            "messages": messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **kwargs,
        }
        return self._run(list(_attempts(variables)), now)

    def render_exactly(self, variables: Mapping[str, Any], now: datetime | None = None) -> str:
        """Renders with these variables and no others, without a second attempt. Raises TemplateError."""
        return self._run([variables], now)

    def _run(self, attempts: Sequence[Mapping[str, Any]], now: datetime | None) -> str:
        try:
            answer = RENDERER.render(self.source, attempts, now, self._limits)
        except RendererDiedError as error:
            raise TemplateError(f"the chat template was stopped: {error}") from error
        if "error" in answer:
            raise TemplateError(answer["error"], answer["line"])
        text: str = answer["text"]
        return text


def _attempts(variables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same conversation in the forms that templates expect, the usual one first."""
    yield variables
    present = {name: value for name, value in variables.items() if value is not None}
    if len(present) < len(variables):
        yield present  # "tools is defined", without a thought of None
    messages = [_with_text_arguments(message) for message in variables["messages"]]
    if messages != list(variables["messages"]):
        yield {**variables, "messages": messages}


def _with_text_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with the arguments of its tool calls as JSON text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_text_argument(call) for call in calls]}


def _with_text_argument(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
