"""By how much a choice led, what lost by its cost, and which strategies were not compared."""

from __future__ import annotations

import pytest

from autottt.controller.tracing.candidates import candidates_of, mark_of
from autottt.controller.tracing.choice import margin_sentences, not_compared, shadow_sentences, threshold_sentences
from autottt.controller.tracing.explanation import explanation
from autottt.controller.tracing.summary import summary_of
from autottt.controller.tracing.trace import Trace
from autottt.strategies.registry import strategies
from tests.controller.tracing.sample_traces import LIST, span, trace_of, trace_with


def decided(scores: dict[str, float], costs: dict[str, float], chosen: str, demonstrations: int = 3) -> Trace:
    """A run whose policy estimated these scores and costs, at a cost weight of 0.001."""
    utilities = {name: scores[name] - 0.001 * costs[name] for name in scores}
    decision = {"strategy": chosen, "reason": "r", "scores": scores, "costs": costs, "utilities": utilities}
    node = span("decide", attributes={"node": "decide", "decision": decision})
    policy = {"name": "p", "thresholds": {"cost_weight": 0.001}}
    facts = {"edges": [], "policy": policy, "sizes": {"demonstration_count": demonstrations}}
    return trace_with(span("run", attributes=facts, children=[node]))


SCORES = {"in_context": 0.5, "in_context_vote": 0.52, "ttt_in_context": 0.6}
COSTS = {"in_context": 0.0, "in_context_vote": 30.0, "ttt_in_context": 150.0}


def test_the_lead_over_the_second_is_in_utility():
    lead, _ = margin_sentences(decided(SCORES, COSTS, "in_context"))
    assert lead == "in_context led the second, in_context_vote, by 0.010 in expected utility (0.500 against 0.490)"


@pytest.mark.parametrize(
    ("decision", "sentence"),
    [
        ({"shadow": ""}, None),
        ({"shadow": "ttt_direct"}, "The shadow policy chose ttt_direct instead"),
        ({"shadow": "in_context"}, "The shadow policy chose in_context as well"),
        ({"shadow": "ttt_direct", "policy_choice": "ttt_direct"}, "The shadow policy chose ttt_direct as well"),
        (
            {"shadow": "ttt_direct", "shadow_had_features": False},
            "The shadow policy chose ttt_direct instead, without features that it would have measured",
        ),
        ({"shadow": "failed: ValueError: no"}, "The shadow policy failed: ValueError: no"),
    ],
)
def test_the_choice_of_a_shadow_policy_is_named_wherever_a_run_is_explained(decision, sentence):
    trace = decided(SCORES, COSTS, "in_context")
    trace.decisions[0].update(decision)  # type: ignore[attr-defined]
    assert list(shadow_sentences(trace)) == [sentence] * (sentence is not None)
    texts = explanation(trace), " ".join(fact.text for fact in summary_of(trace))
    assert [f"{sentence or 'shadow'}." in text for text in texts] == [sentence is not None] * 2


def test_a_strategy_that_lost_by_its_cost_alone_is_named():
    _, lost = margin_sentences(decided(SCORES, COSTS, "in_context"))
    assert lost.startswith("ttt_in_context was likelier to be right (0.600 against 0.500) and lost only because of its")
    assert "its lead of 0.100 in probability is worth less than the 0.150" in lost


def test_a_choice_that_is_the_likeliest_to_be_right_lost_nothing_to_cost():
    _, text = margin_sentences(decided(SCORES, {**COSTS, "ttt_in_context": 10.0}, "ttt_in_context"))
    assert text == "No candidate was likelier to be right than ttt_in_context"


def test_a_choice_against_the_utilities_is_called_so():
    (text,) = margin_sentences(decided(SCORES, COSTS, "in_context_vote"))
    assert text.startswith("in_context had a higher expected utility than in_context_vote")


def test_a_strategy_that_the_task_does_not_allow_is_no_second():
    scores, costs = {"in_context": 0.5, "ttt_crossfit": 0.5}, {"in_context": 0.0, "ttt_crossfit": 1.0}
    trace = decided(scores, costs, "in_context", demonstrations=1)
    assert list(margin_sentences(trace)) == []
    assert "needs at least 3 demonstrations, and the task has 1" in " ".join(not_compared(trace, ["ttt_crossfit"]))


