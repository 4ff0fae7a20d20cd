"""What a page shows of a trace."""

from __future__ import annotations

import json

import pytest

from autottt.controller.tracing.trace import Trace
from autottt.controller.tracing.view import KEPT, MOST_ATTRIBUTE, view_of
from autottt.strategies.registry import strategies
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import (
    GRID,
    failed_trace,
    long_trace,
    span,
    trace_of,
    trace_with,
)


def view(trace: Trace):
    return view_of(trace, list(strategies()))


@pytest.fixture(scope="module")
def crossfit() -> Trace:
    return trace_of("ttt_crossfit", GRID)


def test_every_span_is_a_step_in_order(crossfit):
    steps = view(crossfit)["steps"]
    assert [step["name"] for step in steps][:2] == ["run", "measure"]
    assert [step["depth"] for step in steps][:2] == [0, 1]
    assert sum(step["depth"] == 1 for step in steps) == len(crossfit.nodes)


def test_visits_of_the_graph_are_the_steps_of_its_nodes(crossfit):
    shown = view(crossfit)
    graph = shown["graph"]
    assert graph["edges"] == crossfit.edges
    assert graph["strategies"] == list(strategies())
    assert sum(map(len, graph["visits"].values())) == len(crossfit.nodes)
    assert "ttt_crossfit" in graph["visits"]
    for name, visits in graph["visits"].items():
        assert {shown["steps"][visit["step"]]["name"] for visit in visits} == {name}


def test_a_strategy_that_is_not_installed_here_is_in_the_graph(crossfit):
    assert "ttt_crossfit" in view_of(crossfit, ["in_context"])["graph"]["strategies"]


def test_the_first_step_shown_is_the_last_attempt_or_where_the_run_ended(crossfit):
    shown = view(crossfit)
    assert shown["steps"][shown["first_step"]]["name"] == crossfit.attempts[-1]["strategy"]
    failed = view(failed_trace())
    assert failed["steps"][failed["first_step"]]["name"] == "measure"
    empty = view(trace_with(span("run", attributes={"edges": []})))
    assert empty["first_step"] == 0


def test_training_has_its_losses_and_held_out_demonstrations(crossfit):
    (adapter,) = view(crossfit)["training"]
    record = crossfit.attempts[0]["training_record"]
    assert adapter["losses"] == list(enumerate(record["losses"], start=1))
    assert adapter["cross_validation"] == crossfit.attempts[0]["cross_validation"]
    assert adapter["identity"]["rank"] == 2
    assert all(0 <= share <= 100 for _, share in adapter["held_out"])


def test_losses_of_a_training_that_failed_come_from_its_events():
    (adapter,) = view(long_trace())["training"]
    assert adapter["losses"][:2] == [(1, 1.0), (2, 0.5)]
    assert adapter["held_out"][0] == (10, 0.0)
    assert adapter["stopped"] == "ended by an error"


def test_an_answer_is_right_by_the_comparison_of_its_task():
    trace = trace_of("in_context", make_task([("a", "b"), ("c", "d")], "e", kind="text"))
    trace.attempts[-1]["value"] = "Paris"
    facts = trace.attributes["task"]
    for comparison, right in (("exact", False), ("ignore_case", True)):
        facts |= {"answer": "paris", "comparison": comparison}
        assert view(trace)["answers"][0]["right"] is right


def test_candidates_have_their_gain_over_the_in_context_answer():
    decision = {
        "strategy": "b", "reason": "r", "scores": {"in_context": 0.25, "b": 0.75},
        "costs": {"in_context": 0.0, "b": 9.0}, "utilities": {"in_context": 0.25, "b": 0.5},
    }  # fmt: skip
    node = span("decide", attributes={"node": "decide", "decision": decision})
    root = span("run", attributes={"edges": [], "policy": {"name": "p", "thresholds": {"cost_weight": 0.03}}})
    shown = view(trace_with({**root, "children": [node]}))
    assert [(row["strategy"], row["gain"]) for row in shown["candidates"]] == [("b", 0.25), ("in_context", 0.0)]
    assert "0.03 × cost" in shown["note"]


def test_measured_costs_have_the_unit_of_the_estimates(crossfit):
    """Not that of an in-context answer whose prompt was cached in part."""
    crossfit.in_context["cost"]["forward_tokens"] = 1
    cost, tokens = crossfit.attempts[0]["cost"], crossfit.result["in_context_tokens"]
    row = next(row for row in view(crossfit)["candidates"] if row["strategy"] == "ttt_crossfit")
    assert tokens > 1
    assert row["measured_cost"] == (cost["forward_tokens"] + 2 * cost["backward_tokens"]) / tokens


def test_a_long_attribute_keeps_its_beginning_and_end():
    values = list(range(MOST_ATTRIBUTE))
    node = span("measure", attributes={"node": "measure", "numbers": values, "seed": 3})
    shown = view(trace_with(span("run", attributes={"edges": [], "seed": 4}, children=[node])))
    numbers = shown["steps"][1]["attributes"]["numbers"]
    assert numbers.startswith("[0, 1, 2")
    assert numbers.endswith(f"{MOST_ATTRIBUTE - 1}]")
    assert len(numbers) < 2 * KEPT + 200
    assert shown["steps"][1]["attributes"]["seed"] == 3
    assert shown["setup"]["seed"] == "4"
    assert "seed" not in shown["steps"][0]["attributes"]


def test_a_view_is_plain_json(crossfit):
    for trace in (crossfit, long_trace(), failed_trace()):
        shown = json.loads(json.dumps(view(trace), allow_nan=False))
        assert shown["steps"][0]["name"] == "run"
