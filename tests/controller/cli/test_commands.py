"""The command line as a user meets it: what it prints, writes and exits with."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from autottt.controller.cli import main as cli
from autottt.controller.cli.answer_files import SHORT
from autottt.controller.cli.evaluate import ReportOptions
from autottt.controller.cli.options import ModelOptions
from autottt.controller.cli.training import without_families_of
from autottt.controller.controller import Controller
from autottt.controller.evaluation import Row
from autottt.controller.tracing.store import TraceStore
from autottt.policies import any_model
from autottt.policies.bundle import load_bundle
from autottt.policies.bundle_card import BUNDLES, read_card
from autottt.policies.outcomes import Outcome, OutcomeStore
from autottt.policies.policy import HeuristicPolicy
from autottt.policies.report import REPORT
from autottt.strategies import registry
from autottt.strategies.registry import strategies
from autottt.ttt_core.learner import Learner
from tests.controller.cli.commands import call, task, tasks_file

runner = CliRunner()


def test_solve_writes_one_json_line_per_query(tmp_path, model):
    code, out, _ = call("solve", tasks_file(tmp_path, task("a"), task("b")), "--model", model)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["id"] for line in lines] == ["a", "b"]
    assert {"answer", "strategy", "reason", "difficulty", "cost", "proof", "right"} <= lines[0].keys()
    assert lines[0]["proof"]["tensors"] > 0


@pytest.mark.parametrize("name", ["in_context", "ttt_in_context"])
def test_a_strategy_can_be_forced(tmp_path, model, name):
    code, out, _ = call("solve", tasks_file(tmp_path, task("a")), "--model", model, "--strategy", name, "--trace")
    assert code == 0
    assert json.loads(out)["attempts"][0]["strategy"] == name


def test_bad_tasks_are_reported_the_others_answered_and_the_exit_is_1(tmp_path, model):
    file = tasks_file(
        tmp_path,
        task("a"),
        "{not json",
        task("b", queries=[{"input": "text"}]),
        task("long", queries=[{"input": [1] * 900}]),
        task("c"),
    )
    code, out, err = call("solve", file, "--model", model)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [line["id"] for line in lines] == [f"{file}:2", "b", "a", "long", "c"], "as from standard input"
    assert [line["status"] == "refused" for line in lines] == [True, True, False, True, False]
    assert {tuple(line) for line in lines} == {SHORT}
    assert "tasks.jsonl:2" in err
    assert "tasks.jsonl:3" in err
    assert "tokens" in err


def test_resuming_answers_only_what_is_missing(tmp_path, model):
    file, out = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "out.jsonl"
    assert call("solve", file, "--model", model, "--out", str(out))[0] == 0
    whole = out.read_text()
    first, second = whole.splitlines(keepends=True)
    out.write_text(first + second[:20])
    code, _, err = call("solve", file, "--model", model, "--out", str(out), "--resume")
    assert code == 0
    assert "dropping" in err
    assert [json.loads(x)["id"] for x in out.read_text().splitlines()] == ["a", "b"]
    assert out.read_text().startswith(first)


def test_resuming_leaves_files_that_are_no_answers_as_they_are(tmp_path, model):
    file, notes = tasks_file(tmp_path, task("a")), tmp_path / "notes.md"
    notes.write_text("# Notes\n\nprecious\n")
    for out in (str(notes), file):
        before = Path(out).read_text()
        code, printed, err = call("solve", file, "--model", model, "--out", out, "--resume")
        assert (code, printed) == (2, "")
        assert Path(out).name in err
        assert Path(out).read_text() == before


def test_resuming_with_another_seed_or_model_is_refused(tmp_path, model):
    file, out = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "out.jsonl"
    words = ["solve", file, "--out", str(out), "--strategy", "in_context"]
    assert call(*words, "--model", model, "--limit", "1")[0] == 0
    before = out.read_text()
    code, _, err = call(*words, "--model", model, "--resume", "--seed", "7")
    assert (code, "answered with seed 0" in err) == (2, True)
    code, _, err = call(*words, "--resume")
    assert (code, "answered by the model" in err) == (2, True)
    for name, *other in (("policy", "--strategy", "zero_shot"), ("budget", "--budget", "5x")):
        code, _, err = call(*words, "--model", model, "--resume", *other)
        assert (code, f"answered with other settings ({name}: " in err) == (2, True), err
    assert out.read_text() == before


def test_a_task_that_has_changed_is_answered_again(tmp_path, model):
    file, out = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "out.jsonl"
    words = ["solve", file, "--out", str(out), "--strategy", "in_context", "--model", model]
    assert call(*words)[0] == 0
    tasks_file(tmp_path, task("a"), task("b", queries=[{"input": [7, 6], "output": [6, 7]}]))
    code, _, err = call(*words, "--resume")
    assert (code, "1 tasks have changed since they were answered" in err) == (0, True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "b"]
    assert lines[1]["digest"] != lines[2]["digest"]
    assert lines[0]["settings"] == lines[2]["settings"]
    assert (call(*words, "--resume")[0], len(out.read_text().splitlines())) == (0, 3)


def test_a_new_line_of_standard_input_is_answered_when_the_run_is_resumed(tmp_path, model, monkeypatch):
    out = tmp_path / "out.jsonl"
    words = ["solve", "-", "--out", str(out), "--strategy", "in_context", "--model", model]
    for number, options in enumerate(([], ["--resume"], ["--resume"])):
        one = {"demonstrations": task("a")["demonstrations"], "query": [number, 1]}
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(one).encode() + b"\n")))
        code, _, err = call(*words, *options)
        assert code == 0, err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["stdin:1"] * 3


def test_an_interruption_reports_what_was_saved(tmp_path, model, monkeypatch):
    file, out = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "out.jsonl"
    words = ["solve", file, "--model", model, "--strategy", "in_context"]
    windows = []

    def interrupted(controller, tasks, batch_size, on_result, **more):
        windows.append(batch_size)
        on_result(controller.solve(tasks[0]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Controller, "solve_many", interrupted)
        code, _, err = call(*words, "--out", str(out), "--batch-size", "3")
        assert code == 130
        assert err.count("\n") == 1
        assert "out.jsonl keeps the answers so far, and --resume continues" in err
        code, printed, err = call(*words)
        assert (code, len(printed.splitlines())) == (130, 1)
        assert "--out FILE keeps the answers" in err
    assert windows == [3, 32]
    assert call(*words, "--out", str(out), "--resume")[0] == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b"]


def test_lines_of_standard_input_are_answered_as_they_come(tmp_path, model, monkeypatch):
    out = tmp_path / "out.jsonl"
    answered: list[list[tuple[str, str]]] = []

    def lines():
        for line in (task("a"), "{", task(7, demonstrations=None), task("a", queries=[{"input": [1]}, {"input": [2]}])):
            yield (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n"
            answered.append([(x["id"], x["status"]) for x in map(json.loads, out.read_text().splitlines())])

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines()))
    code, _, err = call("solve", "-", "--model", model, "--strategy", "in_context", "--out", str(out))
    assert code == 1
    refused = ("stdin:2", "refused"), ("7", "refused")
    seen = [id for id, _ in answered[-1]]
    assert seen == ["a", "stdin:2", "7", "a#0", "a#1"]
    assert [len(lines) for lines in answered] == [1, 2, 3, 5], "each before the next is read"
    assert tuple(answered[2][1:]) == refused
    assert "problem: stdin:2: not JSON" in err


def test_a_strategy_of_ones_own_is_plugged_in(tmp_path, model, monkeypatch):
    file = tmp_path / "plugged_in_for_a_test.py"
    file.write_text(
        "import dataclasses\n"
        "from autottt import register\n"
        "from autottt.strategies.registry import get_strategy\n"
        "@register\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine:\n"
        '    """Idea: the in-context answer again."""\n'
        "    name: str = 'mine'\n"
        "    cost_class: str = 'read'\n"
        "    min_demonstrations: int = 0\n"
        "    recipe: object = None\n"
        "    default_recipe: object = None\n"
        "    def answers_per_query(self, recipe):\n"
        "        return 1\n"
        "    def attempt(self, learner, task, **more):\n"
        "        answer = get_strategy('in_context').attempt(learner, task, **more)\n"
        "        return dataclasses.replace(answer, strategy='mine')\n"
    )
    monkeypatch.setenv(registry.PLUGINS, "")
    monkeypatch.setattr(registry, "_REGISTRY", {name: registry.get_strategy(name) for name in strategies()})
    monkeypatch.setattr(registry, "_DISCOVERED", [])
    try:
        code, out, _ = call("strategies", "--plugin", "json", "--plugin", str(file))
        assert code == 0
        assert "the in-context answer again" in out
        assert os.environ[registry.PLUGINS] == os.pathsep.join(["json", str(file)]), "for worker processes"
        tasks = tasks_file(tmp_path, task("a"))
        code, out, _ = call("solve", tasks, "--model", model, "--strategy", "mine", "--plugin", str(file), "--trace")
        assert code == 0
        assert json.loads(out)["attempts"][0]["strategy"] == "mine"
        registry._DISCOVERED.clear()
        code, _, err = call("solve", tasks, "--model", model, "--plugin", "no_such_module")
        assert (code, "no_such_module" in err) == (2, True)
    finally:
        sys.modules.pop(file.stem, None)


def test_an_existing_file_of_answers_is_not_overwritten(tmp_path, model):
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    code, _, err = call("solve", tasks_file(tmp_path, task("a")), "--model", model, "--out", str(out))
    assert code == 2
    assert "--resume" in err
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["solve", "nowhere.jsonl"], "nowhere.jsonl"),
        (["solve", "TASKS", "--strategy", "in_contxt"], "did you mean 'in_context'"),
        (["solve", "TASKS", "--budget", "soon"], "such as 10s"),
        (["solve", "TASKS", "--model", "no/such/folder"], "no/such/folder"),
        (["solve", "TASKS", "--device", "abacus"], "abacus"),
        (["solve", "TASKS", "--dtype", "int3"], "bf16"),
        (["solve", "TASKS", "--policy", "no-policy"], "no-policy"),
        (["solve", "TASKS", "--policy", "some", "--strategy", "in_context"], "leaves a policy no choice"),
        (["solve", "TASKS", "-"], "give it alone"),
        (["solve", "-", "--limit", "2"], "without --limit"),
        (["solve", "TASKS", "--resume"], "--out"),
        (["evaluate", "TASKS", "--resume"], "--json"),
        (["evaluate", "TASKS", "--json", "tasks.jsonl"], "write to another"),
        (["evaluate", "TASKS", "--strategies", "magic"], "magic"),
        (["collect", "--store", "s"], "--generated"),
        (["train-policy", "no-store", "--out", "o"], "no-store"),
    ],
)
def test_an_error_is_one_clear_line_and_exit_2(tmp_path, model, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    given = [tasks_file(tmp_path, task("a")) if w == "TASKS" else w for w in words]
    if "--model" not in given and given[0] != "train-policy":
        given += ["--model", model]
    code, out, err = call(*given)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err + out


def test_debug_shows_the_traceback(tmp_path):
    before = sys.argv
    sys.argv = ["autottt", "solve", str(tmp_path / "none.jsonl"), "--debug"]
    try:
        with pytest.raises(Exception, match=r"none\.jsonl"):
            cli.main()
    finally:
        sys.argv = before


def test_evaluate_prints_a_table_and_writes_json(tmp_path, model):
    file, out = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "out.json"
    code, shown, _ = call(
        "evaluate", file, "--model", model, "--strategies", "in_context,ttt_in_context,controller", "--json", str(out)
    )
    report = json.loads(out.read_text())
    assert code == 0
    assert "ttt_in_context" in shown
    assert [s["strategy"] for s in report["summary"]] == ["in_context", "ttt_in_context", "controller"]
    for key in ("query_accuracy", "task_accuracy", "queries", "tasks", "seconds", "cost", "adapted"):
        assert key in report["summary"][0]
    assert report["summary"][0]["cost"] == 1.0
    assert report["summary"][1]["adapted"] == 1.0
    assert len(report["rows"]) == 6
    assert not list(tmp_path.glob("*.rows.jsonl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [(["solve", "--out"], "nothing was answered yet"), (["evaluate", "--json"], "nothing was measured yet")],
)
def test_an_interruption_before_the_first_answer_names_no_file(tmp_path, monkeypatch, words, message) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"autottt.controller.cli.{words[0]}.load_controller", interrupted)
    file = tasks_file(tmp_path, task("a"))
    code, _, err = call(words[0], file, *words[1:], str(tmp_path / "out.json"))
    assert (code, err) == (130, f"interrupted; {message}\n")


IMPORTING = """
import importlib, sys

