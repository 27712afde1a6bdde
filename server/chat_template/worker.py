"""The renderer: a process of its own, which renders what it is asked to and can be killed at any moment.

Nothing inside of an interpreter can bound what a template does: one expression is enough for hours of work in
the interpreter's own C code, or for all of the memory. So templates are rendered here, under limits that the
operating system keeps, without the server's environment, and without the right to write files.

Requests and answers are lines of JSON on standard input and output; input that ends, ends the process.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

# Jinja is imported when the limits hold, and not by the server's own process.


def main() -> None:
    _set_limits(int(sys.argv[1]))
    from server.chat_template import environment

    for line in sys.stdin.buffer:
        request = json.loads(line)
        _set_alarm(request["seconds"])
        answer = _answer(environment, request)
        try:
            data = json.dumps(answer).encode()
        except MemoryError:
            data = json.dumps({"error": "the text does not fit in memory", "line": None}).encode()
        _set_alarm(0)
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()


def _answer(environment: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """``{"text": …}`` of the first variables that render, or ``{"error": …, "line": …}`` of the first that did not."""
    now = None if request["now"] is None else datetime.fromisoformat(request["now"])
    first: BaseException | None = None
    try:
        environment.compile_template(request["source"])
        for variables in request["attempts"]:
            try:
                return {"text": environment.render(request["source"], variables, now, request["characters"])}
            except Exception as error:
                first = first or error
    except Exception as error:
        first = error
    if first is None:
        return {"text": ""}
    return {"error": _describe(first), "line": environment.line_of(first)}


def _describe(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, RecursionError):
        return "it calls itself too deeply"
    text = str(error)[:1000]
    is_plain = type(error).__name__ in ("TemplateError", "OverflowError") and text
    return text if is_plain else f"{type(error).__name__}: {text}"


def _set_limits(memory_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system; the time is limited all the same
        return
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        with suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(kind, (value, value))


def _set_alarm(seconds: float) -> None:
    """The system ends this process that long from now, also where the server died before it could. 0: it does not."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
