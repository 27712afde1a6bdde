"""Chat templates: what Hugging Face's renderer gives, and what a hostile one may not do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from server.chat_template import FALLBACK_TEMPLATE, ChatTemplate, Limits, TemplateError
from server.chat_template.renderer import RENDERER

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "description": "<b> & é", "parameters": {"type": "object"}}}
SHORT = Limits(seconds=0.4)
LONG = Limits(seconds=120)  # where it is not time that ends a template


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    RENDERER.close()


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render(variables.pop("messages", [USER]), **variables)


# ---- what a template sees ----------------------------------------------------------------------


def test_the_fallback_is_chatml() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": None}]
    assert ChatTemplate(FALLBACK_TEMPLATE).render(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ChatTemplate(FALLBACK_TEMPLATE).render([USER], add_generation_prompt=False) == (
        "<|im_start|>user\nhi<|im_end|>\n"
    )


def test_a_template_sees_its_tokens_and_what_else_is_passed() -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ mood }}", bos_token="<s>")
    assert template.render([USER], mood="!") == "<s>hi!"


def test_blocks_take_their_lines_with_them() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


def test_a_message_is_text_and_no_template() -> None:
    assert render("{{ messages[0].content }}", messages=[{"content": "{{ 1 }}<&>"}]) == "{{ 1 }}<&>"


def test_json_is_not_escaped_and_keeps_its_order() -> None:
    assert render("{{ tools | tojson }}", tools=[TOOL]) == json.dumps([TOOL], ensure_ascii=False)
    value = {"b": 1, "a": [True, None]}
    assert render("{{ v | tojson(indent=2) }}", v=value) == json.dumps(value, indent=2)
    assert render("{{ v | tojson(sort_keys=true, separators=(',', ':')) }}", v=value) == '{"a":[true,null],"b":1}'
    assert render("{{ v.items() | tojson }}", v={"a": 1}) == '[["a", 1]]'


def test_dates_are_of_the_time_that_was_passed() -> None:
    source = "{{ strftime_now('%d %B %Y, %H:%M') }}"
    assert render(source, now=datetime(2026, 1, 15, 12, 34)) == "15 January 2026, 12:34"
    begin = datetime.now().year
    assert str(begin) <= render("{{ strftime_now('%Y') }}") <= str(datetime.now().year)


def test_loops_can_be_left() -> None:
    assert render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}"
                  "{% endfor %}") == "02"  # fmt: skip


def test_the_tag_for_training_renders_its_body() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert render(source) == "hi"


def test_lists_can_grow_and_the_caller_does_not_see_it() -> None:
    messages = [USER]
    source = "{% set _ = messages.append({'content': 'x'}) %}{{ messages | length }}"
    assert [render(source, messages=messages) for _ in range(2)] == ["2", "2"]
    assert messages == [USER]


def test_without_tools_a_template_may_ask_for_none_or_for_definedness() -> None:
    assert render("{% if tools is none %}none{% endif %}") == "none"
    assert render("{% if tools is defined %}{% for t in tools %}{{ t }}{% endfor %}{% endif %}ok") == "ok"
    assert render("{% if tools %}some{% endif %}", tools=[]) == ""


def test_arguments_of_calls_are_given_as_text_where_a_template_needs_text() -> None:
    call = {"function": {"name": "f", "arguments": {"a": "é"}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    source = "{{ messages[0].tool_calls[0].function.arguments"
    assert render(source + ".a }}", messages=[message]) == "é"
    assert render(source + " + '!' }}", messages=[message]) == '{"a": "é"}!'


def test_any_text_passes_unharmed() -> None:
    text = "\0\n\r\n\u2028 \ud83d é 😀 \"'\\"
    assert render("{{ messages[0].content }}", messages=[{"content": text}]) == text


def test_capabilities_are_read_from_the_text() -> None:
    plain, tools, thinking = (
        ChatTemplate(source) for source in ("{{ 1 }}", "{% for t in tools or [] %}{% endfor %}", "<think>")
    )
    assert (plain.supports_tools, plain.supports_thinking) == (False, False)
    assert (tools.supports_tools, tools.supports_thinking) == (True, False)
    assert (thinking.supports_tools, thinking.supports_thinking) == (False, True)


# ---- the reference -----------------------------------------------------------------------------


def test_every_template_of_the_reference_renders_as_with_hugging_face(shared: Path) -> None:
    from tools.oracle_text import template_rows

    rows = template_rows(shared / "oracle")
    assert len(rows) == 47
    assert [(name, detail) for name, ok, detail in rows if not ok] == []
    assert [name for name, _, detail in rows if "known difference" in detail] == ["Kimi-K2-Instruct"]


def test_templates_that_stumble_over_none_work_without_tools(shared: Path) -> None:
    folder = shared / "oracle" / "templates"
    template = ChatTemplate((folder / "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja").read_text("utf-8"))
    assert "hi" in template.render([USER])


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        ("a\nb\n{{ raise_exception('No system role!') }}", "No system role!", 3),
        ("a\n{{ messages[0].content.x.y }}", "has no attribute 'x'", 2),
        ("{{ 1 + 'a' }}", "TypeError: unsupported operand", 1),
        ("{{ 1 / 0 }}", "ZeroDivisionError", 1),
        ("{% include '/etc/passwd' %}", "no loader", 1),
        ("{{ 1 | nonsense }}", "No filter named 'nonsense'", 1),
    ],
)
def test_an_error_says_what_and_where(source: str, message: str, line: int) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        render(source)
    assert caught.value.line == line
    assert str(caught.value).endswith(f"(line {line} of the chat template)")


def test_a_template_that_does_not_compile_is_refused_at_once() -> None:
    with pytest.raises(TemplateError, match="end of statement") as caught:
        ChatTemplate("fine\n{% if %}")
    assert caught.value.line == 2


def test_the_first_error_counts_where_every_attempt_fails() -> None:
    with pytest.raises(TemplateError, match="first"):
        render("{{ raise_exception('first' if tools is none and tools is defined else 'second') }}")


# ---- attacks -----------------------------------------------------------------------------------

_NEST = "{% set a = ['lol'] %}" + "{% set a = [a, a, a, a, a, a, a, a, a, a] %}" * 12
_LOOP = "{% for a in range(99999) %}"

TOO_LONG = {
    "nested loops": _LOOP * 3 + "{% endfor %}" * 3,
    "macros that double": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "shared lists written out": _NEST + "{{ a }}",
    "shared tuples hashed": _NEST.replace("[", "(").replace("]", ",)") + "{{ {a: 1} }}",
    "lists that grow": "{% set l = [] %}" + _LOOP * 2 + "{% set _ = l.append('x' ~ a) %}" + "{% endfor %}" * 2,
    "filler text": "{{ lipsum(n=10**7) }}",
}
TOO_MUCH = {
    "a product": "{{ 'x' * 10**10 }}",
    "a product that is not shown": "{% set x = [0] * 10**10 %}",
    "text that doubles": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide field": "{{ '{:>10000000000}'.format(1) }}",
    "a wide margin": "{{ 'a\nb' | indent(10**10) }}",
    "a wide page": "{{ 'a' | center(10**10) }}",
    "a wide integer": "{{ (1).to_bytes(10**11, 'big') }}",
    "replacements": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
}
FORBIDDEN = {
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals of a function": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
    "a huge range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "endless macros": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}", "calls itself too deeply"),
    "deep brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "calls itself too deeply"),
    "deep blocks": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "calls itself too deeply"),
    "endless output": ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "longer than 16777216 characters"),
}


@pytest.mark.parametrize("source", TOO_LONG.values(), ids=TOO_LONG)
def test_what_takes_too_long_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError, match=r"stopped: it takes more than 0.4 s|too much memory"):
        ChatTemplate(source, limits=SHORT).render([USER])
    assert render("{{ 1 }}") == "1"  # and the next one is not harmed


@pytest.mark.parametrize("source", TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_needs_too_much_memory_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError, match="too much memory"):
        ChatTemplate(source, limits=LONG).render([USER])
    assert render("{{ 1 }}") == "1"


@pytest.mark.parametrize(("source", "message"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_is_forbidden_is_refused(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source, limits=LONG).render([USER])


@pytest.mark.parametrize(
    "expression",
    [
        "raise_exception.__globals__",
        "''|attr('__class__')",
        "self._TemplateReference__context",
        "'{0.__class__}'.format(1)",
    ],
)
def test_what_is_hidden_is_undefined(expression: str) -> None:
    assert render("{{ " + expression + " }}") == ""


def test_a_template_does_not_see_the_servers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should it ever break out, the process has no environment worth reading and may not write a file."""
    monkeypatch.setenv("SHALE_RUNNER_TOKEN", "secret")
    RENDERER.close()
    render("{{ 1 }}")
    (process,) = RENDERER._idle
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc on this system")
    folder = Path(f"/proc/{process._process.pid}")
    assert b"secret" not in (folder / "environ").read_bytes()
    limits = (folder / "limits").read_text()
    assert any(line.split()[:4] == ["Max", "file", "size", "0"] for line in limits.splitlines()), limits


