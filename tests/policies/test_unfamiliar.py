"""Queries unlike the training set are recognised, and evidence of the task decides on them; accuracy may come first."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autottt.policies import unfamiliar
from autottt.policies.bundle import load_bundle, save_bundle
from autottt.policies.outcome_table import build_outcome_table
from autottt.policies.policy import LearnedPolicy
from autottt.policies.simulation import simulate
from autottt.policies.unfamiliar import (
    EVIDENCE,
    FALSE_ALARMS,
    accuracy_margin,
    evidence_pays,
    fit_evidence,
    fit_familiarity,
)
from tests.policies.synthetic import ALL, OUTCOMES, at, made

TABLE = build_outcome_table(OUTCOMES)
STRANGE = {"input_size": 30.0, "output_size": 30.0, "query_size": 30.0, "growth": 30.0, "query_beyond": 30.0}


def test_few_queries_of_new_families_are_unfamiliar_and_shifted_ones_are() -> None:
    familiarity = fit_familiarity(TABLE, 5, 0)
    columns = [TABLE.feature_names[0].index(name) for name in familiarity.names]
    others = build_outcome_table(made(seed=1)).X[:, columns]
    assert (familiarity.scores(others) > familiarity.threshold).mean() < 3 * FALSE_ALARMS
    shifted = others + 1.5 * others.std(axis=0)
    assert (familiarity.scores(shifted) > familiarity.threshold).mean() > 0.5
    assert np.isfinite(familiarity.scores(others * 1e12)).all()
    assert not {name for name in familiarity.names if name.startswith("kind_")}


def test_evidence_decides_on_an_unfamiliar_query_and_the_reason_says_so(learned) -> None:
    for level, strategy in ((1.0, "in_context"), (-0.3, "ttt_in_context")):
        features = at(level, **STRANGE)
        assert learned.basis(features) == "evidence"
        decision = learned.decide(features, ALL)
        assert decision.strategy == strategy
        assert "out of distribution, so evidence of the task itself decides" in decision.reason
    assert learned.basis(at(1.0)) == "estimates"


def test_a_reason_claims_no_evidence_of_demonstrations_that_cannot_be_held_out(learned) -> None:
    reason = learned.decide(at(1.0, **STRANGE, loo_possible=0.0), ALL).reason
    assert "only evidence of its in-context answer decides (too few demonstrations to hold one out)" in reason


def test_evidence_survives_a_bundle(learned, tmp_path) -> None:
    save_bundle(learned.trained, tmp_path)
    loaded = LearnedPolicy(load_bundle(tmp_path))
    assert loaded.trained.evidence == learned.trained.evidence
    assert loaded.decide(at(0.1, **STRANGE), ALL) == learned.decide(at(0.1, **STRANGE), ALL)


def test_evidence_pays_where_the_probe_is_cheap_and_not_where_it_costs_as_much_as_training() -> None:
    pays = {}
    for factor in (0.01, 1000.0):
        table = dataclasses.replace(TABLE, probe_cost=factor * TABLE.probe_cost)
        pays[factor] = evidence_pays(*fit_evidence(table, 5, 0), table.complete(), 0.001)
    assert pays == {0.01: True, 1000.0: False}


def test_where_the_probe_does_not_pay_an_unfamiliar_query_gets_the_fallback_without_it(learned, tmp_path) -> None:
    policy = LearnedPolicy(dataclasses.replace(learned.trained, probes_unfamiliar=False))
    save_bundle(policy.trained, tmp_path)
    for each in (policy, LearnedPolicy(load_bundle(tmp_path))):
        assert not each.needs_more(at(0.1, stage=0, **STRANGE))
        decision = each.decide(at(0.1, stage=0, **STRANGE), ALL)
        assert decision.strategy == learned.trained.fallback(ALL)
        assert "fallback" in decision.reason
    assert policy.with_cost_weight(0).needs_more(at(0.1, stage=0, **STRANGE)), "accuracy is worth the probe"
    assert learned.needs_more(at(0.1, stage=0, **STRANGE))


def test_outcomes_without_the_features_or_with_one_label_have_no_evidence() -> None:
    assert fit_evidence(dataclasses.replace(TABLE, correct=np.ones_like(TABLE.correct)), 5, 0)[0] is None
    columns = [i for i, name in enumerate(TABLE.feature_names[1]) if name != EVIDENCE[0]]
    names = {0: TABLE.feature_names[0], 1: tuple(TABLE.feature_names[1][i] for i in columns)}
    assert fit_evidence(dataclasses.replace(TABLE, X=TABLE.X[:, columns], feature_names=names), 5, 0)[0] is None


def test_evidence_on_a_kind_is_not_from_other_tasks_of_its_families(monkeypatch) -> None:
    fitted_on: list[set[str]] = []

    def spied(table):
        fitted_on.append(set(table.families))
        return fit_linear(table)

    fit_linear = unfamiliar._fit_linear
    monkeypatch.setattr(unfamiliar, "_fit_linear", spied)
    of_both = {"family0", "family1", "family2", "family3"}  # the others have lists alone
    kinds = tuple("text" if n % 2 and family in of_both else "list" for n, family in enumerate(TABLE.families))
    fit_evidence(dataclasses.replace(TABLE, kinds=kinds), 5, 0)
    assert fitted_on == [set(TABLE.families) - of_both, set(TABLE.families)]


@pytest.mark.parametrize("strange", [False, True])
def test_at_cost_weight_0_accuracy_is_not_below_the_best_fixed_strategy(learned, strange) -> None:
    cases = build_outcome_table(made(seed=2, families=40))
    if strange:
        X = cases.X.copy()
        X[:, [cases.feature_names[0].index(name) for name in STRANGE]] = 30.0
        cases = dataclasses.replace(cases, X=X)
    right, _ = cases.score_routing(simulate(learned.with_cost_weight(0), cases))
    assert right.mean() >= cases.correct.mean(axis=0).max() - 0.005


def test_a_lead_that_is_not_certain_gives_way_to_the_most_accurate_strategy(learned) -> None:
    trained = dataclasses.replace(learned.trained, accurate="in_context_vote", accuracy_margin=0.9)
    policy = LearnedPolicy(trained)
    first = policy.with_cost_weight(0).decide(at(-0.3), ALL)
    assert first.strategy == "in_context_vote"
    assert "accuracy comes first: in_context_vote was the most accurate in training" in first.reason
    assert policy.decide(at(-0.3), ALL).strategy == "ttt_in_context", "the margin is for cost weight 0 alone"
    sure = LearnedPolicy(dataclasses.replace(trained, accuracy_margin=0.0)).with_cost_weight(0)
    assert sure.decide(at(-0.3), ALL).strategy == "ttt_in_context"


def test_the_margin_of_useless_estimates_is_one() -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=TABLE.correct.shape)
    better = dataclasses.replace(TABLE, correct=np.where([False, False, True], 1.0, TABLE.correct * 0.5))
    assert accuracy_margin(noise, better) >= 0.5
    assert accuracy_margin(TABLE.correct, TABLE) == 0.0
