"""The parts of a run's cost, and estimates that were missed."""

from __future__ import annotations

import pytest

from autottt.controller.tracing.cost_parts import cost_parts, cost_sentence, missed_estimates
from autottt.controller.tracing.trace import Trace
from tests.controller.tracing.sample_traces import GRID, LIST, failed_trace, trace_of


@pytest.fixture(scope="module")
def runs() -> dict[str, Trace]:
    return {
        "crossfit": trace_of("ttt_crossfit", GRID), "vote": trace_of("in_context_vote", LIST),
        "probed": trace_of("heuristic", LIST),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["crossfit", "vote", "probed"])
def test_the_parts_add_up_to_the_cost_of_the_run(runs, name):
    *parts, total = cost_parts(runs[name])
    cost = runs[name].result["cost"]
    assert total.name == "total"
    assert sum(part.tokens for part in parts) == total.tokens == cost["forward_tokens"] + 2 * cost["backward_tokens"]
    assert sum(part.seconds for part in parts) == pytest.approx(total.seconds, abs=0.002)
    assert total.seconds == pytest.approx(cost["seconds"])


def test_training_and_the_probe_are_parts_of_their_own(runs):
    names = [part.name for part in cost_parts(runs["crossfit"])]
    assert names[0] == "in-context answer"
    assert "training of ttt_crossfit" in names
    assert any(name.startswith("probe") for name in [part.name for part in cost_parts(runs["probed"])])
    assert not any(name.startswith(("probe", "training")) for name in [p.name for p in cost_parts(runs["vote"])])


def test_the_sum_is_one_sentence_in_in_context_answers(runs):
    total = cost_parts(runs["vote"])[-1]
    text = cost_sentence(runs["vote"])
    assert text.startswith(f"{total.multiple:.1f}x an in-context answer = 1.0x in-context answer + ")
    assert "answers of in_context_vote" in text


@pytest.mark.parametrize(
    ("estimate", "words"),
    [(1.0, "about as estimated"), (0.5, "2.0 times the estimate"), (2.0, "only 50% of the estimate")],
)
def test_an_estimate_is_compared_with_what_was_measured(runs, estimate, words):
    trace = runs["vote"].as_stored()
    attempt, base = trace.attempts[0], trace.result["in_context_tokens"]
    measured = (attempt["cost"]["forward_tokens"] + 2 * attempt["cost"]["backward_tokens"]) / base
    trace.decisions[0]["costs"]["in_context_vote"] = estimate * measured
    trace.in_context["cost"]["seconds"] = attempt["cost"]["seconds"] / measured
    tokens, seconds = missed_estimates(trace)
    assert tokens.endswith(words)
    assert seconds.endswith(words)


def test_nothing_is_summed_or_missed_where_nothing_was_estimated_or_finished(runs):
    assert list(missed_estimates(runs["crossfit"])) == []
    assert cost_parts(failed_trace()) == []
    assert cost_sentence(failed_trace()) == ""
