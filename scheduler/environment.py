"""What a runner gets to see of this process's environment, and what of it may be logged.

A runner parses files of strangers, so it gets a list of names that it needs and nothing else: no cloud
credentials, no API keys, whatever else the server was started with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ALLOWED_NAMES = frozenset(
    {
        # finding programs, libraries and Python itself
        "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH",
        "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV",
        # text, time, and places to write
        "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_CACHE_HOME",
        # which GPUs there are, and where their compilers keep results
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_PATH", "CUDA_HOME", "CUDA_CACHE_PATH",
        "CUDA_CACHE_MAXSIZE", "CUPY_CACHE_DIR", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
        # ours
        "SHALE_KERNELS", "SHALE_CPU_ISA", "SHALE_DEVICES", "SHALE_SIM_LEDGER", "SHALE_DEBUG",
    }
)  # fmt: skip
ALLOWED_PREFIXES = ("LC_",)

# The CPU kernels have their own thread pool: a second one below it only takes cores away. A runner that
# crashes in native code says where (faulthandler), and nothing it says waits in a buffer when it is killed.
FIXED: Mapping[str, str] = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONUNBUFFERED": "1",
}

_REDACTED = "[redacted]"
_HINT = re.compile("key|token|secret|pass|auth|sig|credential|bearer|api", re.IGNORECASE)
# A name up to where its value begins: NAME=…, name: …, "name": …, &name=…, (b'name', b'…').
_NAME = re.compile(
    r"""(?<![\w.-])([\w.-]+)(?:["'],[ ]*(?=b["'])|["'\]\\]{0,3}[ \t]*(?:=(?![=])|:(?!:|//)|:=|=>)[ \t]*)"""
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# In names, words decide: "monkey" has no key in it, "tokens" are counted, and "tokenizer", "author", "signal" go on.
_SECRET_WORD = re.compile(r".*(?:secret|passw|passphrase|credential|auth(?!or(?!i[sz]))).*|.*sig|signature")
_KEY_WORD = re.compile(r".*(?:key|token)(?:id|data|value|string)?")
_ENGLISH = frozenset({"monkey", "donkey", "turkey", "hockey", "jockey", "whiskey"})
_VOCABULARY = frozenset({"eos", "bos", "eot", "eom", "eog", "pad", "unk", "sep", "cls", "mask", "fim"})
_NO_VALUE = re.compile(r"(?:true|false|null|none|yes|no|on|off)?[\[({})\];]*", re.IGNORECASE)
_NUMBERS = re.compile(r"\d{1,6}(?:\.\d+)?(?:ms|s|%)?[})\];]*|[\[(][\d\s.,]*[\])]")  # "key_length = 64", "(8, 64)"

_QUOTED = r"""b?"(?:[^"\\]|\\.)*"|b?'(?:[^'\\]|\\.)*'|\\+"[^"\\]*\\+"|b?["'].*"""  # the last one never ends
_BRACKETED = r"\[[^\]]{0,999}\]|\{[^{}]{0,999}\}|\([^()]{0,999}\)"
# Unquoted, a value goes on over quotes and commas that stand inside it, but not into the next "name=".
_BARE = r"""[^\s,"']+(?:(?:["']|,(?!["']?[\w.-]+["']?[ ]*[=:]))[^\s,"']+)*"""
_VALUE = re.compile("|".join((_QUOTED, _BRACKETED, _BARE)))
_QUERY_VALUE = re.compile(r"""[^&#\s"']+""")
# Of "Authorization" these schemes stay, and all else goes: others have parameters, and some clients send no scheme.
_SCHEME = re.compile(r"(?:bearer|basic|token|apikey|negotiate|ntlm)[ \t]+", re.IGNORECASE)
_QUOTED_OR_LINE = re.compile(rf"{_QUOTED}|[^\r\n]+")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]+")


def runner_environment(
    parent: Mapping[str, str], own: Mapping[str, str], checkout: str | None = None
) -> dict[str, str]:
    """The child's whole environment: what is allowed of ``parent``, then ``FIXED``, then ``own``.

    ``checkout`` is put in front of ``PYTHONPATH``.
    """
    environment = {
        name: value for name, value in parent.items() if name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIXES)
    }
    environment |= {**FIXED, **own}
    if checkout is not None:
        environment["PYTHONPATH"] = ":".join(filter(None, (checkout, environment.get("PYTHONPATH"))))
    return environment


def redact(text: str) -> str:
    """``text`` without the values of what is named like a secret, and without those of ``Bearer …``.

    Names of variables, of parameters and of headers: ``X_API_KEY=…``, ``"password": "…"``, ``?sig=…``,
    ``Authorization: Basic …``.
    """
    if _HINT.search(text) is None:
        return text
    parts, end = [], 0
    for name in _NAME.finditer(text):
        value = _secret_value(text, name) if name.start() >= end else None  # else it is inside of a value that is gone
        if value is not None:
            parts += [text[end : value.start()], _REDACTED]
            end = value.end()
    return _BEARER.sub(rf"\1{_REDACTED}", "".join(parts) + text[end:])


def _secret_value(text: str, name: re.Match[str]) -> re.Match[str] | None:
    """The value that follows ``name`` in ``text``, if it is a secret."""
    words = [word.lower() for word in _WORD.findall(name[1])]
    if "authorization" in words:
        scheme = _SCHEME.match(text, name.end())
        return _VALUE.match(text, scheme.end()) if scheme else _QUOTED_OR_LINE.match(text, name.end())
    if name[1].endswith(("Error", "Exception", "Warning")):
        return None
    if name.start() and text[name.start() - 1] in "?&":
        return _QUERY_VALUE.match(text, name.end()) if _is_secret(words) or _is_key(words) else None
    value = _VALUE.match(text, name.end())
    if value is None or _NO_VALUE.fullmatch(value[0]):
        return None
    is_variable = name[1].isupper()
    if _is_secret(words) or (is_variable and not {"api", "pass"}.isdisjoint(words)):
        return value
    return value if _is_key(words) and (is_variable or not _NUMBERS.fullmatch(value[0])) else None


def _is_secret(words: Sequence[str]) -> bool:
    return any(map(_SECRET_WORD.fullmatch, words))


def _is_key(words: Sequence[str]) -> bool:
    """A key or a token, but not one of a vocabulary."""
    return _VOCABULARY.isdisjoint(words) and any(map(_KEY_WORD.fullmatch, set(words) - _ENGLISH))
