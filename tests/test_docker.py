"""The container files keep their promises: two stages, no root, a health check, pinned bases, sources that exist."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings, rows


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile with its arguments on one line."""

    name: str
    arguments: str


@pytest.fixture(scope="module")
def stages(repository_root: Path) -> list[list[Instruction]]:
    """The instructions of docker/Dockerfile, one list per FROM."""
    text = (repository_root / "docker" / "Dockerfile").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    found: list[list[Instruction]] = []
    for line in filter(None, joined.splitlines()):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append(Instruction(name, arguments.strip()))
    return found


@pytest.fixture(scope="module")
def services(repository_root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((repository_root / "docker" / "compose.yaml").read_text("utf-8"))["services"])


def of(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.arguments for instruction in stage if instruction.name == name]


def test_the_compiler_stays_in_the_first_stage(stages: list[list[Instruction]]) -> None:
    build, runtime = stages
    assert any("g++" in arguments for arguments in of(build, "RUN"))
    assert not any("apt-get" in arguments for arguments in of(runtime, "RUN"))


def test_both_stages_have_the_same_slim_base_with_a_version(stages: list[list[Instruction]]) -> None:
    bases = {of(stage, "FROM")[0].split()[0] for stage in stages}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", bases.pop())


def test_the_server_does_not_run_as_root(stages: list[list[Instruction]]) -> None:
    runtime = stages[-1]
    names = [instruction.name for instruction in runtime]
    assert of(runtime, "USER") == ["10001"]
    assert "RUN" not in names[names.index("USER") :]


def test_the_health_check_asks_the_port_that_is_exposed(stages: list[list[Instruction]]) -> None:
    (check,), (port,) = of(stages[-1], "HEALTHCHECK"), of(stages[-1], "EXPOSE")
    command = json.loads(check.partition("CMD ")[2])
    assert f":{port}/api/version" in command[-1]
    compile(command[-1], "HEALTHCHECK", "exec")
    assert f"SHALE_HOST=0.0.0.0:{port}" in of(stages[-1], "ENV")[0]


def test_models_are_a_volume_that_the_server_reads(stages: list[list[Instruction]]) -> None:
    (volume,) = of(stages[-1], "VOLUME")
    assert f"SHALE_MODELS={volume}" in of(stages[-1], "ENV")[0]


def test_it_starts_the_console_script_without_a_shell(stages: list[list[Instruction]]) -> None:
    assert json.loads(of(stages[-1], "ENTRYPOINT")[0]) + json.loads(of(stages[-1], "CMD")[0]) == ["shale", "serve"]


def test_every_copied_source_exists_and_reaches_the_builder(
    stages: list[list[Instruction]], repository_root: Path
) -> None:
    ignore = (repository_root / ".dockerignore").read_text("utf-8").split()
    allowed = [pattern[1:] for pattern in ignore if pattern.startswith("!")]
    for arguments in (arguments for stage in stages for arguments in of(stage, "COPY")):
        for source in [word for word in arguments.split() if not word.startswith("--")][:-1]:
            assert (repository_root / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), f"{source} is in .dockerignore"


def test_the_cpu_is_the_default_and_the_gpu_a_profile(services: dict[str, Any]) -> None:
    assert "profiles" not in services["shale"]
    assert services["shale-gpu"]["profiles"] == ["gpu"]
    assert services["shale-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_port_is_published_on_loopback_only(services: dict[str, Any]) -> None:
    assert services["shale"]["ports"] == ["127.0.0.1:11434:11434"]


def test_services_build_from_files_that_exist(services: dict[str, Any], repository_root: Path) -> None:
    for service in services.values():
        context = (repository_root / "docker" / service["build"]["context"]).resolve()
        assert context == repository_root
        assert (context / service["build"]["dockerfile"]).is_file()


def test_models_are_kept_in_a_volume(services: dict[str, Any], repository_root: Path) -> None:
    compose = yaml.safe_load((repository_root / "docker" / "compose.yaml").read_text("utf-8"))
    (volume,) = services["shale"]["volumes"]
    assert volume.split(":")[0] in compose["volumes"]
    assert volume.split(":")[1] == "/models"


def test_compose_passes_on_every_setting_but_what_the_image_sets(services: dict[str, Any]) -> None:
    given = services["shale"]["environment"]
    assert {*given, "SHALE_HOST", "SHALE_MODELS"} == {row.names[0] for row in rows().values()}
    assert all(value.startswith(f"${{{name}:-") for name, value in given.items())


def test_what_compose_passes_on_when_nothing_is_set_are_the_defaults(services: dict[str, Any]) -> None:
    given = {name: value.removeprefix(f"${{{name}:-").removesuffix("}")
             for name, value in services["shale"]["environment"].items()}  # fmt: skip
    assert Settings.from_environment(given) == Settings()
