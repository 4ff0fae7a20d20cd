"""The command line keeps traces by default, and `autottt trace` shows them."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import zlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autottt.controller.cli.main import app
from autottt.controller.cli.training import TraceSource
from autottt.controller.tracing.log_rows import DAMAGED
from autottt.controller.tracing.store import local_store
from autottt.ttt_core.errors import SettingsError, TraceError
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

RUNNER = CliRunner()
TASKS = [
    {"id": f"t{i}", "demonstrations": [{"input": [1, 2], "output": [2, 1]}, {"input": [3, 4], "output": [4, 3]}],
     "query": [5, i], "answer": [i, 5]}
    for i in range(2)
]  # fmt: skip


@pytest.fixture
def tasks(tmp_path) -> Path:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    return file


def run(*arguments: object, code: int = 0) -> str:
    """What a command prints: to its output, or where it fails to its errors."""
    result = RUNNER.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


@pytest.fixture
def solved(tasks, model) -> str:
    """The id of a run that trained, the newest of three."""
    run("solve", tasks, "--model", model, "--strategy", "in_context")
    out = run("solve", tasks, "--model", model, "--strategy", "ttt_in_context", "--limit", 1)
    assert json.loads(out)["status"]
    return local_store().summaries()[0].id


def test_the_command_line_records_by_default_and_off_records_nothing(tasks, model, monkeypatch):
    run("solve", tasks, "--model", model, "--strategy", "in_context", "--trace-store", "off")
    monkeypatch.setenv("AUTOTTT_TRACE", "off")
    run("solve", tasks, "--model", model, "--strategy", "in_context")
    assert not local_store().exists()
    run("solve", tasks, "--model", model, "--strategy", "in_context", "--trace-store", "local")
    assert len(local_store().summaries()) == len(TASKS)


def test_a_file_and_the_configuration_name_the_store(tasks, model, tmp_path, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text(f'trace = "{tmp_path}/mine.sqlite"')
    monkeypatch.setenv("AUTOTTT_CONFIG", str(config))
    run("solve", tasks, "--model", model, "--strategy", "in_context")
    assert (tmp_path / "mine.sqlite").exists()
    assert not local_store().exists()
    assert len(run("trace", "list", "--json").splitlines()) == len(TASKS)
    monkeypatch.setenv("AUTOTTT_TRACE", f"otlp,{tmp_path}/mine.sqlite,local")
    assert len(run("trace", "list", "--json").splitlines()) == len(TASKS), "of the first store that is named"
    monkeypatch.setenv("AUTOTTT_TRACE", "nowhere")
    out = run("trace", "list", code=2)
    assert "variable AUTOTTT_TRACE: expected off, local, otlp, otlp:URL, or a file" in out


def test_list_shows_and_filters_runs(solved):
    assert json.loads(run("trace", "list", "--json").splitlines()[0])["id"] == solved
    listed = run("trace", "list")
    assert solved in listed
    only = run("trace", "list", "--json", "--strategy", "in_context", "--limit", 5).splitlines()
    assert {json.loads(text)["strategy"] for text in only} == {"in_context"}
    assert run("trace", "list", "--slower-than", 1e6) == "no traces match\n"
    assert run("trace", "list", "--until", "2001-01-31") == "no traces match\n"
    assert solved in run("trace", "list", "--since", "2h")
    assert "expected a date" in run("trace", "list", "--since", "soon", code=2)


def test_show_has_path_candidates_timings_and_the_loss(solved):
    shown = run("trace", "show", solved)
    assert "__start__ -> measure -> decide -> ttt_in_context -> judge" in shown
    for text in ("candidate", "train", "stopped: finished", "verify", "features:"):
        assert text in shown
    assert "there is no trace zzz" in run("trace", "show", "zzz", code=2)


def test_explain_says_why_and_what_training_did(solved):
    text = run("trace", "explain", "last")
    assert "Decision 1: ttt_in_context, because always ttt_in_context (requested by the caller)." in text
    assert "2 training steps (stopped: finished), loss" in text
    assert "The weights are unchanged" in text


QUESTIONS = {
    "which strategy, and why": r"Decision 1: ttt_crossfit, because always ttt_crossfit",
    "what the alternatives promised": r"Candidate in_context \(not chosen\): by a rule of thumb, .* right at \d",
    "what it cost": r"Attempt ttt_crossfit: \d+\.\d+ s",
    "whether training helped on held-out demonstrations":
        r"held-out demonstrations right \d/\d before training, \d/\d after",
    "whether the weights came back": r"The weights are unchanged\. .*detached before the proof.* \d+ tensors",
    "what would have changed the decision": r"only another --strategy or --policy",
    "the prompt format": r"Prompt format compact",
    "the seed": r"seed 0",
    "the versions": r"Versions: python 3.*torch 2",
    "what was cached": r"From the cache: nothing",
    "where the time went": r"Seconds by stage: .*train \d",
}  # fmt: skip


def test_the_questions_of_a_reader_are_answered_by_show_and_explain(tmp_path, model):
    tasks = tmp_path / "more.jsonl"
    tasks.write_text(
        json.dumps({**TASKS[0], "demonstrations": [*TASKS[0]["demonstrations"], {"input": [7], "output": [7]}]})
    )
    run("solve", tasks, "--model", model, "--strategy", "ttt_crossfit")
    text = run("trace", "show", "last") + run("trace", "explain", "last")
    unanswered = [question for question, answer in QUESTIONS.items() if not re.search(answer, text)]
    assert unanswered == [], text


def test_diff_names_what_differs_and_says_when_nothing_does(solved):
    other = local_store().summaries()[-1].id
    assert run("trace", "diff", solved, solved) == "the runs are identical, except for times\n"
    text = run("trace", "diff", other, solved)
    assert "path: measure, decide, in_context, judge, revert -> measure, decide, ttt_in_context, " in text
    assert "decision 1: in_context -> ttt_in_context" in text


def test_stats_count_decisions_stages_and_adaptations(solved):
    statistics = json.loads(run("trace", "stats", "--json"))
    assert statistics["runs"] == 3
    assert {s["strategy"]: s["runs"] for s in statistics["strategies"]}["in_context"] >= 2
    assert statistics["accepted"] + statistics["rejected"] == 1
    assert statistics["stages"]["train"] > 0
    assert "3 runs" in run("trace", "stats")


def test_export_writes_json_lines_with_or_without_content(solved, tmp_path):
    file = tmp_path / "traces.jsonl"
    run("trace", "export", "--out", file)
    traces = [json.loads(text) for text in file.read_text().splitlines()]
    assert traces[0]["id"] == solved
    assert traces[0]["root"]["attributes"]["task"]["query"] in ([5, 0], [5, 1])
    (bare,) = map(json.loads, run("trace", "export", "last", "--no-content").splitlines())
    assert "query" not in bare["root"]["attributes"]["task"]
    assert "exists" in run("trace", "export", "--out", file, code=2)


def test_damaged_traces_are_counted_and_the_others_are_exported(solved, tmp_path):
    with sqlite3.connect(local_store().file) as connection:
        connection.execute("UPDATE bodies SET body = 'torn' WHERE key = 2")
    connection.close()
    file = tmp_path / "traces.jsonl"
    printed = run("trace", "export", "--out", file, code=1)
    assert len(file.read_text().splitlines()) == 2
    assert "is damaged" in printed
    assert "1 damaged traces were left out" in printed
    rows, unusable = TraceSource(traces="local").rows()
    assert (len(rows), unusable) == (2, {DAMAGED: 1})


def test_a_trace_of_damaged_structure_is_named_by_every_command(solved, tmp_path):
    with sqlite3.connect(local_store().file) as connection:
        (body,) = connection.execute(
            "SELECT body FROM bodies JOIN traces USING (key) WHERE id = ?", (solved,)
        ).fetchone()
        plain = json.loads(zlib.decompress(body))
        plain["root"]["children"] = 5
        body = zlib.compress(json.dumps(plain).encode())
        connection.execute(
            "UPDATE bodies SET body = ? WHERE key = (SELECT key FROM traces WHERE id = ?)", (body, solved)
        )
    connection.close()
    words = f"trace {solved} is damaged (ValueError: root.children: expected a list of objects; received 5)"
    for command in (["show"], ["explain"], ["open"], ["diff", solved], ["export"], ["replay"]):
        assert words in run("trace", *command, solved, code=2), command
    assert words in run("trace", "export", "--out", tmp_path / "traces.jsonl", code=1)
    assert len((tmp_path / "traces.jsonl").read_text().splitlines()) == 2


def test_a_trace_that_lacks_a_field_of_its_result_is_named(solved):
    store = local_store()
    with sqlite3.connect(store.file) as connection:
        (body,) = connection.execute(
            "SELECT body FROM bodies JOIN traces USING (key) WHERE id = ?", (solved,)
        ).fetchone()
        plain = json.loads(zlib.decompress(body))
        del plain["root"]["attributes"]["result"]["answer"]
        body = zlib.compress(json.dumps(plain).encode())
        connection.execute(
            "UPDATE bodies SET body = ? WHERE key = (SELECT key FROM traces WHERE id = ?)", (body, solved)
        )
    connection.close()
    assert f"trace {solved} is damaged (KeyError: 'answer')" in " ".join(
        run("trace", "explain", solved, code=2).split()
    )


def test_a_file_that_exists_or_cannot_be_written_is_left_as_it_is(solved, tasks, tmp_path, monkeypatch):
    before = tasks.read_text()
    for words in (("open", solved), ("export",)):
        assert f"{tasks} exists; name another file" in run("trace", *words, "--out", tasks, code=2)
    assert tasks.read_text() == before

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autottt.ttt_core.file_writing.os.replace", full)
    files = set(tmp_path.iterdir())
    for words in (("open", solved), ("export",)):
        printed = run("trace", *words, "--out", tmp_path / "new", code=2)
        assert f"{tmp_path / 'new'} cannot be written (No space left on device): free space" in printed
    assert set(tmp_path.iterdir()) == files


def test_a_database_of_another_program_is_no_store(tmp_path):
    file = tmp_path / "notes.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    connection.close()
    for words in (("list",), ("show", "last"), ("stats",), ("export",)):
        assert "another program" in run("trace", *words, "--trace-store", file, code=2)


def test_without_traces_the_message_names_the_remedy():
    assert "there are no traces" in run("trace", "list", code=2)
    assert issubclass(TraceError, LookupError)
    assert issubclass(SettingsError, ValueError)


def test_a_store_that_cannot_be_written_never_fails_an_answer(tasks, model, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = tmp_path / "file" / "traces.sqlite"
    with caplog.at_level(logging.WARNING, "autottt"):
        out = run("solve", tasks, "--model", model, "--strategy", "in_context", "--trace-store", store)
    assert len([text for text in out.splitlines() if text.startswith("{")]) == len(TASKS)
    assert len([r for r in caplog.records if "traces cannot be stored" in r.getMessage()]) == 1


def test_open_writes_one_page_that_needs_no_network(solved, tmp_path):
    file = tmp_path / "run.html"
    run("trace", "open", solved, "--out", file)
    page = file.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert len(page) < 2 << 20


def test_a_replay_is_identical_and_what_if_names_what_differs(solved, model):
    assert run("trace", "replay", solved) == "identical, except for times\n"
    text = run("trace", "replay", solved, "--strategy", "zero_shot")
    assert "decision 1: ttt_in_context -> zero_shot" in text


def test_a_replay_with_another_model_is_refused(solved, tmp_path):
    tiny_model("llama", 1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    text = run("trace", "replay", solved, "--model", tmp_path / "other", code=2)
    assert "name the model of the run with --model" in text
