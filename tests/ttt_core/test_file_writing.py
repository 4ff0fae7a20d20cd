"""Files are written whole or not at all, and an error names the file and the remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from autottt.ttt_core.errors import FileError
from autottt.ttt_core.file_writing import replacing, replacing_together, write_whole
from autottt.ttt_core.lora import tensor_files


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 250)
    write_whole(file, "old")
    with replacing(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_links_permissions_and_devices_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    write_whole(link, "new")
    assert (link.is_symlink(), file.read_text(), file.stat().st_mode & 0o777) == (True, "new", 0o600)
    write_whole(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(FileError, match=r"file cannot be written \(No space left on device\): free space on its"):
            write_whole(file, "new")
    with pytest.raises(FileError, match=r"none.file cannot be written \(No such file or directory\): make it"):
        write_whole(tmp_path / "none" / "file", "new", "make it")
    with pytest.raises(UnicodeError):
        write_whole(file, "half \ud800")
    with pytest.raises(FileError, match="first"), replacing(file):
        raise FileError("first")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_tensors_that_a_full_disk_cannot_take_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tensors: object, file: Path, metadata: object) -> None:
        file.write_text("a part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", fails)
    with pytest.raises(FileError, match=r"a\.safetensors cannot be written \(.*No space left.*\): free space"):
        tensor_files.save_tensors({}, tmp_path / "a.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_files_of_a_folder_are_replaced_when_all_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "folder"
    with replacing_together(folder) as partial:
        (partial / "a").write_text("old")
    (folder / "a").chmod(0o600)
    (folder / "b").write_text("stays")

    def texts() -> dict[str, str]:
        return {file.name: file.read_text() for file in folder.iterdir()}

    def on_a_full_disk() -> None:
        with replacing_together(folder, "make room") as partial:
            write_whole(partial / "a", "new")
            with replacing(partial / "b"):
                full()

    with pytest.raises(FileError, match=r"folder cannot be written \(No space left on device\): make room"):
        on_a_full_disk()
    with pytest.raises(FileError, match="first"), replacing_together(folder):
        raise FileError("first")
    assert texts() == {"a": "old", "b": "stays"}
    with replacing_together(folder) as partial:
        write_whole(partial / "a", "new")
    assert texts() == {"a": "new", "b": "stays"}
    assert (folder / "a").stat().st_mode & 0o777 == 0o600
