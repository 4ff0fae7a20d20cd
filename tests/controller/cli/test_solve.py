"""`autottt solve` on a terminal and in a pipe, its lock, and the log that --trace writes."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import UnixFileLock

from autottt.controller.cli.locks import exclusive
from autottt.policies.serving_logs import read_log
from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.learner import Learner
from tests.controller.cli.commands import call, on_a_terminal, piped, program, task, tasks_file

GRID = {
    "id": "mirror", "kind": "grid", "demonstrations": [{"input": [[1, 2]], "output": [[2, 1]]}] * 2,
    "queries": [{"input": [[3, 4]], "output": [[4, 3]]}],
}  # fmt: skip


def plain(printed: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed)


def test_a_terminal_shows_tasks_answers_and_reasons(tmp_path, model, forkserver):
    file = tasks_file(tmp_path, GRID)
    printed = on_a_terminal(forkserver, ["solve", file, "--model", model, "--strategy", "in_context"])
    text = plain(printed)
    assert "1/1  mirror (grid)" in text
    assert "query" in text
    assert re.search(r"decision \w+: \w+", " ".join(text.split()))
    assert '{"id"' not in text
    assert re.search(r"\x1b\[[0-9;]*48;[0-9;]*m3 ", printed), "cells have a background"
    shown = [line for line in text.replace("\r", "\n").splitlines() if "solving" not in line]
    assert max(len(line.rstrip()) for line in shown) <= 60


@pytest.mark.parametrize("option", ["--json", "--trace"])
def test_a_terminal_gets_json_lines_where_they_are_wanted(tmp_path, model, option, forkserver):
    file = tasks_file(tmp_path, task("a"))
    text = plain(on_a_terminal(forkserver, ["solve", file, "--model", model, "--strategy", "in_context", option]))
    (line,) = [line for line in re.split(r"[\r\n]+", text) if line.startswith("{")]
    assert json.loads(line)["id"] == "a"


def test_a_pipe_gets_one_line_a_task_however_long_it_is(tmp_path, model, forkserver):
    file = tasks_file(tmp_path, task("a" * 500), task("b"))
    words = ["solve", file, "--model", model, "--strategy", "in_context"]
    code, out, err = piped(forkserver, words, COLUMNS="40")
    assert (code, err) == (0, "")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["a" * 500, "b"]


def test_two_runs_do_not_write_one_file(tmp_path, model, forkserver):
    file, out = tasks_file(tmp_path, task("a")), tmp_path / "out.jsonl"
    words = ["--model", model, "--strategy", "in_context", "--out", str(out)]
    given, giver = os.pipe()
    with program(forkserver, ["solve", "-", *words], (given, 1, 2)) as holder, open(giver, "wb") as tasks:
        os.close(given)
        tasks.write(json.dumps(task("first")).encode() + b"\n")
        tasks.flush()
        while holder.is_alive() and not (out.exists() and out.read_text().endswith("\n")):
            time.sleep(0.05)  # until the first answer shows that it holds the lock
        code, printed, err = call("solve", file, *words, "--resume")
        assert (code, printed) == (2, "")
        assert "another autottt process is writing it" in err
        assert err.count("\n") == 1
        tasks.close()
        holder.join(120)
    assert holder.exitcode == 0
    assert call("solve", file, *words, "--resume")[0] == 0, "the lock ends with its holder"
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["first", "a"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "TASKS", "--json", "place"],
        ["train-policy", "STORE", "--out", "place"],
        ["retrain", "LOG", "--store", "new", "--out", "place"],
    ],
)
def test_other_outputs_are_locked_as_well(tmp_path, model, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    tasks, store = tasks_file(tmp_path, task("a")), "store"
    if words[0] != "evaluate":
        options = ["--store", store, "--strategies", "zero_shot", "--model", model]
        assert call("collect", tasks, *options)[0] == 0
        assert call("solve", tasks, "--model", model, "--trace", "--out", "log.jsonl")[0] == 0
    places = {"TASKS": tasks, "STORE": store, "LOG": "log.jsonl"}
    target = Path("place.rows.jsonl" if words[0] == "evaluate" else "place")
    with exclusive(target):
        code, _, err = call(*(places.get(word, word) for word in words))
    assert (code, f"{target}: another autottt process is writing it" in err) == (2, True)


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "file"):
        raise KeyError
    for is_option, end in ((True, "name another place"), (False, "wait until it has ended")):
        with (
            exclusive(tmp_path / "file"),
            pytest.raises(TaskError, match=f"another autottt process.*{end}$"),
            exclusive(tmp_path / "file", is_option),
        ):
            pass


def refused(path, monkeypatch, *folders):
    """The error of a lock on a path where no file can be made in some folders."""
    acquire = UnixFileLock._acquire

    def fails(self):
        if Path(self.lock_file).parent in folders:
            raise PermissionError(13, "Permission denied", self.lock_file)
        acquire(self)

    with monkeypatch.context() as patch:
        patch.setattr(UnixFileLock, "_acquire", fails)
        with exclusive(path), pytest.raises(TaskError) as raised, exclusive(path):
            pass
    return str(raised.value)


def test_a_file_or_folder_is_locked_where_nothing_can_be_written_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "another autottt process" in refused(folder, monkeypatch, tmp_path)
    assert (folder / ".autottt.lock").exists()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert "another autottt process" in refused(tmp_path / "file", monkeypatch, tmp_path)
    assert len(list(folder.glob("autottt-*.lock"))) == 1
    for name in ("n" * 250, "\u00fc" * 125):
        with exclusive(tmp_path / name), pytest.raises(TaskError, match="another"), exclusive(tmp_path / name):
            pass
    with pytest.raises(TaskError, match=r"file: cannot be locked .*\.file\.lock: Permission denied.*writable"):
        refused(tmp_path / "file", monkeypatch, tmp_path, folder)


def test_a_full_disk_is_an_error_with_the_file_and_the_remedy(tmp_path, model, monkeypatch):
    file, out = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "out.jsonl"
    words = ["solve", file, "--out", str(out), "--strategy", "in_context", "--model", model]
    real, writes = Path.open, []

    class Full(io.FileIO):
        """Takes the first answer, and a part of the second."""

        def write(self, data):
            writes.append(len(data))
            if len(writes) > 2:
                raise OSError(28, "No space left on device")
            return super().write(bytes(data)[:40] if len(writes) == 2 else data)

    def opened(path, mode="r", *arguments, **options):
        if path == out and mode == "a":
            return io.TextIOWrapper(io.BufferedWriter(Full(path, "a")), encoding="utf-8")
        return real(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        code, _, err = call(*words)
    assert code == 2
    assert f"{out} cannot be written (No space left on device): free space" in err
    assert "--resume continues after them" in err
    code, _, err = call(*words, "--resume")
    assert (code, "dropping an incomplete last line" in err) == (0, True)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b"]


def test_a_task_that_was_corrected_is_answered_when_the_run_is_resumed(tmp_path, model):
    out = tmp_path / "out.jsonl"
    words = ["--model", model, "--strategy", "in_context", "--out", str(out)]
    assert call("solve", tasks_file(tmp_path, task("a", kind="nonsense"), task("b")), *words)[0] == 1
    assert call("solve", tasks_file(tmp_path, task("a", kind="nonsense"), task("b")), *words, "--resume")[0] == 1
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b"], "no line is repeated"
    assert call("solve", tasks_file(tmp_path, task("a"), task("b")), *words, "--resume")[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["status"] == "refused") for row in rows] == [("a", True), ("b", False), ("a", False)]


def test_a_trace_has_what_the_answer_depends_on(tmp_path, model):
    file = tasks_file(tmp_path, "{", task("a"))
    out = tmp_path / "log.jsonl"
    code, _, _ = call("solve", file, "--model", model, "--trace", "--seed", "5", "--out", str(out), "--dtype", "fp32")
    row = json.loads(out.read_text().splitlines()[1])
    run = row["run"]
    assert code == 1
    assert row["seed"] == 5
    assert datetime.fromisoformat(run["time"]).utcoffset() is not None
    assert run["model"] == {
        "name": model, "hash": Learner.load(model, dtype="fp32").base_hash, "device": "cpu", "dtype": "float32",
        "prompt_format": "compact",
    }  # fmt: skip
    assert run["policy"]["name"]
    assert re.fullmatch(r"[0-9a-f]{16}", run["policy"]["digest"])
    assert run["versions"]["torch"] == version("torch")
    assert run["versions"]["python"] == sys.version.split()[0]
    assert not {"query", "demonstrations", "instruction"} & row["task"].keys()
    assert len(read_log([out])) == 1, "a refused line of a log is skipped"


def test_the_policy_of_a_trace_is_that_of_the_run(tmp_path, model):
    file, digests = tasks_file(tmp_path, task("a")), set()
    for strategy in ("in_context", "zero_shot"):
        _, out, _ = call("solve", file, "--model", model, "--trace", "--strategy", strategy)
        digests.add(json.loads(out)["run"]["policy"]["digest"])
    assert len(digests) == 2


def test_the_content_of_a_task_is_logged_only_when_it_is_wanted(tmp_path, model):
    file = tasks_file(tmp_path, task("a"))
    _, out, _ = call("solve", file, "--model", model, "--strategy", "in_context", "--trace-content")
    row = json.loads(out)
    assert row["task"]["query"] == [5, 6]
    assert row["task"]["demonstrations"][0] == {"input": [1, 2], "output": [2, 1]}
    assert "instruction" in row["task"]
    assert "features" in row
