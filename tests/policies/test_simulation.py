"""Offline simulation routes cases as the controller would, and as training evaluates them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autottt.policies.features import NAMES
from autottt.policies.outcome_table import OutcomeTable, RoutedCases, build_outcome_table
from autottt.policies.policy import (
    LearnedPolicy,
)
from autottt.policies.simulation import run_attempts, simulate
from autottt.policies.training import (
    _choose,
)
from tests.policies.synthetic import ALL, OUTCOMES, SMALL, trained, trained_small


def test_unparsed_attempts_are_charged_and_followed_by_the_next_best() -> None:
    """As the graph does it: the next best that is worth its price, three at most, then the in-context answer."""
    some = build_outcome_table(SMALL[:3])
    names, cost = list(some.strategies), some.costs[0]

    def served(unread: str, best: list[str]) -> tuple[str, float]:
        cases = dataclasses.replace(some, unparsed=np.array([[name in unread.split() for name in names]]))
        order = [names.index(name) for name in best]
        following = lambda tried: next((n for n in order if n not in tried), None)  # noqa: E731
        choice, before = run_attempts(cases, 0, order[0], following)
        return names[choice], before

    assert served("", ALL[::-1]) == ("ttt_in_context", 0)
    assert served("ttt_in_context", ALL[::-1]) == ("in_context_vote", cost[2])
    assert served("ttt_in_context in_context_vote", ALL[::-1]) == ("in_context", cost[1] + cost[2])
    assert served("ttt_in_context", ALL[2:]) == ("in_context", cost[2]), "nothing else is worth its price"
    assert served("ttt_in_context in_context", ALL[2:]) == ("ttt_in_context", 0), "no answer at all"
    assert served("in_context", ALL) == ("in_context_vote", 0), "the in-context answer is paid for anyway"
    assert served("in_context", ALL[:1]) == ("in_context", 0)


def assert_training_does_the_same(policy: LearnedPolicy, cases: OutcomeTable, served: RoutedCases) -> None:
    """What a scorecard is of is what the policy would serve."""
    trained = policy.trained
    chances = {stage: trained.probabilities(stage, cases.stage(stage)) for stage in NAMES}
    learnt = _choose(trained, cases, chances, trained.expected_costs(cases.kinds, cases.stage(0)))
    for ours, theirs in zip(learnt, served, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_evaluation_includes_attempts_after_unparsed_answers() -> None:
    lost = [
        dataclasses.replace(o, status="unreadable", correct=0.0)
        if o.strategy == "ttt_in_context" and int(o.task_id.rpartition("-")[2]) % 5 == 0
        else o
        for o in OUTCOMES
    ]
    cases, policy = build_outcome_table(lost), LearnedPolicy(trained(lost))
    served = simulate(policy, cases)
    again = served.wasted_cost > 0
    assert again.any()
    assert cases.unparsed[again, 2].all()
    assert not cases.unparsed[np.arange(len(cases)), served.choice].any()
    _, costs = cases.score_routing(served)
    without = served._replace(wasted_cost=np.zeros(len(cases)))
    assert (costs - cases.score_routing(without)[1])[again] == pytest.approx(60)
    assert_training_does_the_same(policy, cases, served)


def test_queries_out_of_distribution_are_simulated_as_served() -> None:
    """The next best on average, where the best cannot be used or its answer cannot be read."""
    cases = build_outcome_table(SMALL[:9])
    strange = np.full_like(cases.X, 1e6)
    able, unread = np.ones((3, 3), bool), np.zeros((3, 3), bool)
    able[1, 2], unread[2, 2] = False, True
    cases = dataclasses.replace(cases, X=strange, applicable=able, unparsed=unread)
    policy = LearnedPolicy(dataclasses.replace(trained_small(), ranking=tuple(ALL[::-1]), evidence=None))
    served = simulate(policy, cases)
    assert served.choice.tolist() == [2, 1, 1]
    assert served.wasted_cost.tolist() == [0, 0, cases.costs[2, 2]]
    assert_training_does_the_same(policy, cases, served)


def test_queries_whose_evidence_does_not_pay_are_simulated_as_served() -> None:
    cases = build_outcome_table(OUTCOMES)
    X = cases.X.copy()
    X[::3, 4:12] = 1e4
    cases = dataclasses.replace(cases, X=X)
    policy = LearnedPolicy(dataclasses.replace(trained_small(), probes_unfamiliar=False))
    served = simulate(policy, cases)
    assert not served.measured[::3].any()
    assert_training_does_the_same(policy, cases, served)


@pytest.mark.parametrize("cost_weight", [None, 0.0, 0.01])
@pytest.mark.parametrize("risk", [None, 0.2])
def test_queries_that_evidence_decides_on_are_simulated_as_served(cost_weight, risk) -> None:
    cases = build_outcome_table(OUTCOMES)
    X, rng = cases.X.copy(), np.random.default_rng(0)
    X[::3, 4:12] = 1e4
    cases = dataclasses.replace(cases, X=X, unparsed=rng.uniform(size=cases.correct.shape) < 0.1)
    policy = LearnedPolicy(dataclasses.replace(trained_small(), risk=risk, keep_threshold=0.0))
    policy = policy if cost_weight is None else policy.with_cost_weight(cost_weight)
    served = simulate(policy, cases)
    assert len(set(served.choice[::3].tolist())) > 1
    assert served.measured[::3].all()
    assert_training_does_the_same(policy, cases, served)