class Interrupts:
    def find_spec(self, name, *more):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
module, function = sys.argv[1].split(":")
getattr(importlib.import_module(module), function)()
"""


def test_an_interruption_while_the_commands_are_imported_is_one_line():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    script = project["project"]["scripts"]["autottt"]
    done = subprocess.run([sys.executable, "-c", IMPORTING, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupted_evaluation_resumes(tmp_path, model, monkeypatch):
    from autottt.controller import evaluation

    file, out = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "out.json"
    words = ["evaluate", file, "--model", model, "--strategies", "in_context", "--json", str(out), "--dtype", "fp32"]
    real, calls = evaluation._row, []

    def interrupted(controller, task, *more):
        calls.append(task.id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(controller, task, *more)

    monkeypatch.setattr(evaluation, "_row", interrupted)
    code, _, err = call(*words)
    assert code == 130
    assert "out.rows.jsonl keeps the rows so far, and --resume continues" in err
    assert not out.exists()
    kept = tmp_path / "out.rows.jsonl"
    before = kept.read_text()
    for other in ([], ["--resume", "--seed", "7"], ["--resume", "--dtype", "bf16"]):
        code, _, err = call(*words, *other)
        assert code == 2
        assert "to start again" in err
        assert kept.read_text() == before
    assert call(*words, "--resume")[0] == 0
    assert calls == ["a", "b", "b"]
    assert {r["id"] for r in json.loads(out.read_text())["rows"]} == {"a", "b"}
    assert not kept.exists()
    report = out.read_text()
    for more in ([], ["--resume"]):
        code, _, err = call(*words, *more)
        said = " ".join(err.split())
        assert (code, "out.json holds a finished evaluation; name another --json" in said) == (2, True)
    assert out.read_text() == report


def test_reports_with_other_names_have_rows_of_their_own(tmp_path):
    names = ["out.json", "out.v1", "out.v2"]
    rows = [ReportOptions(json_file=tmp_path / name).rows_file.name for name in names]
    assert rows == ["out.rows.jsonl", "out.v1.rows.jsonl", "out.v2.rows.jsonl"]


TERMINATED = """
import importlib, os, signal, sys
from pathlib import Path
from tests.controller.cli.commands import call