def test_the_process_ends_by_itself_when_the_server_is_gone() -> None:
    """Even where the server was killed in the middle of a rendering that never ends."""
    code = (
        "from server.chat_template import ChatTemplate, Limits\n"
        "from server.chat_template.renderer import RENDERER\n"
        "import os, threading\n"
        "template = ChatTemplate('{{ 1 }}')\n"
        "(process,) = RENDERER._idle\n"
        "print(process._process.pid, flush=True)\n"
        f"template.source, template._limits = {TOO_LONG['nested loops']!r}, Limits(seconds=0.5)\n"
        "threading.Thread(target=template.render, args=([],), daemon=True).start()\n"
        "threading.Event().wait(0.2)\n"
        "os._exit(9)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert _ends_within(int(done.stdout), seconds=60)


def _ends_within(pid: int, seconds: float) -> bool:
    for _ in range(int(seconds / 0.05)):
        if not _is_running(pid):
            return True
        threading.Event().wait(0.05)
    return False


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


# ---- processes ---------------------------------------------------------------------------------


def test_many_threads_render_at_once() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        found[number] = [template.render([{"content": f"{number}.{i}"}]) for i in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [f"{number}.{i}" for i in range(20)] for number in range(6)}
    assert len(RENDERER._idle) <= 2


def test_an_idle_process_that_was_killed_is_replaced() -> None:
    render("{{ 1 }}")
    for process in RENDERER._idle:
        process._process.kill()
        process._process.wait()
    assert render("{{ 2 }}") == "2"


def test_the_server_does_not_import_jinja() -> None:
    """It would cost every start of the server a tenth of a second."""
    code = "import sys, server.chat_template; sys.exit('jinja2' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_variables_that_are_no_json_are_the_callers_mistake() -> None:
    variables: Mapping[str, Any] = {"x": object()}
    with pytest.raises(TypeError):
        ChatTemplate("{{ x }}").render_exactly(variables)
