"""The commands on folders of cached adapters."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import typer

from autottt.controller.cli import main
from autottt.controller.tracing.store import local_store
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


def test_list_shows_the_store_of_traces(folder: Path, tmp_path: Path):
    store = local_store()
    code, out, _ = call("cache", "list", str(folder))
    assert code == 0
    assert out.endswith(f"{store.file}: 1 traces, {store.size()[1]} bytes\n")
    assert "1 adapters" in out
    code, out, _ = call("cache", "list")  # no folder is set
    assert (code, out) == (0, f"{store.file}: 1 traces, {store.size()[1]} bytes\n")
    assert "there are no" not in call("cache", "list", "--trace-store", str(tmp_path / "other.sqlite"))[1]


@pytest.mark.parametrize(("answer", "remaining"), [("n\n", 1), ("y\n", 0)])
def test_clear_deletes_traces_and_no_adapters(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, remaining: int
):
    before, store = sorted(folder.iterdir()), local_store()
    monkeypatch.setenv("AUTOTTT_ADAPTERS", str(folder))
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    code, out, err = call("cache", "clear", "--traces")
    assert code == remaining
    assert ("1 traces were deleted" in out) == (remaining == 0)
    assert store.size()[0] == remaining
    assert sorted(folder.iterdir()) == before
    assert "there are no traces" in call("cache", "clear", "--traces", "--trace-store", str(tmp_path / "x.sqlite"))[1]
    code, _, err = call("cache", "clear", str(folder), "--traces", "--yes")
    assert code != 0
    assert "deletes traces and no adapters" in err
    assert store.size()[0] == remaining