module = importlib.import_module(MODULE)
real, calls = getattr(module, NAME), []

def terminated(*arguments):
    calls.append(NAME)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(*arguments)

setattr(module, NAME, terminated)
code, _, err = call(*WORDS)
Path(FILE).write_text(err)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "place", "kept"),
    [
        (["evaluate", "--json", "out.json"], ("controller.evaluation", "_row"), "out.rows.jsonl keeps the rows so far"),
        (["collect", "--store", "store"], ("policies.collect", "_attempt_outcome"), "store keeps the outcomes so far"),
    ],
)
def test_a_command_that_a_batch_system_ends_says_how_to_continue(tmp_path, model, forkserver, words, place, kept):
    file, said = tasks_file(tmp_path, task("a"), task("b")), tmp_path / "said"
    command, option, name = words
    words = [command, file, "--model", model, "--strategies", "zero_shot", option, str(tmp_path / name)]
    variables = {"MODULE": f"autottt.{place[0]}", "NAME": place[1], "WORDS": words, "FILE": str(said)}
    process = forkserver.Process(target=exec, args=(TERMINATED, variables))
    process.start()
    process.join()
    assert process.exitcode == 143
    assert "terminated; " in said.read_text()
    assert kept in said.read_text()


@pytest.mark.parametrize("words", [["outcomes", "show"], ["train-policy", "--out", "bundle"]])
def test_a_folder_of_outcomes_that_does_not_exist_is_named(tmp_path, words):
    folder = str(tmp_path / "nowhere")
    code, _, err = call(*words, folder)
    assert (code, f"{folder}: expected a folder of outcomes; there is none" in err) == (2, True)


