"""The scorecard charges the policy for its probes, bootstraps over families, and names what it excludes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autottt.policies import scorecard as scorecard_module
from autottt.policies.outcome_table import OutcomeTable, build_outcome_table
from autottt.policies.outcomes import Outcome
from autottt.policies.report import as_markdown
from autottt.policies.scorecard import Bootstrap, OutOfFoldDecisions, intervals, leakage, routing, scorecard
from tests.policies.synthetic import ALL, OUTCOMES, SMALL, trained, trained_small


def test_the_policy_beats_every_fixed_strategy_if_features_are_informative(learned):
    card = learned.trained.scorecard
    arms = card["arms"]
    assert all(arms["policy"]["utility"] > arms[s]["utility"] for s in [*ALL, "sbs", "random_at_equal_share"])
    assert arms["vbs_per_query"]["utility"] > arms["policy"]["utility"]
    assert 0 < card["gap_closed_per_task"]["value"] < 1
    low, high = card["gain_over_sbs"]["interval_90"]
    assert 0 < low < card["gain_over_sbs"]["value"] < high
    assert card["difficulty"]["auroc"] > 0.85
    assert card["difficulty"]["ece"] < 0.15
    assert (card["families"], card["queries"]) == (24, 240)
    assert sum(card["shares"].values()) == pytest.approx(1)


def test_the_probe_is_charged_to_the_policy(monkeypatch):
    monkeypatch.setattr(
        "autottt.policies.training.PROBE_MARGINS", np.array([])
    )  # else fewer queries are probed where it is dear
    dear = [dataclasses.replace(o, probe_cost=30.0) if o.features else o for o in OUTCOMES]
    cheap, expensive = trained().scorecard, trained(dear).scorecard
    extra = expensive["arms"]["policy"]["cost"] - cheap["arms"]["policy"]["cost"]
    assert extra == pytest.approx(28 * cheap["probe_share"])


def test_equal_outcomes_of_all_strategies_still_give_a_scorecard():
    same = [dataclasses.replace(o, correct=0.0) for o in SMALL]
    card = trained(same, fold_count=2).scorecard
    assert card["difficulty"]["auroc"] is None
    assert card["shares"]["in_context"] == 1.0
    assert card["harm_share"] == 0.0


def test_queries_without_features_are_counted() -> None:
    lost = [dataclasses.replace(o, status="failed", features={}) if o.task_id == "t1-1" else o for o in SMALL]
    assert trained(lost).scorecard["unmeasured"] == 1
    assert trained_small().scorecard["unmeasured"] == 0


LATE = [dataclasses.replace(o, strategy="late", relative_cost=5.0) for o in SMALL if o.strategy == "in_context_vote"]


def with_late(families: int) -> list[Outcome]:
    """`SMALL` with another strategy that was tried on the first families only."""
    return [*SMALL, *(o for o in LATE if int(o.family.removeprefix("family")) < families)]


@pytest.mark.parametrize(("families", "excluded", "cases"), [(3, ["late"], 64), (5, ["late"], 64), (6, [], 48)])
def test_a_strategy_that_most_cases_lack_does_not_leave_few_to_judge_the_others_on(families, excluded, cases) -> None:
    card = trained(with_late(families)).scorecard
    assert (card["excluded_strategies"], card["training_cases"], card["cases"]) == (excluded, 64, cases)


def test_what_is_served_with_one_strategy_does_not_leave_out_those_that_were_collected() -> None:
    served = [dataclasses.replace(o, task_id=f"s{o.task_id}", group="", family="") for o in SMALL]
    served = [o for o in served if o.strategy in ("in_context", "in_context_vote")]
    table = build_outcome_table([*SMALL, *served])
    assert (set(table.strategies), table.excluded_strategies) == (set(ALL), ())
    assert (len(table), len(table.complete())) == (128, 64)


def test_a_strategy_that_was_tried_on_some_cases_is_judged_beside_the_policy_on_these() -> None:
    policy = trained(with_late(5))
    row = policy.scorecard["partly_tried"]["late"]
    vote = [o for o in LATE if int(o.family.removeprefix("family")) < 5]
    assert (row["cases"], row["families"]) == (40, 5)
    assert row["arms"]["late"]["accuracy"] == pytest.approx(np.mean([o.correct for o in vote]))
    assert row["arms"]["late"]["cost"] == 5
    difference = row["arms"]["policy"]["utility"] - row["arms"]["late"]["utility"]
    assert row["gain_of_policy"]["value"] == pytest.approx(difference)
    low, high = row["gain_of_policy"]["interval_90"]
    assert low < difference < high
    assert "| `late` | 40, 5 | " in as_markdown(policy)
    assert trained_small().scorecard["partly_tried"] == {}
    assert "tried on some" not in as_markdown(trained_small())


def test_over_long_queries_are_counted_and_excluded():
    first = [
        dataclasses.replace(
            o, task_id="long", status="too_long", correct=0.0, relative_cost=0.0, features={}, features_version=0
        )
        for o in SMALL[:3]
    ]
    cases = build_outcome_table([*SMALL, *first])
    assert (len(cases), cases.over_long) == (64, 1)
    np.testing.assert_array_equal(cases.costs, build_outcome_table(SMALL).costs)
    drawn = dataclasses.replace(OutOfFoldDecisions.empty(cases), expected=cases.costs)
    card = scorecard(cases, [drawn], 0.001, 0)
    assert (card["cases"], card["over_long"]) == (64, 1)
    assert card["digest"] == build_outcome_table(SMALL).digest != build_outcome_table(SMALL[:-3]).digest


def held_out(cases: OutcomeTable, uplift: list[float]) -> OutOfFoldDecisions:
    decisions = OutOfFoldDecisions.empty(cases)
    decisions.alternative[:], decisions.uplift[:] = 2, uplift
    return decisions


def test_copies_of_a_familys_cases_make_no_interval_narrower(monkeypatch):
    monkeypatch.setattr(scorecard_module, "INTERVAL_RESAMPLES", 40)
    cases = build_outcome_table(SMALL)
    rng = np.random.default_rng(0)
    worth = {"policy": rng.normal(size=len(cases)) + 0.5, "other": rng.normal(size=len(cases))}
    drawn = held_out(cases, rng.random(len(cases)).tolist())
    drawn.policy.choice[:], drawn.in_context_probability[:] = 2, rng.random(len(cases))
    copies = np.repeat(np.arange(len(cases)), 4)
    many = cases.take(copies)
    once = Bootstrap(cases.families, worth, 0).gain("other")
    again = Bootstrap(many.families, {name: values[copies] for name, values in worth.items()}, 0).gain("other")
    assert again["interval_90"] == pytest.approx(once["interval_90"], rel=1e-6)
    all_once, all_again = intervals(cases, drawn, 0.001, 0), intervals(many, drawn.take(copies), 0.001, 0)
    for name in ("accuracy", "cost", "utility", "auroc", "brier"):
        assert all_again[name] == pytest.approx(all_once[name], rel=1e-6), name


def test_leakage_is_measured_on_families_with_several_cases():
    cases = build_outcome_table(SMALL)
    lonely = dataclasses.replace(cases, families=("alone", *cases.families[1:]))
    by_family, at_random = held_out(cases, [0.0] * len(cases)), held_out(cases, [0.0] * len(cases))
    at_random.policy.choice[0] = 2  # as if only the family that is alone were decided otherwise
    result = leakage(lonely, by_family, at_random, 0.001)
    assert result["cases"] == len(cases) - 1
    assert result["families_held_out"] == result["cases_held_out"]
    apart = dataclasses.replace(cases, families=tuple(map(str, range(len(cases)))))
    assert leakage(apart, by_family, at_random, 0.001) is None


def test_the_routing_curve_depends_on_the_order():
    cases = build_outcome_table(SMALL)
    gains = cases.correct[:, 2] - cases.correct[:, 0]
    best, worst = routing(cases, held_out(cases, gains.tolist())), routing(cases, held_out(cases, (-gains).tolist()))
    drawn = [routing(cases, held_out(cases, np.random.default_rng(n).random(len(cases)).tolist())) for n in range(200)]
    assert best["apgr"] > 0.8 > 0.2 > worst["apgr"]
    assert np.mean([one["apgr"] for one in drawn]) == pytest.approx(0.5, abs=0.05)
    assert best["cpt_95"] < 0.5 < worst["cpt_95"]
    assert best["curve"][0] == [0.0, 0.0]
    assert best["curve"][-1] == [1.0, 1.0]
    assert best["apgr_cost"] == pytest.approx(best["apgr"]), "every query costs the same here"


def test_there_is_no_routing_curve_without_a_gain():
    same = [dataclasses.replace(o, correct=0.0) if o.strategy != "in_context" else o for o in SMALL]
    cases = build_outcome_table(same)
    decisions = held_out(cases, [0.0] * len(cases))
    decisions.alternative[:] = 1
    assert routing(cases, decisions) is None


def test_the_scorecard_has_a_routing_curve_and_leakage(learned):
    card = learned.trained.scorecard
    assert card["routing"]["apgr"] > 0.6
    assert set(card["leakage"]) == {"families_held_out", "cases_held_out", "cases"}
    assert card["leakage"]["cases"] == card["cases"], "every family has several here"
    assert card["leakage"]["families_held_out"]["utility"] == pytest.approx(card["arms"]["policy"]["utility"])
    assert card["arms"]["sbs_per_kind"] == card["arms"]["sbs"], "there is one kind"
    assert card["arms"]["rule_of_thumb"]["cost"] > 1
