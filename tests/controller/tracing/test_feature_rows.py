"""Features with their meanings and contributions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autottt.controller.controller import Controller, policy_for
from autottt.controller.tracing.feature_rows import explained_decision, feature_rows, feature_sentences, features_note
from autottt.controller.tracing.trace import Trace
from autottt.policies.bundle import load_bundle
from autottt.policies.feature_glossary import GLOSSARY
from autottt.policies.policy import BUNDLED, AnyModelPolicy, FixedPolicy, LearnedPolicy
from tests.controller.tracing.sample_traces import LIST, small_learner, trace_of, traces_of


@pytest.fixture(scope="module")
def learned() -> Trace:
    """A run that the shipped policy decided, although it is that of another model."""
    return traces_of(small_learner(), LearnedPolicy(load_bundle(BUNDLED)), [LIST])[0]


def test_every_feature_has_its_meaning(learned):
    rows = feature_rows(learned, None)
    assert [row.name for row in rows] == list(learned.features)
    assert all(row.meaning == GLOSSARY[row.name].meaning.replace("`", "") for row in rows)
    assert all(row.difficulty is None for row in rows)


def test_the_policy_of_a_run_is_found_by_its_digest_and_explains_it(learned):
    explained = explained_decision(learned)
    assert explained is not None
    assert explained.decision.strategy == learned.decisions[0]["strategy"]
    rows = feature_rows(learned, explained)
    known = [row for row in rows if row.lead is not None]
    assert {row.name for row in known} == {one.feature for one in explained.contributions}
    assert [row.name for row in rows[: len(known)]] == [one.feature for one in explained.contributions]
    assert "speaks for wrong" in features_note(explained, learned)


def test_a_run_at_another_cost_weight_is_explained_by_the_policy_at_that_weight():
    policy = LearnedPolicy(load_bundle(BUNDLED)).with_cost_weight(0.01)
    trace = traces_of(small_learner(), policy, [LIST])[0]
    explained = explained_decision(trace)
    assert explained is not None
    assert explained.cost_weight == 0.01


def test_a_policy_that_is_not_here_leaves_the_features_without_contributions(learned):
    trace = learned.as_stored()
    trace.attributes["policy"]["digest"] = "other"
    assert explained_decision(trace) is None
    note = features_note(None, trace)
    assert "is not a learned policy that is installed here, or did not choose alone: a budget" in note
    assert "(--explore)" in note
    assert "(--shadow)" in note


def test_a_fixed_policy_says_that_no_feature_decided():
    trace = trace_of("in_context", LIST)
    assert explained_decision(trace) is None
    assert features_note(None, trace).startswith("No feature had a part in the decision")


def test_a_rule_of_thumb_has_no_contributions():
    assert explained_decision(trace_of("heuristic", LIST)) is None


def test_the_strongest_features_on_both_sides_are_shown_first_and_named(learned):
    explained = explained_decision(learned)
    assert explained is not None
    shown = {row.name for row in feature_rows(learned, explained) if row.shown}
    ranked = sorted(explained.contributions, key=lambda one: one.difficulty)
    text = " ".join(feature_sentences(explained))
    for one in (ranked[0], ranked[-1]):
        assert one.feature in shown
        assert f"{one.feature} {one.difficulty:+.3f}" in text
    assert {one.feature for one in ranked if one.instead != explained.decision.strategy} <= shown
    assert f"{explained.difficulty_at_medians:.2f}" in text


def test_a_feature_without_a_contribution_says_why(learned):
    rows = {row.name: row for row in feature_rows(learned, explained_decision(learned))}
    assert rows["kind_list"].unused == "no contribution: the kinds are one setting"
    assert all(bool(row.unused) == (row.lead is None) for row in rows.values())


def test_values_beyond_the_middle_of_the_training_set_are_unusual(learned):
    explained = explained_decision(learned)
    text = list(feature_sentences(explained))[-1]
    for one in explained.contributions:
        assert (f"{one.feature} {one.value:.3g} (usual" in text) == (not one.low <= one.value <= one.high)
    assert list(feature_sentences(None)) == []


@pytest.mark.parametrize("cost_weight", [None, 0.002])
def test_a_run_of_the_policy_for_any_model_is_explained_at_its_costs_and_calibration(cost_weight):
    learner = small_learner()
    policy = policy_for(learner, BUNDLED.parent / "any_model")
    assert isinstance(policy, AnyModelPolicy)
    for _ in range(5):
        policy.state.observe(0.9, 0.0)
    policy = policy if cost_weight is None else policy.with_cost_weight(cost_weight)
    trace = traces_of(learner, policy, [LIST])[0]
    for given in (None, policy):
        explained = explained_decision(trace, given)
        assert explained is not None
        first = trace.decisions[0]
        for name in ("scores", "costs", "utilities"):
            assert getattr(explained.decision, name) == pytest.approx(first[name])
        assert explained.cost_weight == policy.learned.trained.cost_weight
    trace.attributes["policy"]["digest"] = "other"
    assert explained_decision(trace) is None


@pytest.mark.parametrize("together", [True, False])
def test_a_decision_about_shared_and_cached_adapters_is_explained_at_its_costs(together):
    learner = small_learner()
    policy = policy_for(learner, BUNDLED.parent / "any_model")
    queries = [LIST, *(replace(LIST, query=query, answer=None) for query in ((9, 8), (8, 7, 9)))]
    if not together:
        Controller(learner, FixedPolicy("ttt_in_context")).solve(LIST)
    traces = traces_of(learner, policy, queries, together=together)
    assert [trace.adapter_costs["queries"] for trace in traces] == ([3, 2, 1] if together else [1, 1, 1])
    assert together or all("ttt_in_context" in trace.adapter_costs["cached_adapters"] for trace in traces)
    for trace in traces:
        explained = explained_decision(trace)
        assert explained is not None
        for name in ("scores", "costs", "utilities"):
            assert getattr(explained.decision, name) == pytest.approx(trace.decisions[0][name])
