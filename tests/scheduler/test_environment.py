from __future__ import annotations

import pytest

from scheduler.environment import FIXED, redact, runner_environment

PARENT = {
    "PATH": "/bin",
    "LC_ALL": "C",
    "CUDA_VISIBLE_DEVICES": "1",
    "PYTHONPATH": "/elsewhere",
    "AWS_SECRET_ACCESS_KEY": "s",
    "OPENAI_API_KEY": "k",
    "HF_TOKEN": "t",
    "SHALE_RUNNER_TOKEN": "of another runner",
    "LD_PRELOAD": "/evil.so",
    "OMP_NUM_THREADS": "64",
}


def test_only_what_is_allowed_is_passed_on():
    found = runner_environment(PARENT, {"SHALE_KERNELS": "fast"})
    assert found == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTHONPATH": "/elsewhere",
        "SHALE_KERNELS": "fast",
        **FIXED,
    }


def test_own_values_win():
    assert runner_environment({"SHALE_CPU_ISA": "avx2"}, {"SHALE_CPU_ISA": "portable"})["SHALE_CPU_ISA"] == "portable"


@pytest.mark.parametrize(("parent", "path"), [({}, "/src"), ({"PYTHONPATH": "/a:/b"}, "/src:/a:/b")])
def test_a_checkout_comes_first(parent, path):
    assert runner_environment(parent, {}, "/src")["PYTHONPATH"] == path


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("SHALE_RUNNER_TOKEN=abc123 next", "SHALE_RUNNER_TOKEN=[redacted] next"),
        ("OPENAI_API_KEY: 'sk-1'", "OPENAI_API_KEY: [redacted]"),
        ("{'DB_PASSWORD': 'hunter2', 'PATH': '/bin'}", "{'DB_PASSWORD': [redacted], 'PATH': '/bin'}"),
        ("authorization: Bearer abc.def-1", "authorization: Bearer [redacted]"),
        ('"GET /v1/models?a=b&api_key=sk-1&c=d HTTP/1.1"', '"GET /v1/models?a=b&api_key=[redacted]&c=d HTTP/1.1"'),
        ("eos_token = 2, tokens: 512, KEYBOARD=1", "eos_token = 2, tokens: 512, KEYBOARD=1"),
        ("PATH=/usr/bin", "PATH=/usr/bin"),
    ],
)
def test_redact(line, shown):
    assert redact(line) == shown
