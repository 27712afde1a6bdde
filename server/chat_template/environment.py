"""Templates as Hugging Face's ``apply_chat_template`` compiles and renders them. Imported by the renderer only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, NoReturn

from jinja2 import Template, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

TEMPLATE_NAME = "<chat template>"


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks what the assistant wrote, for training; it renders its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not Jinja's own filter, which escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_plain
    )


def _plain(value: object) -> object:
    """What templates build with ``items()``, ``map`` and ``namespace``, as JSON knows it."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, Undefined):
        return list(value)
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _environment() -> SandboxedEnvironment:
    # Not the immutable one that Hugging Face uses: Kimi-K2's templates append to lists. Inputs are copies.
    environment = SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], cache_size=0
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


@lru_cache(maxsize=32)
def compile_template(source: str) -> Template:
    """Raises jinja2.TemplateSyntaxError."""
    environment = _environment()
    code = environment.compile(source, filename=TEMPLATE_NAME)
    return Template.from_code(environment, code, environment.make_globals(None))


def render(source: str, variables: Mapping[str, Any], now: datetime | None, limit: int) -> str:
    """Renders with ``strftime_now`` at ``now``; None is the present.

    Raises whatever the template raises, and OverflowError beyond ``limit`` characters.
    """

    def strftime_now(format: str) -> str:
        return (now or datetime.now()).strftime(format)

    chunks = []
    length = 0
    for chunk in compile_template(source).generate(strftime_now=strftime_now, **variables):
        length += len(chunk)
        if length > limit:
            raise OverflowError(f"the text is longer than {limit} characters")
        chunks.append(chunk)
    return "".join(chunks)


def line_of(error: BaseException) -> int | None:
    """The template's line in which the error arose, where that can be told."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    line = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == TEMPLATE_NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


Renderer = Callable[[str, Mapping[str, Any], datetime | None, int], str]
