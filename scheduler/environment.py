"""What a runner gets to see of this process's environment, and what of it may be logged.

A runner parses files of strangers, so it gets a list of names that it needs and nothing else: no cloud
credentials, no API keys, whatever else the server was started with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
_SECRET_WORD = "(?:API|KEY|TOKEN|SECRET|PASSWORD|PASS|CREDENTIAL|CREDENTIALS|AUTH)"
# An environment-style assignment: upper case only, so that "eos_token = 2" stays readable.
_ASSIGNMENT = re.compile(rf"\b((?:[A-Z0-9]+_)*{_SECRET_WORD}(?:_[A-Z0-9]+)*['\"]?\s*[=:]\s*)(['\"]?)[^\s'\",]+\2")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]+")
_QUERY = re.compile(r"(?i)([?&](?:api_?key|key|(?:access_)?token|secret|password)=)[^&\s\"']+")


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
    """``text`` without the values of what looks like a secret (``X_API_KEY=…``, ``Bearer …``, ``?api_key=…``)."""
    for pattern in (_ASSIGNMENT, _BEARER, _QUERY):
        text = pattern.sub(rf"\1{_REDACTED}", text)
    return text
