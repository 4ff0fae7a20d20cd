"""The commands on folders of cached adapters."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import typer

from autottt.controller.cli import main
from autottt.ttt_core.lora.adapter import FORMAT
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
    assert "ttt_in_context  list  model " in out
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


def test_files_of_another_format_and_of_running_writers_stay(folder: Path):
    (adapter,) = [f for f in folder.glob("*.safetensors") if f.name != "model.safetensors"]
    older = adapter.rename(adapter.with_name(adapter.name.replace(f"-v{FORMAT}", f"-v{FORMAT - 1}")))
    code, out, err = call("cache", "check", str(folder))
    assert code == 0
    assert "0 adapters are sound, 0 were damaged" in out
    assert "1 adapters are in the format of another version" in err
    assert older.exists()
    assert "another version" in call("cache", "list", str(folder))[1]

    running, killed = (folder / f".{older.name}.{number:08x}.partial" for number in range(2))
    for file in (running, killed):
        file.write_bytes(b"x")
    os.utime(killed, (0, 0))
    code, out, err = call("cache", "clear", str(folder), "--yes")
    assert code == 0
    assert "2 files were deleted" in out
    assert "1 files that another process may be writing stay" in err
    assert sorted(f.name for f in folder.iterdir()) == [running.name, "model.safetensors"]


def test_an_interrupted_question_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(*_: object, **__: object) -> None:
        raise typer.Abort

    monkeypatch.setattr(main, "app", interrupt)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted"


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