def test_rows_that_do_not_say_what_they_were_measured_with_are_not_gone_on_with(tmp_path, model):
    row = Row("tasks", "a", "a", "a", "in_context", True, "answered", "in_context", False, 1.0, 1)
    kept = tmp_path / "out.rows.jsonl"
    kept.write_text(json.dumps(dataclasses.asdict(row)) + "\n")
    words = ["evaluate", tasks_file(tmp_path, task("a")), "--json", str(tmp_path / "out.json"), "--resume"]
    code, _, err = call(*words, "--model", model)
    assert (code, "does not say" in err) == (2, True)
    assert kept.exists()


def test_evaluating_tasks_without_answers_is_an_error(tmp_path, model):
    code, _, err = call("evaluate", tasks_file(tmp_path, task("a", queries=[{"input": [1]}])), "--model", model)
    assert code == 2
    assert "right answer" in err


def test_the_version_is_printed():
    code, out, _ = call("--version")
    assert (code, out) == (0, f"autottt {version('autottt')}\n")


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "autottt", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == f"autottt {version('autottt')}\n"


def test_strategies_is_a_table_with_one_row_each():
    code, out, _ = call("strategies")
    assert code == 0
    rows = {line.split()[0]: line.split(maxsplit=3)[1:] for line in out.splitlines() if len(line.split()) > 3}
    for name, strategy in strategies().items():
        cost_class, needs, summary = rows[name]
        assert (cost_class, needs) == (strategy.cost_class, str(strategy.min_demonstrations))
        assert len(summary.strip()) > 10


@pytest.mark.parametrize("name", strategies())
def test_a_strategy_has_a_page(name):
    code, out, _ = call("strategies", name)
    strategy = strategies()[name]
    assert code == 0
    needs = "1 demonstration" if strategy.min_demonstrations == 1 else f"{strategy.min_demonstrations} demonstrations"
    assert out.startswith(f"{name}  ({strategy.cost_class}; needs {needs})\n")
    for part in ("\nIdea: ", "\nWins ", "\nLoses ", "\nSource: "):
        assert part in out
    if strategy.default_recipe is None:
        assert "needs no recipe" in out
        return
    header, rank = (next(x for x in out.splitlines() if x.split()[:1] == [word]) for word in ("recipe", "rank"))
    assert "bundled model" in header
    assert "other models" in header
    assert rank.split()[-1] == str(strategy.default_recipe.rank)
    recipe = Learner.load().loaded.recipes[name]
    assert rank.split()[1] == str(recipe.rank)


def test_doctor_examines_and_tests_the_revert(model):
    code, out, _ = call("doctor", "--model", model)
    assert code == 0
    assert "content hash" in out
    assert "BAD" not in out


def test_policy_show_is_json(model):
    code, out, _ = call("policy", "show", "--model", model, "--json")
    assert code == 0
    assert "policy" in json.loads(out)


def test_policy_show_is_for_reading_and_whole_as_json():
    code, out, _ = call("policy", "show")
    assert code == 0
    assert "Scorecard" in out
    assert "rule of thumb" in out
    code, out, _ = call("policy", "show", "--json")
    assert code == 0
    assert json.loads(out)["policy"] == "learned"


def policy_hash(store: str) -> str:
    """The beginning of the content hash of the model that the outcomes are of."""
    return OutcomeStore(store).read()[0].base_hash[:8]


@pytest.mark.parametrize("option", ["--out", "--runs"])
def test_where_nothing_can_be_written_nothing_is_trained(tmp_path, option):
    store, file = OutcomeStore(tmp_path / "store"), tmp_path / "file"
    file.write_text("")
    store.append(Outcome("t", "t", "f", "d", "list", "in_context", 0, "answered", 1.0, 0.1, 10, 1.0, "base"))
    places = {"--out": str(tmp_path / "out"), "--runs": str(tmp_path / "runs"), option: str(file / "inside")}
    code, out, err = call("train-policy", str(tmp_path / "store"), *(part for pair in places.items() for part in pair))
    assert code == 2
    assert out == ""
    assert f"{option} {file / 'inside'}: the folder cannot be created" in err.replace("\n", "")


def test_a_refused_training_leaves_no_folder_that_it_made(tmp_path):
    store = OutcomeStore(tmp_path / "store")
    store.append(Outcome("t", "t", "f", "d", "list", "in_context", 0, "answered", 1.0, 0.1, 10, 1.0, "base"))
    there = tmp_path / "mine"
    there.mkdir()
    for out in (tmp_path / "new" / "policy", there):
        code, _, err = call(
            "train-policy", str(tmp_path / "store"), "--out", str(out), "--runs", str(tmp_path / "runs" / "a")
        )
        assert code == 2, err
    assert not list(tmp_path.glob("new/[!.]*")), "the lock file stays"
    assert not (tmp_path / "runs").exists()
    assert there.is_dir(), "it was there before"


def test_outcomes_of_one_of_several_models_are_named(tmp_path):
    store = OutcomeStore(tmp_path)
    store.append(Outcome("t", "t", "f", "d", "list", "in_context", 0, "answered", 1.0, 0.1, 10, 1.0, "base"))
    code, _, err = call("train-policy", str(tmp_path), "--out", str(tmp_path / "out"), "--model-hash", "other")
    assert code == 2
    assert "--model-hash other: the outcomes in" in err
    assert "are of base" in err.replace("\n", " ")


