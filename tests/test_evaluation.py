"""What an evaluation says of its rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autottt.controller.controller import Controller
from autottt.controller.evaluation import (
    CONTROLLER,
    Row,
    _second_is_right,
    accuracy_interval,
    evaluate,
    read_rows,
    summarise,
)
from autottt.policies.policy import FixedPolicy
from autottt.strategies.base import Attempt, Candidate
from autottt.ttt_core.kinds import make_task


def row(group: str, query: int, strategy: str, right: bool, **more: object) -> Row:
    given = {"seconds": 1.0, "work": 10, "adapted": False, "status": "answered", **more}
    return Row("set", group, group, f"{group}#{query}", strategy, right, chosen=strategy, **given)  # type: ignore[arg-type]


def test_a_task_is_right_when_all_its_queries_are():
    rows = [row("a", 0, "in_context", True), row("a", 1, "in_context", False), row("b", 0, "in_context", True)]
    (summary,) = summarise(rows)
    assert summary.query_accuracy == pytest.approx(2 / 3)
    assert summary.task_accuracy == pytest.approx(1 / 2)
    assert (summary.queries, summary.tasks, summary.cost) == (3, 2, 1.0)


def test_costs_are_multiples_of_in_context_on_the_same_queries():
    rows = [row("a", 0, "in_context", True), row("a", 0, "ttt_direct", True, seconds=7.0, work=300, adapted=True)]
    summary = summarise(rows)[1]
    assert (summary.cost, summary.work, summary.adapted) == (7.0, 30.0, 1.0)


def test_refused_queries_are_counted_and_wrong():
    (summary,) = summarise([row("a", 0, "in_context", False, status="refused"), row("b", 0, "in_context", True)])
    assert (summary.refused, summary.query_accuracy) == (1, 0.5)


def test_the_interval_comes_from_whole_families():
    one = [row("a", i, "in_context", True) for i in range(50)]
    assert accuracy_interval(one) == (1.0, 1.0)
    low, high = accuracy_interval([*one, *(row("b", i, "in_context", False) for i in range(50))])
    assert (low, high) == (0.0, 1.0)


def test_a_second_attempt_is_the_second_of_the_answers_voted_for():
    task = make_task([([1], [2]), ([3], [4])], [5], answer=[6])
    shares = ((7,), 0.5), ((6,), 0.3), ((8,), 0.2)
    attempt = Attempt("in_context_vote", (7,), "7", 0.5, tuple(Candidate(v, s) for v, s in shares))
    assert _second_is_right(attempt, task)
    assert not _second_is_right(replace(attempt, candidates=attempt.candidates[1:]), task)
    assert not _second_is_right(replace(attempt, candidates=()), task)


def test_a_torn_row_of_an_interrupted_run_is_dropped(tmp_path):
    from dataclasses import asdict

    whole = json.dumps(asdict(row("a", 0, "in_context", True)))
    (tmp_path / "rows").write_text(whole + "\n" + whole[:30])
    assert read_rows(tmp_path / "rows") == [row("a", 0, "in_context", True)]
    assert read_rows(tmp_path / "none") == []


def test_a_row_after_a_torn_one_is_whole(tmp_path, make_learner, task):
    from dataclasses import asdict

    controller = Controller(make_learner(), FixedPolicy("in_context"))
    file = tmp_path / "rows"
    first = evaluate(controller, [task], ["zero_shot"], file=file)
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1][:30])
    again = evaluate(controller, [task], ["zero_shot"], file=file)
    assert [r.strategy for r in again] == [r.strategy for r in first]
    assert sorted(asdict(r)["strategy"] for r in read_rows(file)) == ["in_context", "zero_shot"]


def test_the_controller_pays_for_an_adapter_that_a_strategy_trained_before(make_learner, task, monkeypatch):
    learner = make_learner()
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    other = replace(task, id="other", query=task.demonstrations[0].input, answer=task.demonstrations[0].output)
    alone = evaluate(controller, [task, other], [CONTROLLER])[2:]
    trained: list[int] = []
    train = learner.adapt
    monkeypatch.setattr(learner, "adapt", lambda *a, **k: trained.append(1) or train(*a, **k))
    rows = evaluate(controller, [task, other], ["ttt_in_context", CONTROLLER])[2:]
    assert len(trained) == 1
    assert [r.adapted for r in rows] == [True] * 4
    assert [r.work for r in rows[2:]] == [r.work for r in alone]
    assert rows[2].work > 2 * rows[3].work, "the first query pays for the adapter"
    assert rows[2].seconds > rows[1].seconds
    assert [r.right for r in rows[2:]] == [r.right for r in alone]
