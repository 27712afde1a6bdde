"""The wheel holds exactly what it should, and the repository names nothing of the machine it was made on."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = {"server", "scheduler", "runner"}
# Folders of a machine that a path in this repository must not name; /tmp and the like are fine.
PRIVATE_PATHS = re.compile(rb"(?<![\w./-])/(?:work|opt|root|home|mnt)/(?!shale\b)\w+")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".txt", ".cpp", ".h", ".cu", ".cmake", ".json", ""}


@pytest.fixture(scope="session")
def project(repository_root: Path) -> dict[str, object]:
    return dict(tomllib.loads((repository_root / "pyproject.toml").read_text("utf-8"))["project"])


@pytest.fixture(scope="session")
def wheel(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The project's wheel. It is linked from the objects of the installation that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    command += ["--wheel-dir", str(folder), str(repository_root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_top_level_is_the_three_packages(wheel: zipfile.ZipFile, project: dict[str, object]) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == PACKAGES | {f"shale-{project['version']}.dist-info"}


def test_every_module_of_the_checkout_is_in_it(wheel: zipfile.ZipFile, repository_root: Path) -> None:
    found = {
        path.relative_to(repository_root).as_posix() for p in PACKAGES for path in (repository_root / p).rglob("*.py")
    }
    assert found == {name for name in wheel.namelist() if name.endswith(".py")}


def test_package_data_is_in_it(wheel: zipfile.ZipFile, repository_root: Path) -> None:
    kinds = (".json", ".csv", ".txt", ".cu", ".cuh", ".pyi", ".typed")
    data = {
        path.relative_to(repository_root).as_posix()
        for package in PACKAGES
        for path in (repository_root / package).rglob("*")
        if path.suffix in kinds and "csrc/cpu" not in path.as_posix()
    }
    assert data <= set(wheel.namelist())


def test_one_compiled_module_and_no_cpp_source_is_in_it(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    (module,) = (name for name in names if name.endswith((".so", ".pyd")))
    assert module.startswith("runner/kernels/_cpu.")
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cmake", ".clang-format"))]


def test_shale_is_the_only_console_script(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    lines = wheel.read(entry_points).decode().split("\n")
    assert [line for line in lines if line] == ["[console_scripts]", "shale = server.__main__:main"]


def test_the_command_says_the_version_of_pyproject(project: dict[str, object], repository_root: Path) -> None:
    command = [sys.executable, "-m", "server", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository_root)
    assert str(project["version"]) in done.stdout


def repository_files(root: Path) -> list[Path]:
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [root / name for name in done.stdout.decode().split("\0") if name and (root / name).is_file()]


def test_no_file_names_a_path_of_the_machine_it_was_written_on(repository_root: Path) -> None:
    guilty = {
        path.relative_to(repository_root).as_posix(): match.group().decode()
        for path in repository_files(repository_root)
        if path.suffix in TEXT and (match := PRIVATE_PATHS.search(path.read_bytes()))
    }
    assert not guilty


def test_no_file_is_larger_than_the_demo_model_may_be(repository_root: Path) -> None:
    large = [path.name for path in repository_files(repository_root) if path.stat().st_size > 8_000_000]
    assert not large
