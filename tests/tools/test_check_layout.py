"""A file of layout cases is checked case by case: what cannot be checked is no success, and does not stop the rest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tools.check_layout import main

GOOD: dict[str, Any] = {
    "gpus": [{"id": "g", "library": "sim", "integrated": False, "free": 1000, "graph": 0, "reported": True}],
    "system": {"free": 1000, "swap": 0},
    "minimum_memory": 0,
    "layers": [10, 10, 0],
    "cpu_graph": 0,
    "input_weights": 0,
    "num_gpu": -1,
    "require_full": False,
    "backoff": 0.0,
    "overhead": 0,
    "spread": False,
    "expected": {"layout": [{"id": "g", "library": "sim", "layers": [0, 1, 2]}]},
}


def check(tmp_path: Path, cases: object) -> int:
    path = tmp_path / "cases.json.gz"
    path.write_bytes(gzip.compress(json.dumps(cases).encode()))
    return main([str(path)])


def test_all_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, [GOOD, GOOD]) == 0
    assert capsys.readouterr().out == "2 of 2\n"


def test_nothing_to_check_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, []) == 1
    assert capsys.readouterr().out == "0 of 0\n"


def test_a_wrong_answer_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {**GOOD, "expected": {"error": "require_full"}}
    assert check(tmp_path, [wrong, GOOD]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("case 0: expected {'error': 'require_full'}, found {'layout': ")
    assert last == "1 of 2"


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ({}, "KeyError"),
        (None, "TypeError"),
        ("text", "TypeError"),
        ({**GOOD, "gpus": 3}, "TypeError"),
        ({**GOOD, "gpus": [{}]}, "KeyError"),
        ({**GOOD, "layers": ["ten"]}, "ValidationError"),
        ({**GOOD, "layers": []}, ""),
        ({**GOOD, "num_gpu": "all"}, "TypeError"),
        ({**GOOD, "backoff": 1e300}, ""),
        ({key: value for key, value in GOOD.items() if key != "expected"}, "KeyError"),
    ],
)
def test_a_malformed_case_is_told_and_the_others_are_counted(
    case: object, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, [GOOD, case, GOOD]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"case 1: malformed: {kind}" if kind else "case 1: ")
    assert last == "2 of 3"


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\x1f\x8b", gzip.compress(b"[]")[:-4], b"\xff"])
@pytest.mark.parametrize("name", ["cases.json", "cases.json.gz"])
def test_a_file_that_is_no_list_of_cases(
    content: bytes, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    assert main([str(path)]) == 1
    path.write_bytes(content)
    assert main([str(path)]) == 1
    assert capsys.readouterr().out.count(f"{path} cannot be read: ") == 2
