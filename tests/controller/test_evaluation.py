"""What an evaluation says of its rows."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from rich.console import Console

from autottt.controller.cli.display import show_summary
from autottt.controller.controller import Controller
from autottt.controller.evaluation import (
    CONTROLLER,
    Row,
    _second_is_right,
    accuracy_interval,
    evaluate,
    read_rows,
    read_settings,
    summarise,
)
from autottt.policies.bundle import load_bundle
from autottt.policies.policy import ANY_MODEL_SHIPPED, AnyModelPolicy, FixedPolicy, LearnedPolicy
from autottt.strategies.base import Attempt, Candidate
from autottt.ttt_core.clock import without_pauses
from autottt.ttt_core.errors import StrategyError, TaskError
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task


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


def test_costs_count_only_queries_that_both_could_try():
    rows = [
        row("a", 0, "in_context", True, seconds=2.0, work=20), row("b", 0, "in_context", True, seconds=8.0, work=80),
        row("c", 0, "in_context", False, status="refused", seconds=0.0, work=0),
        row("a", 0, "ttt_direct", True, seconds=6.0, work=80),
        row("b", 0, "ttt_direct", False, status="inapplicable", seconds=0.0, work=0),
        row("c", 0, "ttt_direct", True, seconds=5.0, work=50),
    ]  # fmt: skip
    summary = summarise(rows)[1]
    assert (summary.cost, summary.work, summary.seconds) == (3.0, 4.0, 11.0)


def test_without_a_query_that_both_could_try_there_is_no_cost():
    rows = [
        row("a", 0, "in_context", False, status="refused", seconds=0.0, work=0), row("a", 0, "zero_shot", True),
    ]  # fmt: skip
    summary = summarise(rows)[1]
    assert (summary.cost, summary.work) == (None, None)
    line = next(line for line in shown(rows).splitlines() if "zero_shot" in line)
    assert line.split()[-4:] == ["1.0", "-", "-", "0%"]


def test_refused_queries_are_counted_and_wrong():
    (summary,) = summarise([row("a", 0, "in_context", False, status="refused"), row("b", 0, "in_context", True)])
    assert (summary.refused, summary.query_accuracy) == (1, 0.5)


def test_a_strategy_with_too_few_demonstrations_is_inapplicable_and_wrong(make_learner):
    controller = Controller(make_learner(), FixedPolicy("in_context"))
    single = make_task([([1], [1])], [2], answer=[2])
    row = evaluate(controller, [single], ["ttt_in_context"])[1]
    assert (row.status, row.right) == ("inapplicable", False)
    assert "needs 2 demonstrations; the task has 1" in row.error
    assert (summarise([replace(row, strategy="in_context")])[0].inapplicable) == 1


def shown(rows: list[Row]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(show_summary(summarise(rows)))
    return capture.get()


def test_queries_that_could_not_be_tried_are_noted_for_each_strategy():
    rows = [
        row("a", 0, "in_context", True), row("b", 0, "in_context", False, status="refused"),
        row("a", 0, "ttt_direct", True), row("b", 0, "ttt_direct", False, status="refused"),
        row("a", 0, "ttt_crossfit", False, status="inapplicable", seconds=0.0, work=0),
        row("b", 0, "ttt_crossfit", False, status="inapplicable", seconds=0.0, work=0),
    ]  # fmt: skip
    text = shown(rows)
    assert "set: 1 of 2 queries are over-long for in_context, ttt_direct; they count as wrong" in text
    assert "set: 2 of 2 queries have too few demonstrations for ttt_crossfit; they count as wrong" in text
    assert "0.0x" not in text
    assert "they count as wrong" not in shown(rows[:1])


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
    whole = json.dumps(asdict(row("a", 0, "in_context", True)))
    (tmp_path / "rows").write_text(whole + "\n" + whole[:30])
    assert read_rows(tmp_path / "rows") == [row("a", 0, "in_context", True)]
    assert read_rows(tmp_path / "none") == []


ODD = (None, True, -1, 1.5, float("nan"), 10**400, 2**63, "text", "\ud800", [], [1], {}, {"a": 1})


def is_valid(name: str, value: object) -> bool:
    wanted = {f.name: f.type for f in fields(Row)}[name]
    if wanted == "float":
        return value == 1.5 or (type(value) is int and value == -1)
    return {"str": value == "text", "bool": value is True, "int": type(value) is int and value == -1}[str(wanted)]


@pytest.mark.parametrize("name", [f.name for f in fields(Row)])
def test_a_row_with_a_field_of_another_type_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    file, sound = tmp_path / "rows", asdict(row("a", 0, "in_context", True))
    for value in ODD:
        file.write_text(json.dumps({"settings": {}}) + "\n" + json.dumps({**sound, name: value}) + "\n")
        if is_valid(name, value):
            assert len(read_rows(file)) == 1
        else:
            with pytest.raises(TaskError, match=rf"rows:2: {name}: expected a .*; received .*; remove the line"):
                read_rows(file)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "expected a row of an evaluation; received"),
        ("3", "expected a row of an evaluation"),
        ('{"id": "a"}', "the field dataset is missing"),
        (json.dumps({**asdict(row("a", 0, "in_context", True)), "more": 1}), "unknown field 'more'"),
    ],
)
def test_a_line_that_is_no_row_is_refused(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(line + "\n")
    with pytest.raises(TaskError, match=problem):
        read_rows(tmp_path / "rows")


@pytest.mark.parametrize("torn", [b'{"dataset": "s\xff', b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000, b'"\n'])
def test_a_line_that_is_not_json_is_skipped(torn: bytes, tmp_path: Path) -> None:
    sound = row("a", 0, "in_context", True)
    (tmp_path / "rows").write_bytes(torn + b"\n" + json.dumps(asdict(sound)).encode())
    assert read_rows(tmp_path / "rows") == [sound]
    assert read_settings(tmp_path / "rows") is None


@pytest.mark.parametrize("name", ["dataset", "family", "group", "digest"])
def test_rows_of_a_query_of_another_place_are_not_continued(name: str, tmp_path: Path, make_learner, task) -> None:
    controller, file = Controller(make_learner(), FixedPolicy("in_context")), tmp_path / "rows"
    evaluate(controller, [task], [], file=file)
    settings, line = file.read_text().splitlines()
    file.write_text(settings + "\n" + json.dumps({**json.loads(line), name: "other"}) + "\n")
    with pytest.raises(TaskError, match="holds a row of another query"):
        evaluate(controller, [task], [], file=file)


def test_rows_of_other_settings_are_not_continued(tmp_path: Path, make_learner, task, monkeypatch) -> None:
    learner, file = make_learner(), tmp_path / "rows"
    controller = Controller(learner, FixedPolicy("in_context"))
    evaluate(controller, [task], [], file=file)
    with monkeypatch.context() as patch:
        patch.setattr(learner, "loaded", replace(learner.loaded, recipes={"ttt_in_context": Recipe(max_steps=7)}))
        with pytest.raises(TaskError, match=r'other settings \(recipes: ".*" before, ".*" now\)'):
            evaluate(controller, [task], [], file=file)
    with pytest.raises(TaskError, match=r'budget: "unlimited" before, "3s" now'):
        evaluate(Controller(learner, FixedPolicy("in_context"), budget="3s"), [task], [], file=file)
    with monkeypatch.context() as patch:
        patch.setattr(type(learner.adapters), "starting_digest", "0a1b+read")
        with pytest.raises(TaskError, match=r'starting_adapter: "none" before, "0a1b\+read" now'):
            evaluate(controller, [task], [], file=file)
    with pytest.raises(TaskError, match="another right answer"):
        evaluate(controller, [replace(task, answer=(1,))], [], file=file)


def test_rows_of_an_earlier_version_are_continued_with_a_warning(tmp_path: Path, make_learner, task, caplog) -> None:
    controller, file = Controller(make_learner(), FixedPolicy("in_context")), tmp_path / "rows"
    rows = evaluate(controller, [task], [], file=file)
    settings, line = map(json.loads, file.read_text().splitlines())
    for name in ("budget", "recipes", "starting_adapter"):
        del settings["settings"][name]
    file.write_text(json.dumps(settings) + "\n" + json.dumps({**line, "expected": ""}) + "\n")
    assert evaluate(controller, [task], [], file=file) == [replace(rows[0], expected="")]
    assert "did not note budget, recipes, starting_adapter" in caplog.text


def test_a_row_after_a_torn_one_is_whole(tmp_path, make_learner, task):

    controller = Controller(make_learner(), FixedPolicy("in_context"))
    file = tmp_path / "rows"
    first = evaluate(controller, [task], ["zero_shot"], file=file)
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1][:30])
    again = evaluate(controller, [task], ["zero_shot"], file=file)
    assert [r.strategy for r in again] == [r.strategy for r in first]
    assert sorted(asdict(r)["strategy"] for r in read_rows(file)) == ["in_context", "zero_shot"]


def test_rows_of_other_settings_are_not_gone_on_with(tmp_path, make_learner, task):
    file, learner = tmp_path / "rows", make_learner()
    controller = Controller(learner, FixedPolicy("in_context"))
    rows = evaluate(controller, [task], [], file=file)
    assert read_settings(file)["seed"] == 0
    assert read_settings(file)["model"] == learner.base_hash
    before = file.read_text()
    assert len(before.splitlines()) == 1 + len(rows)
    evaluate(controller, [task], [], file=file)
    others = [
        (controller, 7),
        (Controller(learner, FixedPolicy("zero_shot")), 0),
        (Controller(make_learner(seed=1), FixedPolicy("in_context")), 0),
    ]
    for other, seed in others:
        with pytest.raises(TaskError, match=r"was started with other settings .* before, .* now\): .*to start again"):
            evaluate(other, [task], [], seed=seed, file=file)
    with pytest.raises(TaskError, match="holds a row of another query called 'task'"):
        evaluate(controller, [replace(task, query=(1, 2))], [], file=file)
    assert file.read_text() == before


def test_rows_without_settings_are_gone_on_with(tmp_path, make_learner, task):
    file = tmp_path / "rows"
    place = {name: getattr(task, name) for name in ("id", "dataset", "family", "group")}
    kept = replace(row("task", 0, "in_context", True), **place)
    plain = {name: value for name, value in asdict(kept).items() if name != "digest"}
    file.write_text(json.dumps(plain) + "\n")
    controller = Controller(make_learner(), FixedPolicy("in_context"))
    assert evaluate(controller, [task], ["zero_shot"], file=file)[0] == kept
    assert read_settings(file) is None


def test_names_and_answers_are_checked_before_anything_is_written(tmp_path, make_learner, task):
    controller, file = Controller(make_learner(), FixedPolicy("in_context")), tmp_path / "rows"
    with pytest.raises(TaskError, match="right answer"):
        evaluate(controller, [task, replace(task, answer=None)], [], file=file)
    with pytest.raises(StrategyError, match="magic"):
        evaluate(controller, [task], ["magic"], file=file)
    assert not file.exists()


def test_resuming_between_the_queries_of_a_task_gives_the_rows_of_an_uninterrupted_run(make_learner, task, tmp_path):
    other = replace(task, id="other", query=task.demonstrations[0].input, answer=task.demonstrations[0].output)
    controller, file = Controller(make_learner(), FixedPolicy("in_context")), tmp_path / "rows"
    whole = evaluate(controller, [task, other], ["ttt_in_context"], file=file)
    lines = file.read_text().splitlines(keepends=True)
    for stored in range(1, len(lines)):
        file.write_text("".join(lines[:stored]))
        resumed = evaluate(controller, [task, other], ["ttt_in_context"], file=file)
        assert [(r.id, r.strategy, r.work, r.right) for r in resumed] == [
            (r.id, r.strategy, r.work, r.right) for r in whole
        ]
        assert evaluate(controller, [task, other], ["ttt_in_context"], file=file) == resumed


def test_the_seconds_left_of_a_training_leave_out_pauses(make_learner, task):
    events: list[dict] = []
    with without_pauses(lambda: 1e6):
        evaluate(Controller(make_learner(), FixedPolicy("in_context")), [task], ["ttt_direct"], on_event=events.append)
    first = next(event for event in events if event["event"] == "step")
    assert first["max_steps"] > 1
    assert 0 < first["seconds_left"] < 1e3


def test_the_controller_pays_for_an_adapter_that_a_strategy_trained_before(make_learner, task, monkeypatch):
    learner = make_learner()
    controller = Controller(learner, FixedPolicy("ttt_in_context"))
    other = replace(task, id="other", query=task.demonstrations[0].input, answer=task.demonstrations[0].output)
    alone = evaluate(controller, [task, other], [CONTROLLER])[2:]
    trained: list[int] = []
    train = learner.trainer.adapt_many
    monkeypatch.setattr(learner.trainer, "adapt_many", lambda *a, **k: trained.append(1) or train(*a, **k))
    rows = evaluate(controller, [task, other], ["ttt_in_context", CONTROLLER])[2:]
    assert len(trained) == 1
    assert [r.adapted for r in rows] == [True] * 4
    assert [r.work for r in rows[2:]] == [r.work for r in alone]
    assert rows[2].work > 2 * rows[3].work, "the first query pays for the adapter"
    assert rows[2].seconds > rows[1].seconds
    assert [r.right for r in rows[2:]] == [r.right for r in alone]


def test_a_resumed_evaluation_calibrates_its_policy_as_an_uninterrupted_one(tmp_path, make_learner) -> None:
    tasks = [
        make_task([([n, 2], [2, n]), ([3, n], [n, 3]), ([n, n], [n, n])], [5, n], answer=[n, 5], id=str(n))
        for n in range(1, 5)
    ]  # fmt: skip

    def policy_after(count: int, file: Path) -> list[str]:
        controller = Controller(make_learner(), AnyModelPolicy(LearnedPolicy(load_bundle(ANY_MODEL_SHIPPED))))
        rows = evaluate(controller, tasks[:count], [CONTROLLER], file=file)
        return [each.calibration for each in rows if each.strategy == CONTROLLER]

    whole = policy_after(4, tmp_path / "whole.jsonl")
    assert len(set(whole)) == 4
    assert policy_after(2, tmp_path / "interrupted.jsonl") == whole[:2]
    assert policy_after(4, tmp_path / "interrupted.jsonl") == whole
