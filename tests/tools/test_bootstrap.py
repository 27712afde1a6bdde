"""tools/bootstrap.sh says what a machine lacks, all of it at once, before it makes anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")


def script(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def run(root: Path, venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "CXX")}
    return subprocess.run(
        ["/bin/sh", str(root / "tools" / "bootstrap.sh"), str(venv)],
        env=clean | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_nothing_is_there(repository_root: Path, tmp_path: Path) -> None:
    done = run(repository_root, tmp_path / "venv", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "Python >= 3.11. Found: none" in done.stderr
    assert "a C++ compiler (looked for c++, g++, clang++). Debian, Ubuntu: apt install g++" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_old_python_is_named_with_its_version(repository_root: Path, tmp_path: Path) -> None:
    old = script(tmp_path, "python3", 'case "$2" in *version_info*) exit 1;; *) echo 3.9.2;; esac')
    done = run(repository_root, tmp_path / "venv", PATH=str(tmp_path))
    assert done.returncode == 1
    assert f"Found: {old} (3.9.2)" in done.stderr


def test_debian_packages_of_a_bare_python_are_named(repository_root: Path, tmp_path: Path) -> None:
    body = 'case "$2" in *ensurepip*|*Python.h*) exit 1;; *"%d.%d"*) echo 3.12;; *) exit 0;; esac'
    python = script(tmp_path, "python3", body)
    compiler = script(tmp_path, "c++", "exit 0")
    done = run(repository_root, tmp_path / "venv", PYTHON=str(python), CXX=str(compiler))
    assert done.returncode == 1
    assert "apt install python3.12-venv" in done.stderr
    assert "apt install python3.12-dev" in done.stderr
    assert "compiler" not in done.stderr


def test_an_old_compiler_is_named(repository_root: Path, tmp_path: Path) -> None:
    compiler = script(tmp_path, "c++", "exit 1")
    done = run(repository_root, tmp_path / "venv", PYTHON=sys.executable, CXX=str(compiler))
    assert done.returncode == 1
    assert f"C++20 in {compiler}" in done.stderr
