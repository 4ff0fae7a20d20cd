"""What is said of the answers of a run."""

from __future__ import annotations

from autottt.controller.tracing.answers import card_sentences, moment
from autottt.controller.tracing.comparison import compare
from autottt.controller.tracing.explanation import explanation
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import LIST, trace_of


def test_a_wrong_answer_stands_beside_the_query_and_the_right_one():
    trace = trace_of("ttt_direct", LIST)
    trace.in_context.update(value=[6, 2])
    trace.attempts[0].update(value=[2, 6])
    text = explanation(trace)
    assert "Query: [6, 2].\nAnswer of in_context: [6, 2], wrong.\nIt has 2 numbers, as the right answer; 2 of 2" in text
    assert "Answer of ttt_direct: [2, 6], right.\nRight answer: [2, 6].\n" in text
    trace.attempts[0].update(value=None)
    assert "Answer of ttt_direct: none, wrong." in explanation(trace)
    trace.plain["content"] = False
    assert "Query" not in explanation(trace)


def test_a_long_value_is_shortened():
    trace = trace_of("in_context", make_task([("a", "b")], "word " * 70))
    assert "... (352 characters)." in explanation(trace)


def test_an_estimate_by_a_rule_of_thumb_is_called_one():
    text = explanation(trace_of("in_context", LIST))
    assert "Candidate in_context (chosen): by a rule of thumb, calibrated on no model, right at 0" in text


def test_without_a_demonstration_to_hold_out_no_probe_and_no_usable_candidate_is_claimed():
    trace = trace_of("heuristic", make_task([], [6, 2]))
    decision = trace.decisions[0]
    decision["scores"], decision["utilities"] = {"in_context": 0.2, "ttt_direct": 0.5}, {"in_context": 0.2}
    text = explanation(trace)
    assert "features were measured, without the probe: no demonstration can be held out." in text
    assert "Candidate ttt_direct (not usable here)" in text


def test_a_difference_of_paths_shows_where_each_ends():
    first, second = trace_of("in_context", LIST), trace_of("zero_shot", LIST)
    lines = [str(difference) for difference in compare(first, second)]
    path = "measure, decide, {}, judge, revert"
    assert any(f"{path.format('in_context')} -> {path.format('zero_shot')}" in line for line in lines)


def test_answers_are_labelled_as_before_after_or_without_training():
    trained, kept = trace_of("ttt_direct", LIST), trace_of("in_context", LIST)
    assert moment(trained, trained.in_context) == "before training"
    assert moment(trained, trained.attempts[0]) == "after training"
    assert moment(kept, kept.in_context) == "without training"


def test_the_probability_of_the_tokens_is_told_from_that_of_a_right_answer():
    trace = trace_of("ttt_direct", LIST)
    decision = trace.decisions[0]
    decision["scores"], decision["utilities"] = {"in_context": 0.25, "ttt_direct": 0.5}, {"in_context": 0.25}
    trace.in_context.update(value=[6, 2], confidence=0.125)
    text = " ".join(card_sentences(trace, trace.in_context))
    assert "the model gave its token sequence probability 0.12" in text
    assert "not how likely this is to be right" in text
    assert "right with probability 0.250; the decision used this number" in text
    assert "it repeats the query" in text
    trace.attempts[0].update(value=[2, 6], confidence=0.5)
    text = " ".join(card_sentences(trace, trace.attempts[0]))
    assert "the adapted model gave" in text
    assert "repeats" not in text


def test_a_vote_has_its_counts_and_no_probability_of_tokens():
    trace = trace_of("in_context_vote", LIST)
    attempt = {**trace.attempts[0], "candidates": [{"value": [2, 6], "share": 1.0}]}
    assert "token sequence" not in " ".join(card_sentences(trace, attempt))