def test_families_of_a_data_set_are_left_out_wherever_they_occur(tmp_path):
    outcomes = [
        Outcome(dataset + family, dataset, family, dataset, "list", "in_context", 0, "answered", 1.0, 0.1, 10, 1.0, "b")
        for family, dataset in [("f", "judged"), ("f", "other"), ("g", "other")]
    ]
    assert without_families_of(outcomes, []) == outcomes
    assert without_families_of(outcomes, ["judged"]) == outcomes[2:]
    renamed = [dataclasses.replace(o, family=f"{o.dataset} {o.family}", digest=o.family) for o in outcomes]
    assert without_families_of(renamed, ["judged"]) == renamed[2:]  # the first two are one task under two names
    unnamed = [dataclasses.replace(o, family="", group=o.dataset) for o in outcomes]
    assert without_families_of(unnamed, ["judged"]) == unnamed[1:]
    store = OutcomeStore(tmp_path / "store")
    for outcome in outcomes:
        store.append(outcome)
    errors = {"judge": "the outcomes are on judged, other", "other": "no outcomes are left to train on"}
    for name, message in errors.items():
        code, _, err = call("train-policy", str(tmp_path / "store"), "--out", str(tmp_path / "o"), "--leave-out", name)
        assert code == 2
        assert f"--leave-out {name}: {message}" in err.replace("\n", " ")


def test_a_policy_for_any_model_has_a_scorecard_and_a_record(tmp_path, monkeypatch):
    shutil.copytree(BUNDLES / "any_model", tmp_path / "shipped", ignore=shutil.ignore_patterns("*.npz"))
    trained = load_bundle(tmp_path / "shipped")
    monkeypatch.setattr(any_model, "train_any_model", lambda outcomes, vocabularies, seed: trained)
    OutcomeStore(tmp_path / "store").append(
        Outcome("t", "t", "f", "d", "list", "in_context", 0, "answered", 1.0, 0.1, 10, 1.0, "base")
    )
    train = "train-policy", str(tmp_path / "store"), "--any-model", "--out", str(tmp_path / "out")
    code, _, err = call(*train, "--runs", str(tmp_path / "runs"))
    assert code == 0, err
    assert "# Scorecard" in (tmp_path / "out" / REPORT).read_text("utf-8")
    (run,) = (tmp_path / "runs").glob("*/run.json")
    assert json.loads(run.read_text())["parameters"]["store"] == str(tmp_path / "store")
    assert load_bundle(run.parent / "bundle").scorecard == trained.scorecard
    for option in ("--risk", "--cost-weight"):
        code, _, err = call(*train, option, "0.2")
        assert code == 2
        assert f"{option} 0.2: a policy for any model is trained without it" in err


def test_collecting_in_context_alone_is_refused(tmp_path, model):
    file = tasks_file(tmp_path, task("t"))
    for given, message in (("", "expected names separated by commas"), ("in_context", "in_context is run anyway")):
        code, _, err = call("collect", file, "--store", str(tmp_path / "s"), "--strategies", given, "--model", model)
        assert code == 2
        assert message in err.replace("\n", " ")


def test_collecting_tells_where_it_is_and_what_comes_next(tmp_path, model):
    file, store = tasks_file(tmp_path, task("t")), str(tmp_path / "s")
    code, out, err = call("collect", file, "--store", store, "--strategies", "zero_shot", "--model", model)
    assert code == 0
    assert "collecting: 0 of 2" in err
    assert "holds 2 outcomes; next: autottt train-policy" in out


def test_a_dry_run_of_collecting_estimates_the_time_and_stores_nothing(tmp_path, model):
    file, store = tasks_file(tmp_path, task("t"), task("long", queries=[{"input": [1] * 120}])), tmp_path / "s"
    options = ["collect", file, "--store", str(store), "--model", model, "--prompt-format", "standard"]
    code, out, err = call(*options, "--strategies", "ttt_in_context", "--dry-run", "--max-tokens", "200")
    assert code == 0
    assert "1 of 2 tasks have more than 200 tokens and are left out" in err
    assert "2 of 2 outcomes are missing: about " in out
    assert not store.exists()
    assert call(*options, "--strategies", "zero_shot", "--max-tokens", "200")[0] == 0
    code, out, _ = call(*options, "--strategies", "zero_shot", "--max-tokens", "200", "--dry-run")
    assert code == 0
    assert "0 of 2 outcomes are missing" in out
    code, _, err = call(*options, "--max-tokens", "2")
    assert code == 2
    assert "--max-tokens 2: each of the 2 tasks has a longer prompt; allow more" in err


def test_collecting_short_tasks_loads_the_model_once(tmp_path, model, monkeypatch):
    file, loaded, load = tasks_file(tmp_path, task("t")), [], ModelOptions.load_learner
    monkeypatch.setattr(ModelOptions, "load_learner", lambda self: loaded.append(1) or load(self))
    options = ["--strategies", "zero_shot", "--model", model, "--max-tokens", "200"]
    assert call("collect", file, "--store", str(tmp_path / "s"), *options)[0] == 0
    assert len(loaded) == 1