def test_one_demonstration_is_singular():
    trace = decided({"in_context": 0.5}, {"in_context": 0.0}, "in_context", demonstrations=0)
    assert "at least 1 demonstration, and the task has 0" in " ".join(not_compared(trace, ["in_context_vote"]))


def test_every_strategy_is_a_candidate_or_is_named_with_the_reason():
    trace = decided(SCORES, COSTS, "in_context")
    text = " ".join(not_compared(trace, list(strategies())))
    assert {name for name in strategies() if name in text.replace(",", "").split()} == set(strategies()) - set(SCORES)
    assert "the policy was not trained on them" in text


def test_a_policy_that_compares_nothing_is_named():
    trace = trace_of("in_context", LIST)
    assert list(margin_sentences(trace)) == []
    assert "the policy, always in_context, compares no others" in " ".join(not_compared(trace, ["ttt_direct"]))
    assert "decides by a rule" in " ".join(not_compared(trace_of("heuristic", LIST), ["ttt_race"]))


def test_the_lead_is_that_of_the_printed_utilities():
    lead, _ = margin_sentences(
        decided({"in_context": 0.4006, "ttt_direct": 0.4514}, {"in_context": 0.0, "ttt_direct": 65.0}, "in_context")
    )
    assert "by 0.015 in expected utility (0.401 against 0.386)" in lead


def test_the_threshold_stands_beside_the_estimate_and_looks_different_where_it_is():
    trace = decided({**SCORES, "in_context": 0.59996}, COSTS, "ttt_in_context")
    trace.attributes["policy"]["thresholds"]["keep_threshold"] = 0.6
    (text,) = threshold_sentences(trace)
    assert text.endswith("from an estimated probability of 0.60000 on; here it is 0.59996, which is below it")
    trace.attributes["policy"]["thresholds"]["keep_threshold"] = 0.0
    (text,) = threshold_sentences(trace)
    assert "No threshold of probability decides" in text
    (text,) = threshold_sentences(trace_of("in_context", LIST))
    assert text.endswith("always in_context, is fixed: the first decision compared nothing and needed no threshold")


def test_the_rule_by_which_the_answer_of_cross_validated_adapters_stands_is_told(runs):
    trace = runs["crossfit"].as_stored()
    attempt = trace.attempts[0]
    attempt["cross_validation"] |= {"before": [True, False, False], "after": [True, True, False]}
    attempt["confidence"], trace.in_context["confidence"] = 0.31, 0.45
    _, text = threshold_sentences(trace)
    assert "(2/3 against 1/3)" in text
    assert "(0.31 against 0.45)" in text


def test_the_rule_by_which_the_answer_of_an_adapter_stands_is_told_unless_it_was_forced(runs):
    trace = runs["crossfit"].as_stored()
    attempt = trace.attempts[0]
    candidates = [{"value": [1], "share": 0.31}]
    attempt |= {"cross_validation": None, "confidence": 0.31, "value": [1], "candidates": candidates}
    trace.in_context["confidence"] = 0.45
    trace.decisions[0]["forced"] = False
    texts = list(threshold_sentences(trace))
    assert any(text.startswith(f"The answer of {attempt['strategy']} stands where its share of") for text in texts)
    assert "(0.31 against 0.45)" in texts[-1]
    attempt["candidates"] = []
    assert "stands where its token sequence probability is at least" in list(threshold_sentences(trace))[-1]
    trace.decisions[0]["forced"] = True
    assert not any("stands where" in text for text in threshold_sentences(trace))


def test_a_strategy_whose_answer_was_not_used_says_so(runs):
    trace = runs["crossfit"].as_stored()
    assert [mark_of(trace, row) for row in candidates_of(trace)] == ["chosen", ""]
    trace.result["strategy"] = "in_context"
    marks = [mark_of(trace, row) for row in candidates_of(trace)]
    assert marks == ["chosen first, its answer was not used", "not chosen first, but gave the answer"]
