"""Recorded hashes of files: an unchanged file is read once, and no changed one keeps its old hash."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autottt.ttt_core.model import file_hashes
from autottt.ttt_core.model.file_hashes import SUFFIX, recorded_sha256, remove_stale_records


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_hashes, "SETTLED_NS", -1)
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "records"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rewrite(file: Path) -> None:
    file.write_bytes(b"two")


def replace_file(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"two")
    os.replace(other, file)


def test_an_unchanged_file_is_read_once(file: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded_sha256(file, records) == digest(b"one")
    link = file.with_name("link.gguf")
    link.symlink_to(file)
    monkeypatch.setattr(file_hashes, "sha256_of", lambda path: pytest.fail(f"{path} was read again"))
    assert recorded_sha256(file, records) == recorded_sha256(link, records) == digest(b"one")


@pytest.mark.parametrize("change", [rewrite, replace_file])
@pytest.mark.parametrize("same_date", [False, True])
def test_a_changed_file_is_read_again(
    file: Path, records: Path, change: Callable[[Path], None], same_date: bool
) -> None:
    recorded_sha256(file, records)
    before = file.stat()
    time.sleep(0.05)  # more than the resolution of the file system's clock
    change(file)
    if same_date:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert recorded_sha256(file, records) == digest(b"two")


def test_a_file_that_has_just_changed_is_not_recorded(
    file: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED_NS", 10**12)
    assert recorded_sha256(file, records) == digest(b"one")
    assert not records.exists()


def test_a_file_that_changes_while_it_is_read_is_not_recorded(
    file: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        replace_file(path)
        return digest(b"one")

    monkeypatch.setattr(file_hashes, "sha256_of", read)
    recorded_sha256(file, records)
    assert not records.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"facts": 1}'])
def test_a_damaged_record_is_ignored(file: Path, records: Path, content: str) -> None:
    recorded_sha256(file, records)
    (record,) = records.glob(f"*{SUFFIX}")
    record.write_text(content)
    assert recorded_sha256(file, records) == digest(b"one")
    assert record.read_text() != content


def test_records_that_cannot_be_written_are_no_error(file: Path, records: Path) -> None:
    records.write_text("a file, not a folder")
    assert recorded_sha256(file, records) == digest(b"one")


def test_records_of_files_that_are_gone_are_removed(file: Path, records: Path) -> None:
    recorded_sha256(file, records)
    (records / f"damaged{SUFFIX}").write_text("{")
    remove_stale_records(records)
    assert len(list(records.iterdir())) == 1
    file.unlink()
    remove_stale_records(records)
    assert list(records.iterdir()) == []