def test_collecting_and_training_give_a_bundle_that_solves(tmp_path, model):
    families = [task(f"t{i}", family=f"f{i}", queries=[{"input": [5, i], "output": [i, 5]}]) for i in range(6)]
    store, bundle = str(tmp_path / "store"), str(tmp_path / "bundle")
    file = tasks_file(tmp_path, *families)
    assert call("collect", file, "--store", store, "--strategies", "in_context,ttt_direct", "--model", model)[0] == 0
    code, out, _ = call("outcomes", "show", store)
    assert code == 0
    assert "12 outcomes" in out
    options = ["--out", bundle, "--runs", str(tmp_path / "runs"), "--model-hash", policy_hash(store)]
    code, out, err = call("train-policy", store, *options, "--json")
    assert code == 0
    assert json.loads(out)["cases"] == 6
    assert f"the policy is in {bundle}, with scorecard.md" in err
    (run,) = (tmp_path / "runs").glob("*/run.json")
    assert "cost_weight" in json.loads(run.read_text())["parameters"]
    assert "# Scorecard" in (tmp_path / "bundle" / "scorecard.md").read_text()
    code, out, _ = call("policy", "explain", file, "--model", model, "--policy", bundle, "--limit", "1")
    assert code == 0
    assert "contributions of features" in out
    (tmp_path / "other").mkdir()
    mixed = tasks_file(tmp_path / "other", task("long", queries=[{"input": [1] * 900}]), task("short"))
    options = ["--device", "cpu", "--prompt-format", "compact"]
    code, out, err = call("policy", "explain", mixed, "--model", model, "--policy", bundle, *options)
    assert code == 1
    assert "refused: long: " in err
    assert "short" in out, "the others are explained"
    code, out, _ = call("policy", "compare", bundle, bundle)
    assert code == 0
    assert "AUROC of difficulty" in out
    code, out, _ = call("solve", file, "--model", model, "--policy", bundle)
    assert code == 0
    assert len(out.splitlines()) == 6


def test_a_policy_is_trained_on_serving_logs(tmp_path, model):
    """Solved without the answers, exploring, with another policy in the shadow; the answers come later."""
    families = [task(f"t{i}", family=f"f{i}", queries=[{"input": [5, i], "output": [i, 5]}]) for i in range(6)]
    store, bundle, log = (str(tmp_path / n) for n in ("store", "bundle", "answers.jsonl"))
    places = ["--store", store, "--out", bundle, "--runs", str(tmp_path / "runs")]
    known = tasks_file(tmp_path, *families)
    assert call("collect", known, "--store", store, "--strategies", "in_context,ttt_direct", "--model", model)[0] == 0
    new = tmp_path / "new"
    new.mkdir()
    file = tasks_file(
        new, *({**t, "id": f"new-{t['id']}", "queries": [{"input": [n, 6]}]} for n, t in enumerate(families))
    )
    options = ["--model", model, "--trace", "--out", log, "--explore", "1", "--shadow", bundle]
    assert call("train-policy", store, *places[2:])[0] == 0
    assert call("solve", file, *options)[0] == 0
    code, out, _ = call("policy", "monitor", log, "--policy", bundle)
    report = json.loads(out)
    assert code == 0
    assert report["queries"] == report["explored"] == report["shadow"]["queries"] == 6
    assert report["with_known_answer"] == 0
    assert "drift" in report
    solutions = tmp_path / "solutions"
    solutions.mkdir()
    answers = tasks_file(
        solutions, *({**t, "queries": [{"input": [n, 6], "output": [6, n]}]} for n, t in enumerate(families))
    )
    before = len(OutcomeStore(store).read())
    shutil.copytree(bundle, tmp_path / "before")
    for new_ones in (True, False):
        code, out, err = call("retrain", log, "--answers", answers, *places)
        assert code == 0
        assert (" 0 new" in " ".join(out.split())) != new_ones
        assert ("nothing new to learn" in " ".join(err.split())) != new_ones
    trained = read_card(bundle)["scorecard"]
    places_before = [*places[:3], str(tmp_path / "before"), *places[4:]]
    code, out, err = call("retrain", log, "--answers", answers, *places_before)
    assert code == 0
    assert " 0 new" in " ".join(out.split())
    assert "nothing new to learn" not in " ".join(err.split())
    after_a_kill = read_card(tmp_path / "before")["scorecard"]
    assert after_a_kill["training_digest"] == trained["training_digest"], "a run that ended before it had trained"
    after = OutcomeStore(store).read()
    new_ones = [o for o in after if o.task_id.startswith("new-")]
    assert len(after) == before + len(new_ones)
    assert len({o.task_id for o in new_ones}) == 6
    assert len({o.strategy for o in new_ones}) > 1, "what was explored"
    other = tmp_path / "other.jsonl"
    other.write_text(Path(log).read_text().replace(new_ones[0].base_hash, "0" * 32))
    assert call("retrain", str(other), "--answers", answers, *places)[0] != 0
    assert OutcomeStore(store).read() == after, "refused before anything was written"
    assert call("policy", "monitor", log, "--answers", answers)[0] == 0


