"""A model with NaN in its weights: what is written is standard JSON, and the status says that there is no answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autottt.controller.cli.answer_files import line_of
from autottt.controller.controller import Controller
from autottt.controller.evaluation import evaluate
from autottt.controller.events import OnEvent
from autottt.controller.results import Result
from autottt.controller.run_facts import RunFacts
from autottt.policies.policy import BUNDLED, FixedPolicy
from autottt.policies.serving_logs import drift, outcomes_of, read_log, skipped_counts, summary
from autottt.strategies.registry import strategies
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="reverse")
QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, max_steps=2, batch_size=2, transformations=2, views=3)


def standard(text: str) -> Any:
    """The value of JSON without Python's additions to it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not in the standard")

    return json.loads(text, parse_constant=refuse)


def damaged_model() -> Any:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = math.nan
    return model


@pytest.fixture(scope="module")
def learner() -> Learner:
    learner = Learner.wrap(damaged_model(), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    return learner


@pytest.fixture(scope="module")
def results(learner: Learner) -> dict[str, Result]:
    """The result of every strategy, and of the default policy."""
    answers = {name: Controller(learner, FixedPolicy(name)).solve(TASK) for name in strategies()}
    return {**answers, "default policy": Controller(learner).solve(TASK)}


def test_lines_are_standard_json_with_the_status_and_null(results: dict[str, Result], learner: Learner) -> None:
    facts = RunFacts.of(learner, Controller(learner).policy)
    for result in results.values():
        assert standard(line_of(result))["status"] == "no_answer"
        whole = standard(line_of(result, facts, content=True))
        assert whole["status"] == "no_answer"
        assert whole["features"]["answer_entropy_mean"] is None
        assert whole["features"]["demonstrations"] == 3.0


def test_the_prompt_format_is_the_default_where_it_would_be_chosen() -> None:
    learner = Learner.wrap(damaged_model(), tiny_tokenizer())
    result = Controller(learner, FixedPolicy("in_context")).solve(TASK)
    assert (result.status, learner.formats.choose(TASK).name) == ("no_answer", "standard")
    assert standard(line_of(result, RunFacts.of(learner, FixedPolicy("in_context")), content=True))


@pytest.mark.parametrize("on_event", [None, lambda event: None])
def test_tasks_that_are_trained_together_have_results(learner: Learner, on_event: OnEvent | None) -> None:
    tasks = [TASK, make_task([*((d.input, d.output) for d in TASK.demonstrations), ([7], [7])], [1, 2], id="other")]
    results = Controller(learner, FixedPolicy("ttt_in_context")).solve_many(tasks, on_event=on_event)
    assert [result.status for result in results] == ["no_answer"] * 2


def test_a_result_comes_back_from_json(results: dict[str, Result]) -> None:
    for result in results.values():
        plain = standard(json.dumps(result.to_plain(content=True), allow_nan=False))
        again = Result.from_plain(plain)
        assert repr(replace(again, trace=(), decision={})) == repr(replace(result, trace=(), decision={}))
        assert again.to_plain(content=True) == result.to_plain(content=True)


def test_rows_of_an_evaluation_are_standard_json(learner: Learner, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = evaluate(Controller(learner), [TASK], list(strategies()), file=file)
    lines = [standard(line) for line in file.read_text().splitlines()]
    assert [line["status"] for line in lines[1:]] == [row.status for row in rows]
    assert "answered" not in {row.status for row in rows}


def test_a_log_is_read_and_its_queries_are_no_outcomes(results: dict[str, Result], tmp_path: Path) -> None:
    from autottt.policies.bundle import load_bundle

    file = tmp_path / "answers.jsonl"
    file.write_text("".join(line_of(result, RunFacts({}, {}, {})) + "\n" for result in results.values()))
    rows = read_log([file])
    assert len(rows) == len(results)
    assert outcomes_of(rows) == []
    assert sum(skipped_counts(rows).values()) == len(rows)
    shipped = load_bundle(BUNDLED)
    report = summary(rows, shipped)
    assert report["not_finite"] == len(rows)
    assert "drift" not in report
    finite = {name: 1.0 if value is None else value for name, value in rows[0]["features"].items()}
    measured = {**rows[0], "features": finite}
    report = summary([*rows, measured], shipped)
    assert report["not_finite"] == len(rows)
    assert report["drift"].keys() == {d.feature for d in drift(shipped, [measured])}
