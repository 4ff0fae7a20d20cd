"""What the card of an answer says."""

from __future__ import annotations

from autottt.controller.tracing.answers import card_sentences, moment
from tests.controller.tracing.sample_traces import LIST, trace_of


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