def test_a_policy_is_trained_on_stored_traces(tmp_path, model, monkeypatch):
    """Solved with the answers, exploring; a forced strategy and a task without its answer teach less or nothing."""
    families = [task(f"t{i}", family=f"f{i}", queries=[{"input": [5, i], "output": [i, 5]}]) for i in range(6)]
    outcomes, bundle, traces = (str(tmp_path / n) for n in ("outcomes", "bundle", "traces.sqlite"))
    places = ["--store", outcomes, "--out", bundle, "--runs", str(tmp_path / "runs")]
    monkeypatch.setenv("AUTOTTT_TRACE", traces)
    known = tasks_file(tmp_path, *families)
    assert (
        call("collect", known, "--store", outcomes, "--strategies", "in_context,ttt_direct", "--model", model)[0] == 0
    )
    assert call("train-policy", outcomes, *places[2:])[0] == 0
    new = [
        {**t, "id": f"new-{t['id']}", "queries": [{"input": [n, 6], "output": [6, n]}]} for n, t in enumerate(families)
    ]
    unknown = {**families[0], "id": "unknown", "queries": [{"input": [9, 9]}]}
    (tmp_path / "new").mkdir()
    (tmp_path / "again").mkdir()
    options = ["--model", model, "--json", "--batch-size", "1"]
    explored = ["--policy", bundle, "--explore", "1", "--ignore-mismatch"]
    assert call("solve", tasks_file(tmp_path / "new", *new, unknown), *options, *explored)[0] == 0
    assert call("solve", tasks_file(tmp_path / "again", families[1]), *options, "--strategy", "zero_shot")[0] == 0
    before = len(OutcomeStore(outcomes).read())
    code, out, err = call("retrain", "--traces", traces, *places)
    assert code == 0, err
    said = " ".join(out.split())
    assert "queries: 8 in the traces" in said
    assert "1 teach nothing: the right answer is unknown" in said
    assert "1 teach nothing: the probe was skipped" in said
    added = [o for o in OutcomeStore(outcomes).read() if o.task_id.startswith("new-")]
    assert len(OutcomeStore(outcomes).read()) == before + len(added)
    assert all(o.policy and o.time and "torch" in o.versions for o in added)
    code, out, _ = call("retrain", "--traces", traces, *places)
    assert code == 0
    assert " 0 new" in " ".join(out.split())
    labels, right_before = TraceStore(traces), {(o.task_id, o.strategy): o.correct for o in added}
    for trace in labels.traces():
        result = trace.result
        right = not right_before.get((f"{result['id']}#{result['task']['digest']}", result["strategy"]), 0)
        strategies = ["in_context", *(attempt["strategy"] for attempt in result["attempts"])]
        labels.label(trace.id, {"right": right, "strategies": dict.fromkeys(strategies, right)})
    code, out, err = call("retrain", "--traces", traces, *places)
    assert code == 0, err
    assert "relabelled" in " ".join(out.split()), "by feedback after the outcomes were stored"
    judged = {(o.task_id, o.strategy): o.correct for o in OutcomeStore(outcomes).read()}
    assert any(judged[key] != right for key, right in right_before.items())
    code, out, _ = call("retrain", "--traces", traces, *places)
    assert "relabelled" not in out
    assert call("retrain", *places)[0] != 0
    code, _, err = call("retrain", "--traces", "nowhere", *places)
    assert code != 0
    assert "expected local, or a file that ends with .sqlite" in " ".join(err.split())
    code, _, err = call("retrain", "--traces", traces, "--until", "2001-01-31", *places)
    assert code != 0
    assert "no answered query" in " ".join(err.split())


TABLE = "task,seed,strategy,accuracy_percent,fit_seconds,eval_seconds\na,1,ICL,50,,2\na,1,TTT,75,6,2\n"


