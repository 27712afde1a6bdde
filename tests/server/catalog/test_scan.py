"""Every GGUF file below the directory is a model, under the name of its path, as the disk has it now."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.catalog import Catalog
from server.errors import InvalidRequestError

WriteModel = Callable[..., Path]


def names(models: Path) -> set[str]:
    return {entry.name for entry in Catalog(models).entries()}


def test_a_name_is_the_path_below_the_directory(models: Path, write_model: WriteModel) -> None:
    write_model("a.gguf")
    write_model("dir/sub/b c.GGUF")
    assert names(models) == {"a", "dir/sub/b c"}


def test_a_missing_directory_has_no_models(tmp_path: Path) -> None:
    assert Catalog(tmp_path / "nothing").entries() == []


def test_case_and_the_default_tag_do_not_matter(models: Path, write_model: WriteModel) -> None:
    path = write_model("Dir/Name.gguf")
    for name in ("Dir/Name", "dir/name", "DIR/NAME:latest"):
        entry = Catalog(models).find(name)
        assert entry is not None
        assert entry.path == path


def test_other_tags_are_other_models(models: Path, write_model: WriteModel) -> None:
    write_model("a.gguf")
    write_model("a:8b.gguf")
    catalog = Catalog(models)
    assert catalog.find("a:7b") is None
    assert catalog.find("a:8b") is not None


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/passwd", "a//b", "./a", "a\\b", "a\0b", "a\nb", "x" * 600])
def test_what_can_be_no_name_is_refused(models: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^invalid model name$"):
        Catalog(models).find(name)


def test_a_file_that_appears_is_served_at_once(models: Path, write_model: WriteModel) -> None:
    catalog = Catalog(models)
    assert catalog.find("late") is None
    write_model("late.gguf")
    assert catalog.find("late") is not None


def test_a_file_that_goes_is_gone(models: Path, write_model: WriteModel) -> None:
    path = write_model("a.gguf")
    catalog = Catalog(models)
    assert catalog.find("a") is not None
    path.unlink()
    assert catalog.find("a") is None


def test_a_file_that_changes_is_read_again(models: Path, write_model: WriteModel) -> None:
    write_model("a.gguf", value=1.0)
    catalog = Catalog(models)
    before = catalog.find("a")
    path = write_model("a.gguf", value=2.0)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    after = catalog.find("a")
    assert before is not None
    assert after is not None
    assert before.digest != after.digest


def test_a_copy_has_the_same_digest(models: Path, write_model: WriteModel) -> None:
    shutil.copy(write_model("a.gguf"), models / "b.gguf")
    first, second = Catalog(models).entries()
    assert first.name != second.name
    assert first.digest == second.digest


def test_a_file_that_cannot_be_read_is_logged_once(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    (models / "bad.gguf").write_bytes(b"no GGUF at all")
    catalog = Catalog(models)
    with caplog.at_level(logging.WARNING):
        assert catalog.entries() == []
        assert catalog.entries() == []
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["not served"]


def test_a_file_that_is_still_being_copied_is_served_when_it_is_whole(models: Path, write_model: WriteModel) -> None:
    whole = write_model("a.gguf").read_bytes()
    part = models / "b.gguf"
    part.write_bytes(whole[:-100])
    catalog = Catalog(models)
    assert {entry.name for entry in catalog.entries()} == {"a"}
    part.write_bytes(whole)
    assert {entry.name for entry in catalog.entries()} == {"a", "b"}


def test_projectors_and_hidden_files_are_no_models(models: Path, write_model: WriteModel) -> None:
    write_model("mmproj.gguf", architecture="clip")
    write_model("lora.gguf", general__type="adapter")
    write_model(".hidden.gguf")
    write_model(".git/x.gguf")
    assert names(models) == set()


def test_links_are_followed_and_circles_end(models: Path, write_model: WriteModel, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_model("a.gguf").rename(tmp_path / "elsewhere" / "x.gguf")
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    (models / "circle").symlink_to(models)
    assert "linked/x" in names(models)


def test_a_split_set_is_one_model(shared: Path, models: Path) -> None:
    shards = sorted((shared / "oracle" / "models").glob("llama-split-F16-*.gguf"))
    for shard in shards:
        shutil.copy(shard, models)
    (entry,) = Catalog(models).entries()
    assert entry.name == "llama-split-F16"
    assert entry.size_bytes == sum(shard.stat().st_size for shard in shards)


def test_a_set_that_lacks_a_file_is_not_served_until_it_comes(shared: Path, models: Path) -> None:
    *first, last = sorted((shared / "oracle" / "models").glob("llama-split-F16-*.gguf"))
    for shard in first:
        shutil.copy(shard, models)
    catalog = Catalog(models)
    assert catalog.entries() == []
    shutil.copy(last, models)
    assert len(catalog.entries()) == 1
