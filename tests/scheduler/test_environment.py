from __future__ import annotations

import time

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


R = "[redacted]"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("SHALE_RUNNER_TOKEN=abc123 next", f"SHALE_RUNNER_TOKEN={R} next"),
        ("MY_APIKEY=k1 SSH_KEY_DATA=k2", f"MY_APIKEY={R} SSH_KEY_DATA={R}"),
        ("AWS_SESSION_TOKEN=t OAUTH2_TOKEN: 5 OPENAI_API=k", f"AWS_SESSION_TOKEN={R} OAUTH2_TOKEN: {R} OPENAI_API={R}"),
        ("aws_access_key_id = AKIA, n = 1", f"aws_access_key_id = {R}, n = 1"),
        ("password=p'w\"d,x&y end", f"password={R} end"),
        ("password: 123456", f"password: {R}"),
        ("token=a,num_ctx=5", f"token={R},num_ctx=5"),
        ("ValueError: HF_TOKEN=a", f"ValueError: HF_TOKEN={R}"),
        ("--api-key=sk-1 --port=3", f"--api-key={R} --port=3"),
        ("OPENAI_API_KEY: 'sk-1'", f"OPENAI_API_KEY: {R}"),
        ("PASSWORD='a b' next", f"PASSWORD={R} next"),
        ("PASSWORD='a b", f"PASSWORD={R}"),
        ("{'DB_PASSWORD': 'hunter2', 'PATH': '/bin'}", f"{{'DB_PASSWORD': {R}, 'PATH': '/bin'}}"),
        ('{"apiKey":"a","clientSecret": "d\\"e f","n":5}', f'{{"apiKey":{R},"clientSecret": {R},"n":5}}'),
        ('{\\"api_key\\": \\"a\\", \\"n\\": 1}', f'{{\\"api_key\\": {R}, \\"n\\": 1}}'),
        ('"credentials": {"user": "x", "pass": "y"}, "n": 1', f'"credentials": {R}, "n": 1'),
        ("os.environ['API_KEY'] = 'x y'", f"os.environ['API_KEY'] = {R}"),
        (f"TOKEN={R} token: {R}", f"TOKEN={R} token: {R}"),
    ],
)
def test_what_is_named_like_a_secret_is_redacted(line, shown):
    assert redact(line) == shown


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("authorization: Bearer abc.def-1", f"authorization: Bearer {R}"),
        ("Authorization: Basic dXNlcjpwYXNz next", f"Authorization: Basic {R} next"),
        ('Authorization: Digest username="me", response="abc"', f"Authorization: {R}"),
        ("Proxy-Authorization: abc def", f"Proxy-Authorization: {R}"),
        ("{'authorization': 'Basic abc', 'x': 1}", f"{{'authorization': {R}, 'x': 1}}"),
        ("[(b'host', b'h'), (b'authorization', b'Basic abc')]", f"[(b'host', b'h'), (b'authorization', {R})]"),
        ("-H 'X-Api-Key: abc' http://h:1/", f"-H 'X-Api-Key: {R}' http://h:1/"),
        ("x-goog-signature: abc", f"x-goog-signature: {R}"),
        ("a line with Bearer abc of me", f"a line with Bearer {R} of me"),
    ],
)
def test_headers_are_redacted(line, shown):
    assert redact(line) == shown


@pytest.mark.parametrize(
    "name",
    ["api_key", "api-key", "key", "token", "access_token", "auth", "sig", "secret", "password",
     "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Security-Token"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["sk-1", "123456", "AKIA%2F20260101%2Fs3"])
def test_parameters_of_a_url_are_redacted(name, value):
    for before in ("?", "?a=b&"):
        line = f'127.0.0.1:5 - "GET /v1/models{before}{name}=%s&c=d HTTP/1.1" 200'
        assert redact(line % value) == line % R


@pytest.mark.parametrize(
    "line",
    [
        "PATH=/usr/bin",
        "eos_token = 2, tokens: 512, KEYBOARD=1",
        "tokens: 5, num_tokens=5, keep_alive=5m, SHALE_KEEP_ALIVE=5m, monkey=banana",
        "eos_token: '</s>', tokenizer.ggml.bos_token_id: 1, tokenizer: spm, TOKENIZERS_PARALLELISM=false",
        "attention.key_length: 64, key=(1, 8, 64), token 5 is 1.5 ms",
        'auth=none {"token":null,"max_tokens":5}',
        "author: me, :authority: h, design=3, signal: SIGKILL (Killed)",
        "KeyError: 'blk.3.attn_k.weight'",
        "if key == 'x': auth::check(x)",
        '"GET /api/tags?n=1&max_tokens=5 HTTP/1.1"',
    ],
)
def test_what_is_harmless_stays(line):
    assert redact(line) == line


@pytest.mark.parametrize("piece", ["key=", 'key="', "key='\\", "key=[ ", "key=a,", "a.-", "a", "k: ", "token "])
def test_long_lines_are_redacted_in_no_time(piece):
    times = []
    for _ in range(3):
        begin = time.thread_time()
        redact(piece * (16_384 // len(piece)) + " key")
        times.append(time.thread_time() - begin)
    assert min(times) < 0.5