def test_outcomes_from_elsewhere_are_imported_once(tmp_path):
    file, store = tmp_path / "table.csv", str(tmp_path / "store")
    file.write_text(TABLE)
    assert call("outcomes", "import", str(file), "--store", store, "--in-context", "ICL")[0] == 0
    code, out, _ = call("outcomes", "import", str(file), "--store", store, "--in-context", "ICL")
    assert code == 0
    assert "0 outcomes added" in out
    both = tmp_path / "both.csv"
    both.write_text(TABLE.replace("TTT", "in_context"))
    code, _, err = call("outcomes", "import", str(both), "--store", store, "--in-context", "ICL")
    assert code != 0
    assert "already" in err
    outcomes = {o.strategy: (o.correct, o.relative_cost, o.seconds) for o in OutcomeStore(store).read()}
    assert outcomes == {"in_context": (0.5, 1.0, 2.0), "TTT": (0.75, 4.0, 8.0)}
    code, out, _ = call("outcomes", "show", store)
    assert code == 0
    assert "75.0%" in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TABLE, "Strategies in the table: ICL, TTT"), ("", "received no columns"),
        ("task,seed\na,1\n", "expected columns"), (TABLE.replace("75", "x"), "table.csv:3: expected numbers"),
        (TABLE.replace("75", "175"), "accuracy of 0 to 1"), (TABLE.replace("6,2", "inf,2"), "a cost above 0"),
        (TABLE + "a,1,TTT,75,6,2\n", "table.csv:4: TTT on a with seed 1 is in"), ("\ufeff" + TABLE, "ICL, TTT"),
        (TABLE.replace("a,1,TTT", ",1,TTT"), "expected a task and a strategy"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_imported_is_refused_in_words(tmp_path, text, says):
    file = tmp_path / "table.csv"
    file.write_text(text)
    code, _, err = call("outcomes", "import", str(file), "--store", str(tmp_path / "store"))
    assert code != 0
    assert says in " ".join(err.split())
    assert not (tmp_path / "store").exists()


def test_only_a_learned_policy_is_explained(tmp_path, model, monkeypatch):
    monkeypatch.setattr("autottt.controller.controller.policy_for", lambda *more: HeuristicPolicy())
    code, _, err = call("policy", "explain", tasks_file(tmp_path, task("t")), "--model", model)
    assert code != 0
    assert "only a learned policy can be taken apart" in " ".join(err.split())


@pytest.mark.parametrize("compare", [(), ("--compare",)])
def test_demo_shows_decisions_the_table_and_the_proof(model, compare):
    code, out, _ = call("demo", "--model", model, "--limit", "2", *compare)
    assert code == 0
    assert "decision: " in out
    assert "as decided" in out
    assert ("always ttt_augmented" in out) == bool(compare)
    base_hash = Learner.load(model).base_hash
    assert f"content hash {base_hash}" in " ".join(out.split())


@pytest.mark.parametrize(
    "command",
    [
        "solve",
        "evaluate",
        "strategies",
        "doctor",
        "demo",
        "collect",
        "train-policy",
        "policy show",
        "policy explain",
        "policy compare",
        "policy monitor",
        "retrain",
        "outcomes show",
        "outcomes import",
        "outcomes check",
        "models list",
        "models fetch",
        "models path",
        "models remove",
        "tasks list",
        "tasks export",
        "tasks show",
    ],
)
def test_every_command_has_help_with_an_example(command):
    result = runner.invoke(cli.app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output


EARLY = [
    (["--help"], "Usage"),
    (["solve", "no_such_file.jsonl"], "no_such_file.jsonl"),
    (["solve", "tasks.jsonl", "--budget", "soon"], "such as 10s"),
    (["solve", "tasks.jsonl", "--out", "no_such_folder/answers.jsonl"], "no folder no_such_folder"),
    (["solve", "tasks.jsonl", "--out", "."], "is a folder"),
    (["solve", "tasks.jsonl", "--out", "tasks.jsonl"], "read from"),
    (["solve", "tasks.jsonl", "--out", "old.jsonl"], "old.jsonl exists"),
    (["solve", "tasks.jsonl", "--strategy", "in_contxt"], "did you mean 'in_context'"),
    (["solve", "tasks.jsonl", "--policy", "none"], "card.json cannot be read"),
    (["solve", "tasks.jsonl", "--policy", "empty"], "card.json cannot be read"),
    (["solve", "tasks.jsonl", "--policy", "older"], "not in version"),
    (["solve", "tasks.jsonl", "--policy", "tasks.jsonl"], "card.json cannot be read"),
    (["solve", "tasks.jsonl", "--shadow", "none"], "card.json cannot be read"),
    (["solve", "tasks.jsonl", "--device", "abacus"], "expected one of cpu"),
    (["solve", "tasks.jsonl", "--device", "cpu:one"], "expected one of cpu"),
    (["solve", "tasks.jsonl", "--dtype", "fp99"], "expected one of bf16, fp32"),
    (["solve", "tasks.jsonl", "--prompt-format", "xml"], "expected one of auto, chat, standard, compact"),
    (["solve", "tasks.jsonl", "--plugin", "none.py"], "no such file"),
    (["solve", "tasks.jsonl", "--plugin", "no.such.module"], "no such module"),
    (["solve", "tasks.jsonl", "--memory", "-1"], "at least 0"),
    (["solve", "tasks.jsonl", "--no-such-option"], "No such option"),
    (["evaluate", "nofile.jsonl"], "nofile.jsonl"),
    (["evaluate", "tasks.jsonl", "--strategies", "in_context,controler"], "no strategy is called 'controler'"),
    (["evaluate", "tasks.jsonl", "--strategies", ","], "--strategies: expected names separated by commas"),
    (["collect", "tasks.jsonl", "--store", "store", "--strategies", " "], "--strategies: expected names"),
    (["solve", "tasks.jsonl", "--model", "./nowhere"], "there is no './nowhere'"),
    (["solve", "tasks.jsonl", "--model", "nowhere/"], "there is no 'nowhere/'"),
    (["solve", "tasks.jsonl", "--model", "./smolm2-135m"], "did you mean 'smollm2-135m'?"),
    (["evaluate", "tasks.jsonl", "--model", "empty"], "no config.json"),
    (["solve", "tasks.jsonl", "--model", "bundled"], "leave it out"),
    (["solve", "tasks.jsonl", "--adapters", "tasks.jsonl"], "expected a folder, which may be new; received the file"),
    (["evaluate", "tasks.jsonl", "--json", "nowhere/report.json"], "no folder nowhere"),
    (["evaluate", "tasks.jsonl", "--policy", "none"], "card.json cannot be read"),
    (["policy", "show", "--policy", "none"], "card.json cannot be read"),
    (["policy", "compare", "older", "none"], "not in version"),
    (["policy", "explain", "nofile.jsonl"], "nofile.jsonl"),
    (["policy", "monitor", "log.jsonl", "--policy", "none"], "card.json cannot be read"),
    (["collect", "--store", "store", "--strategies", "ttt_direkt", "tasks.jsonl"], "did you mean 'ttt_direct'"),
    (["collect", "--store", "store", "nofile.jsonl"], "nofile.jsonl"),
    (["collect", "--store", "store"], "--generated"),
    (["doctor", "--policy", "none"], "card.json cannot be read"),
    (["strategies", "in_contxt"], "did you mean 'in_context'"),
]
"""Commands that need no model, and what they say."""
EARLY_PROGRAM = """
import json, sys
from tests.controller.cli.commands import call
for words in json.loads(sys.argv[1]):
    code, out, err = call(*words)
    print(json.dumps([code, out + err, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def early(tmp_path_factory) -> list[tuple[int, str, bool]]:
    """Of each of `EARLY` the exit code, what it printed, and whether torch was imported by then, in a new process."""
    folder = tmp_path_factory.mktemp("early")
    tasks_file(folder, task("a"))
    (folder / "empty").mkdir()
    (folder / "older").mkdir()
    (folder / "older" / "card.json").write_text('{"format_version": 1}')
    (folder / "old.jsonl").touch()
    command = [sys.executable, "-c", EARLY_PROGRAM, json.dumps([words for words, _ in EARLY])]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ran = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True)
    return [tuple(json.loads(row)) for row in ran.stdout.splitlines()]


@pytest.mark.parametrize(("place", "words", "says"), [(n, *case) for n, case in enumerate(EARLY)])
def test_an_error_that_needs_no_model_comes_without_importing_torch(place, words, says, early):
    code, printed, imported = early[place]
    assert says in printed
    assert (code, imported) == (0 if words == ["--help"] else 2, False)
