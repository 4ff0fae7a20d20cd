"""The parts of a run's cost, and estimates that were missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autottt.controller.tracing.candidates import candidates_of
from autottt.controller.tracing.cost_parts import cost_parts, cost_sentence, missed_estimates, time_sentence
from autottt.policies.policy import FixedPolicy
from tests.controller.tracing.sample_traces import LIST, failed_trace, small_learner, trace_of, traces_of


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
    assert seconds.endswith(f"{100 / estimate:.0f}% of it")
    assert "a conversion" in seconds


def test_nothing_is_summed_or_missed_where_nothing_was_estimated_or_finished(runs):
    (text,) = missed_estimates(runs["crossfit"])
    assert text.startswith("The policy did not estimate the cost of ttt_crossfit before the choice")
    assert cost_parts(failed_trace()) == []
    assert cost_sentence(failed_trace()) == ""


def test_a_training_that_stopped_early_is_the_cause_of_a_lower_cost(runs):
    trace = runs["crossfit"].as_stored()
    trace.decisions[0]["costs"]["ttt_crossfit"] = 1e6
    trace.attempts[0]["training_record"]["steps"] = 2
    text = next(missed_estimates(trace))
    assert text.endswith("% of the estimate; training stopped after 2 of at most 3 steps")


def test_an_in_context_answer_misses_no_estimate():
    trace = trace_of("in_context", LIST)
    trace.decisions[0]["costs"]["in_context"] = 0.0
    (text,) = missed_estimates(trace)
    assert "no estimate could be missed" in text
    assert [row.measured_cost for row in candidates_of(trace)] == [0.0]


def test_answers_to_held_out_demonstrations_are_a_part_of_their_own(runs):
    parts = {part.name: part for part in cost_parts(runs["crossfit"])}
    held_out = parts["answers to held-out demonstrations during training of ttt_crossfit"]
    assert held_out.seconds > 0
    assert held_out.tokens > 0
    assert "answers of ttt_crossfit" in parts


def test_the_seconds_of_the_timeline_are_those_of_the_cost_and_what_lies_between_the_nodes(runs):
    trace = runs["vote"].as_stored()
    cost = trace.result["cost"]["seconds"]
    trace.root["seconds"] = cost + 0.25
    assert "0.25 s between them" in time_sentence(trace)
    trace.root["seconds"] = cost - 0.25
    assert "0.25 s of these" in time_sentence(trace)
    assert time_sentence(failed_trace()) == ""


def test_training_in_a_batch_and_waiting_are_named_and_the_cost_does_not_count_what_others_are_charged_with():
    tasks = [replace(LIST, id=f"rev {number}", query=(6, number)) for number in range(2)]
    trace, _ = traces_of(small_learner(), FixedPolicy("ttt_in_context"), tasks, together=True)
    before, waiting = (span for span in trace.root["children"] if span["name"] == "wait")
    (training,) = waiting["children"]
    for span, seconds in ((trace.root, 19.7), (before, 1.0), (waiting, 13.0), (training, 12.3)):
        span["seconds"] = seconds
    text = time_sentence(trace)
    assert text.startswith("The timeline shows 19.7 s: ")
    assert "12.3 s of training in a batch of 2 tasks, 1.7 s of waiting for other tasks, and 5." in text
    assert f"The cost counts {trace.seconds:.3g} s of them: it leaves out waiting" in text
    assert trace.stages()["wait"] == pytest.approx(1.7 + 12.3 / 2)
    assert trace.stages()["train"] == pytest.approx(12.3 / 2)


def test_a_run_that_waited_for_nothing_says_nothing_of_waiting(runs):
    assert "waiting" not in time_sentence(runs["vote"])
