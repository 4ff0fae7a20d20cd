"""`autottt policy fit` collects, trains and installs in one command that can be interrupted."""

from __future__ import annotations

import json

import pytest

from autottt.controller.cli import policy_fit
from autottt.policies import collect as collecting
from autottt.policies.installed import outcomes_folder
from autottt.policies.outcomes import OutcomeStore
from autottt.ttt_core.errors import PolicyError
from tests.controller.cli.commands import call, task, tasks_file


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def fit(file: str, model: str, *more: str) -> tuple[int, str, str]:
    return call("policy", "fit", "--tasks", file, "--model", model, "--strategies", "zero_shot", *more)


def installed() -> list[dict[str, object]]:
    code, out, err = call("policy", "list", "--json")
    assert code == 0, err
    return [row for row in json.loads(out) if row["origin"] == "yours"]


def test_an_interrupted_fit_continues_and_the_model_gets_the_policy(tmp_path, model, monkeypatch):
    file = tasks_file(tmp_path, *(task(f"family{n}", queries=[{"input": [5, n], "output": [n, 5]}]) for n in range(5)))
    measured = []

    def interrupted(learner, batch):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(batch)
        yield from collecting_batch(learner, batch)

    collecting_batch = collecting.measure_batch
    monkeypatch.setattr(collecting, "measure_batch", interrupted)
    code, _, err = fit(file, model)
    assert code == 130
    assert "10 of 10 outcomes are missing" in err
    assert "the same command continues after them" in err
    assert not installed()
    monkeypatch.setattr(collecting, "measure_batch", collecting_batch)
    code, out, err = fit(file, model)
    assert code == 0, err
    assert "6 of 10 outcomes are missing" in err
    assert "is the policy of this model from now on" in out
    (row,) = installed()
    assert (row["families"], row["prompt_format"], row["starting_adapter"]) == (5, "compact", "")
    assert row["name"] in out
    code, _, err = fit(file, model)
    assert code == 0
    assert "all 10 outcomes are in" in err
    store = OutcomeStore(outcomes_folder(str(row["model"]), "compact"))
    assert len({o.key for o in store.read()}) == len(store.read()) == 10
    code, out, _ = call("policy", "show", "--json", "--model", model)
    assert code == 0
    assert "your policy for this model is neither significantly better nor as good and cheaper" in out
    code, out, err = call("policy", "compare", str(row["name"]), "bundled", "public")
    assert code == 0, err
    assert str(row["model"])[:12] in out
    assert "cases differ" in out
    assert call("policy", "remove", str(row["name"]))[0] == 0
    assert not installed()
    code, _, err = call("policy", "remove", str(row["name"]))
    assert code == 2
    assert "there are none" in err


def test_outcomes_that_do_not_fit_are_refused_with_a_remedy_that_the_command_has(tmp_path, model, monkeypatch):
    def fails(identity, tasks, strategies, seeds, store, remedy):
        raise PolicyError(f"another recipe; {remedy}")

    monkeypatch.setattr(collecting, "missing", fails)
    file = tasks_file(tmp_path, *(task(f"family{n}", queries=[{"input": [5, n], "output": [n, 5]}]) for n in range(5)))
    code, _, err = fit(file, model)
    assert code == 2
    assert "another recipe; delete the folder" in err
    assert "the same command measures everything again" in err
    assert "--store" not in err


def test_too_few_families_and_missing_answers_are_refused_before_anything_is_measured(tmp_path, model):
    code, _, err = fit(tasks_file(tmp_path, task("a"), task("b", queries=[{"input": [7, 8], "output": [8, 7]}])), model)
    assert code == 2
    assert "expected tasks of at least 4 families, so that some can be held out; received 2" in err
    names = [task(f"f{n}", family=f"f{n}") for n in range(4)]  # the same query in every family
    code, _, err = fit(tasks_file(tmp_path, *names), model)
    assert code == 2
    assert "received 1 (4 names; families that have a query in common count as one)" in err
    unanswered = [task(f"f{n}", queries=[{"input": [5, n]}]) for n in range(5)]
    code, _, err = fit(tasks_file(tmp_path, *unanswered), model)
    assert code == 2
    assert "needs the right answer of every query" in err


@pytest.mark.parametrize(("options", "message"), [
    (("--strategies", "in_context"), "a policy chooses between it and others; name some"),
    (("--risk", "20"), "--risk: expected a share above 0 and below 1; received 20"),
    (("--cost-weight", "-1"), "--cost-weight: expected a number of at least 0; received -1"),
])  # fmt: skip
def test_what_no_policy_can_be_trained_with_is_refused_before_the_model_is_loaded(tmp_path, options, message):
    code, _, err = call("policy", "fit", "--model", str(tmp_path / "none"), "--tasks", str(tmp_path / "none"), *options)
    assert code == 2
    assert message in err.replace("\n", " ")


@pytest.mark.parametrize(("terminal", "yes", "answer", "measures"), [
    (True, False, True, True), (True, False, False, False), (True, True, False, True), (False, False, False, True),
])  # fmt: skip
def test_a_question_is_asked_on_a_terminal_only(monkeypatch, terminal, yes, answer, measures):
    monkeypatch.setattr(policy_fit.sys, "stdin", type("Input", (), {"isatty": lambda self: terminal})())
    monkeypatch.setattr(policy_fit.typer, "confirm", lambda question: answer)
    if measures:
        policy_fit._require_consent(yes)
    else:
        with pytest.raises(policy_fit.typer.Exit):
            policy_fit._require_consent(yes)


def test_a_fit_trains_on_the_tasks_and_strategies_that_it_names(tmp_path, model):
    def file_of(numbers: range) -> str:
        lines = [task(f"family{n}", queries=[{"input": [5, n], "output": [n, 5]}]) for n in numbers]
        (folder := tmp_path / str(numbers.start)).mkdir()
        return tasks_file(folder, *lines)

    assert fit(file_of(range(5)), model)[0] == 0
    code, _, err = call(
        "policy", "fit", "--tasks", file_of(range(5, 10)), "--model", model, "--strategies", "in_context_vote"
    )
    assert code == 0, err
    assert "10 outcomes of other tasks, strategies or seeds" in err
    (row,) = installed()
    assert row["families"] == 5
    code, out, err = call("policy", "show", "--policy", str(row["name"]), "--json")
    assert json.loads(out)["strategies"] == ["in_context", "in_context_vote"], err
