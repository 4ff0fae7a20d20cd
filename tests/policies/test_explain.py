"""Explanations are differences of the policy's own estimates."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from autottt.policies.explain import as_text, explain
from autottt.policies.features import NAMES, STAGE_0
from autottt.policies.policy import (
    LearnedPolicy,
)
from autottt.policies.trained_policy import NEVER
from tests.policies.synthetic import ALL, at


def test_contributions_are_differences_of_the_policys_own_estimates(learned):
    features = at(-0.25)
    explanation = explain(learned, features, ALL)
    assert explanation.decision == learned.decide(features, ALL)
    assert {push.feature for push in explanation.contributions} == {n for n in NAMES[1] if not n.startswith("kind_")}
    first = explanation.contributions[0]
    assert first.feature in ("loo_hits", "reading_hits", "answer_mean"), "what the outcomes were made from"
    assert first.difficulty > 0
    without = dataclasses.replace(features, values={**features.values, first.feature: first.median})
    other = learned.decide(without, ALL)
    assert explanation.decision.difficulty - other.difficulty == pytest.approx(first.difficulty)
    assert explanation.by == "estimates"
    margin = learned.trained.utility_margins[1]
    assert learned.trained.ranking[0] == "ttt_in_context"
    name, preference = explanation.preferences[0]
    assert name == "ttt_in_context"
    assert preference == pytest.approx(explanation.decision.utilities["ttt_in_context"] + margin)
    leads = [d.utilities["ttt_in_context"] - d.utilities[explanation.runner_up] for d in (explanation.decision, other)]
    assert leads[0] - leads[1] == pytest.approx(first.lead) != 0
    assert [abs(p.lead) for p in explanation.contributions] == sorted(
        (abs(p.lead) for p in explanation.contributions), reverse=True
    )


def test_contributions_to_the_lead_are_those_of_the_calibrated_estimates(learned):
    shifted, features = dataclasses.replace(learned, shift=1.0), at(-0.25)
    explanation = explain(shifted, features, ALL)
    first, (chosen, second) = explanation.contributions[0], [name for name, _ in explanation.preferences[:2]]
    without = dataclasses.replace(features, values={**features.values, first.feature: first.median})
    here, usual = (shifted.preferences(each, ALL) for each in (features, without))
    assert first.lead == pytest.approx((here[chosen] - here[second]) - (usual[chosen] - usual[second])) != 0


def test_an_explanation_has_the_difficulty_of_a_usual_task_and_the_usual_range_of_each_feature(learned):
    features = at(-0.25)
    explanation = explain(learned, features, ALL)
    medians = {one.feature: one.median for one in explanation.contributions}
    usual = dataclasses.replace(features, values={**features.values, **medians})
    assert explanation.difficulty_at_medians == learned.decide(usual, ALL).difficulty
    assert explanation.difficulty_at_medians != explanation.decision.difficulty
    assert all(one.low <= one.median <= one.high for one in explanation.contributions)


def test_a_query_out_of_distribution_is_explained_by_the_fallback(learned):
    without = LearnedPolicy(dataclasses.replace(learned.trained, evidence=None))
    explanation = explain(without, at(1.0, **dict.fromkeys(STAGE_0[6:12], 50.0)), ALL)
    assert (explanation.by, explanation.preferences, explanation.cost_weights, explanation.runner_up) == (
        "fallback",
        (),
        (),
        "",
    )
    assert {push.lead for push in explanation.contributions} == {0.0}
    assert "no cost weight changes the fallback" in as_text(explanation)
    assert "to the lead of" not in as_text(explanation)


def test_evidence_that_decides_is_explained(learned):
    explanation = explain(learned, at(1.0, **dict.fromkeys(STAGE_0[6:12], 50.0)), ALL)
    assert explanation.by == "evidence"
    assert explanation.preferences[0][0] == explanation.decision.strategy
    assert "evidence of the task itself decides" in as_text(explanation)
    risky = LearnedPolicy(dataclasses.replace(learned.trained, risk=0.1))
    contributions = explain(risky, at(1.0, **dict.fromkeys(STAGE_0[6:12], 50.0)), ALL).contributions
    assert max(abs(one.lead) for one in contributions) < 10


def test_an_answer_outside_the_risk_guarantee_is_no_runner_up(learned):
    explanation = explain(
        LearnedPolicy(dataclasses.replace(learned.trained, keep_threshold=NEVER, risk=0.1)), at(1.0), ALL
    )
    assert explanation.preferences[-1] == ("in_context", -math.inf)
    assert explanation.runner_up in ALL[1:]
    assert all(math.isfinite(push.lead) for push in explanation.contributions)
    assert "inf" not in as_text(explanation).replace("in_context", "")


def test_beyond_a_cost_weight_the_choice_changes(learned):
    explanation = explain(learned, at(-0.25), ALL)
    assert explanation.decision.strategy == "ttt_in_context"
    assert explanation.cost_weights
    for price, name in ((one.nearest, one.strategy) for one in explanation.cost_weights):
        beyond = price * (1.001 if price > explanation.cost_weight else 0.999)
        other = learned.with_cost_weight(beyond)
        assert other.decide(at(-0.25), ALL).strategy == name
        between = LearnedPolicy(
            dataclasses.replace(
                learned.trained, cost_weight=(price * 0.999 if price > explanation.cost_weight else price * 1.001)
            )
        )
        assert between.decide(at(-0.25), ALL).strategy == "ttt_in_context"


def test_the_text_has_the_numbers(learned):
    text = as_text(explain(learned, at(-0.25), ALL))
    assert text.startswith("ttt_in_context: the in-context answer is likely wrong")
    assert re.search(r"(Below|Above|Between) cost weights? \d.* these estimates choose \w+", text.splitlines()[-1])
    only = as_text(explain(learned, at(-0.25), ["in_context"]))
    assert "no other cost weight changes the choice" in only
