"""The documents agree with the code and with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import server.engine_metrics
import server.gauges
import server.metrics
from server.settings import Settings, rows

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/ARCHITECTURE.md",
    "docs/API.md",
    "docker/README.md",
    "demo/README.md",
)


def test_the_settings_table_has_every_setting(repository_root: Path) -> None:
    text = (repository_root / "README.md").read_text("utf-8")
    in_table = set(re.findall(r"^\| `(SHALE_\w+)` \|", text, re.MULTILINE))
    assert in_table == {row.names[0] for row in rows().values()}


def test_the_defaults_in_the_table_are_the_defaults(repository_root: Path) -> None:
    text = (repository_root / "README.md").read_text("utf-8")
    default = Settings()
    assert f"| `SHALE_HOST` | `{default.address.host}:{default.address.port}` |" in text
    assert f"| `SHALE_MAX_QUEUE` | `{default.max_queue}` |" in text
    assert f"| `SHALE_NUM_PARALLEL` | `{default.num_parallel or 'auto'}` |" in text
    assert f"| `SHALE_KERNELS` | `{default.kernels}` |" in text
    assert default.keep_alive_s == default.load_timeout_s == 300


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(document: str, repository_root: Path) -> None:
    path = repository_root / document
    for target in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{document} links to {target}"


def test_every_make_target_in_the_documents_exists(repository_root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository_root / "Makefile").read_text("utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        text = (repository_root / document).read_text("utf-8")
        assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets, document


def test_every_metric_in_the_documents_exists(repository_root: Path) -> None:
    told = f"{server.metrics.__doc__} {server.gauges.__doc__} {server.engine_metrics.__doc__}"
    known = set(re.findall(r"shale_\w+", told))
    for document in DOCUMENTS:
        text = (repository_root / document).read_text("utf-8")
        found = {name.removesuffix("_bucket") for name in re.findall(r"\bshale_[a-z_]+_[a-z_]+\b", text)}
        assert found <= known, document
