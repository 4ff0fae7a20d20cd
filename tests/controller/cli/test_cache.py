"""The commands on folders of cached adapters."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.controller.cli.commands import call, task, tasks_file


@pytest.fixture
def folder(tmp_path: Path, model: str) -> Path:
    """A folder with one adapter that `solve` trained, and a file that is not of the cache."""
    adapters = tmp_path / "adapters"
    tasks = tasks_file(tmp_path, task("a"))
    code, _, err = call("solve", tasks, "--model", model, "--strategy", "ttt_in_context", "--adapters", str(adapters))
    assert code == 0, err
    (adapters / "model.safetensors").write_bytes(b"not of the cache")
    return adapters


def test_list_check_and_clear(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (adapter,) = [f for f in folder.glob("*.safetensors") if f.name != "model.safetensors"]
    code, out, _ = call("cache", "list", str(folder))
    assert code == 0
    assert adapter.name in out
    assert f"{adapter.stat().st_size} bytes" in out
    assert "model.saf" not in out
    assert call("cache", "check", str(folder))[0] == 0

    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    monkeypatch.setenv("AUTOTTT_ADAPTERS", str(folder))  # the shared setting names the folder
    code, out, err = call("cache", "check")
    assert code == 1
    assert adapter.name in err
    assert "1 were damaged" in out
    assert not adapter.exists()
    assert adapter.with_name(f"{adapter.name}.damaged").read_bytes() == data
    assert call("cache", "check")[0] == 0

    assert call("cache", "clear", "--yes")[0] == 0
    assert [f.name for f in folder.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(("answer", "files"), [("", 2), ("n\n", 2), ("y\n", 1)])
def test_clear_asks(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, files: int):
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    code, _, err = call("cache", "clear", str(folder))
    assert len(list(folder.iterdir())) == files
    assert code == (0 if files == 1 else 1)
    assert ("no file was deleted" in err) == (files == 2)


def test_a_folder_is_needed(tmp_path: Path):
    assert "AUTOTTT_ADAPTERS" in call("cache", "list")[2]
    assert "no such folder" in call("cache", "check", str(tmp_path / "none"))[2]
