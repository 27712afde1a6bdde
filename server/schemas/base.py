"""What every request has in common: unknown fields and other types are refused, and an error is one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from scheduler.keep_alive import parse_keep_alive

MAX_NAMES_SHOWN = 60
MAX_VALUE_SHOWN = 60
MAX_EXACT = 2**63

JSON_SENTENCES: Mapping[str, str] = {
    "tuple_type": "input should be a valid list",
    "dict_type": "input should be a valid object",
    "model_type": "input should be a valid object",
}
"""What an error of Pydantic's is in JSON's words, where its own are Python's."""


class Request(BaseModel):
    """Base of every request: frozen, strict about unknown fields and about types.

    A field that is a tuple needs ``Field(strict=False)``, for JSON has lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class UnsupportedError(ValueError):
    """The request asks for something that Shale does not do, or that nobody can. Raised inside a validator, with the
    whole sentence."""


def whole(value: Any) -> Any:
    """``1.0`` as the integer that it is in JavaScript, which has no other numbers; anything else as it was."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT else value


def _named(name: str) -> str:
    if not name:
        raise UnsupportedError("model is required")
    return name


Integer = Annotated[int, BeforeValidator(whole)]

ModelName = Annotated[str, Field(validate_default=True), AfterValidator(_named)]
"""A field whose default ``""`` is refused, so that a missing name and an empty one read the same."""

KeepAlive = Annotated[Annotated[float, Field(allow_inf_nan=True)] | None, BeforeValidator(parse_keep_alive)]
"""``keep_alive`` in seconds, ``math.inf`` for ever, None where the request does not say."""


def only(*allowed: Any, sentence: str) -> BeforeValidator:
    """A field that is accepted with null and with values that mean "not used", and refused otherwise."""

    def check(value: Any) -> Any:
        if value is None or any(type(value) is type(one) and value == one for one in allowed):
            return None
        raise UnsupportedError(sentence)

    return BeforeValidator(check)


def only_with(name: str, other: str) -> UnsupportedError:
    """The error of a field that says nothing without another."""
    return UnsupportedError(f'field {name!r} is only allowed with "{other}": true')


def sentence_of(error: ValidationError) -> str:
    """The first thing wrong, readable by a person: which field, what was found, what is allowed."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {}).get("error")
    if isinstance(context, UnsupportedError):
        return str(context)
    where = field_name(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r}; known here: {_known_names(error.title)}"
    if first["type"] == "missing":
        return f"field {where!r} is required"
    if first["type"] == "value_error":
        return f"field {where!r}: {context}"
    found = repr(first["input"])
    shown = found if len(found) <= MAX_VALUE_SHOWN else found[:MAX_VALUE_SHOWN] + "…"
    wrong = JSON_SENTENCES.get(first["type"]) or f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    return f"field {where!r}: {wrong} (found {shown})"


def parameter_of(error: ValidationError) -> str | None:
    """Name of the top-level field that is wrong (OpenAI's ``param``)."""
    location = error.errors(include_url=False)[0]["loc"]
    return str(location[0]) if location else None


def field_name(location: Sequence[int | str]) -> str:
    """``('messages', 0, 'role')`` → ``messages[0].role``."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def _known_names(title: str) -> str:
    for model in _subclasses(Request):
        if model.__name__ == title:
            names = list(model.model_fields)
            return ", ".join((*names[:MAX_NAMES_SHOWN], *(["…"] if len(names) > MAX_NAMES_SHOWN else [])))
    return "none"


def _subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [each for child in model.__subclasses__() for each in (child, *_subclasses(child))]
