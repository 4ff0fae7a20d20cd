"""A policy chooses the highest utility, gives the reason, and falls back outside its training distribution."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from autottt.controller.run_facts import policy_digest
from autottt.policies import bundle as bundle_module
from autottt.policies import policy as policy_module
from autottt.policies.bundle import load_bundle, save_bundle
from autottt.policies.bundle_card import bundle_folder
from autottt.policies.classifiers import CalibratedClassifier
from autottt.policies.features import NAMES, STAGE_0, Features
from autottt.policies.policy import (
    BUNDLED,
    OUTSIDE_GUARANTEE,
    FixedPolicy,
    HeuristicPolicy,
    LearnedPolicy,
    load_policy,
)
from autottt.policies.trained_policy import NEVER, Change
from autottt.ttt_core.errors import PolicyError
from tests.policies.synthetic import ALL, SMALL, at, thumb, trained, trained_small


def test_an_easy_query_keeps_its_in_context_answer(learned):
    decision = learned.decide(at(1.0), ALL)
    assert decision.strategy == "in_context"
    assert decision.difficulty < 0.2
    assert "likely right" in decision.reason
    assert "no other strategy is worth its cost" in decision.reason


@pytest.mark.parametrize(
    ("demonstrations", "tried", "why"),
    [
        (0, [], "too few demonstrations"),
        (1, [], "not enough budget left or too few demonstrations"),
        (5, [], "not enough budget left"),
        (5, ["in_context_vote", "ttt_in_context"], "tried"),
    ],
)
def test_an_in_context_answer_that_is_the_only_choice_says_what_excludes_others(learned, demonstrations, tried, why):
    features = at(1.0)
    features = replace(features, values={**features.values, "demonstrations": demonstrations})
    reason = learned.decide(features, ["in_context"], tried=tried).reason
    assert reason.endswith(f"no other strategy can be used ({why})")


@pytest.mark.parametrize(("demonstrations", "why"), [(2, "too few demonstrations"), (3, "not enough budget left")])
def test_a_requested_strategy_that_cannot_be_used_says_what_excludes_it(demonstrations, why):
    features = at(1.0)
    features = replace(features, values={**features.values, "demonstrations": demonstrations})
    reason = FixedPolicy("ttt_crossfit").decide(features, ["in_context"]).reason
    assert f"it cannot be used here ({why}); fallback to in_context" in reason


def test_a_query_that_training_helps_is_trained_on(learned):
    decision = learned.decide(at(-0.25), ALL)
    assert decision.strategy == "ttt_in_context"
    assert decision.difficulty == pytest.approx(1 - decision.scores["in_context"])
    assert decision.reason.startswith("the in-context answer is likely wrong (difficulty")
    assert "at cost 60x" in decision.reason


def test_the_in_context_answer_costs_nothing_further(learned):
    decision = learned.decide(at(0.0), ALL)
    assert decision.costs["in_context"] == 0
    assert decision.utilities["in_context"] == decision.scores["in_context"]
    price = learned.trained.cost_weight
    assert price == pytest.approx(0.1 / 60)
    assert decision.utilities["ttt_in_context"] == pytest.approx(decision.scores["ttt_in_context"] - 60 * price)


def test_tried_or_disallowed_strategies_are_not_chosen(learned):
    assert learned.decide(at(-0.25), ALL, tried=["ttt_in_context"]).strategy != "ttt_in_context"
    assert learned.decide(at(-0.25), ["in_context"]).strategy == "in_context"
    with pytest.raises(PolicyError, match="no strategy is left"):
        learned.decide(at(0.0), ["in_context"], tried=["in_context"])


def test_a_strategy_without_training_data_is_the_last_resort(learned):
    assert learned.decide(at(-0.25), [*ALL, "brand_new"]).strategy == "ttt_in_context"
    decision = learned.decide(at(-0.25), ["brand_new"])
    assert decision.strategy == "brand_new"
    assert "was not trained on it" in decision.reason


def test_the_probe_is_skipped_if_the_free_features_suffice(learned):
    assert 0 <= learned.trained.skip_probe_threshold < 1
    assert not learned.needs_more(at(3.0, stage=0))
    uncertain = [level for level in np.linspace(-1, 1, 41) if learned.needs_more(at(level, stage=0))]
    assert uncertain, "where the choice is open, more is measured"
    assert not learned.needs_more(at(uncertain[0]))
    assert 0 < learned.trained.scorecard["probe_share"] < 1


def test_a_small_lead_over_the_strategy_that_is_best_on_average_is_not_enough(learned):
    bare = dataclasses.replace(learned.trained, utility_margins=(0.0, 0.0), sure_thresholds=(NEVER, NEVER))
    plain = LearnedPolicy(bare)
    sbs = plain.trained.ranking[0]
    levels = [at(level) for level in np.linspace(-1, 1, 41)]
    leads = []
    for features in levels:
        utilities = plain.decide(features, ALL).utilities
        leads.append(max(utilities.values()) - utilities[sbs])
    small, large = (min(lead for lead in leads if lead > 0.01), max(leads))
    assert small < large
    margin = (small + large) / 2
    careful = LearnedPolicy(dataclasses.replace(plain.trained, utility_margins=(1.0, margin)))
    chosen = {plain.decide(features, ALL).strategy for features in levels}
    for features, lead in zip(levels, leads, strict=True):
        before, decision = plain.decide(features, ALL), careful.decide(features, ALL)
        assert decision.utilities == before.utilities
        if lead > margin:
            assert decision.strategy == before.strategy
        else:
            assert decision.strategy == sbs
        certain = "was best on average in training, and the lead of" not in decision.reason
        assert certain == (decision.strategy == before.strategy)
    assert chosen > {sbs}
    free = [at(level, stage=0) for level in np.linspace(-1, 1, 41)]
    assert {plain.decide(features, ALL).strategy for features in free} > {sbs}
    assert {careful.decide(features, ALL).strategy for features in free} == {sbs}, "the margin without the probe"


def test_a_higher_cost_weight_chooses_nothing_dearer_and_a_lower_one_nothing_cheaper(learned):
    weight = learned.trained.cost_weight
    sbs = "ttt_in_context"
    ranking = (sbs, *(name for name in learned.trained.ranking if name != sbs))
    careful = LearnedPolicy(dataclasses.replace(learned.trained, ranking=ranking, utility_margins=(0.3, 0.3)))
    plain = LearnedPolicy(dataclasses.replace(careful.trained, utility_margins=(0.0, 0.0)))
    levels = [at(level) for level in np.linspace(-1, 1, 41)]

    def cost(policy, features):
        decision = policy.decide(features, ALL)
        return decision.costs[decision.strategy]

    for factor, sign in ((1.05, 1), (2, 1), (10, 1), (0.95, -1), (0.5, -1)):
        costs = [(cost(careful, f), cost(careful.with_cost_weight(factor * weight), f)) for f in levels]
        assert all(sign * now <= sign * before for before, now in costs), factor
    for factor in (2, 0.5):
        other = careful.with_cost_weight(factor * weight)
        told = [d for d in (other.decide(f, ALL) for f in levels) if "and its lead (+" in d.reason]
        for decision in told:
            best = max(ALL, key=lambda name: decision.utilities[name])
            assert decision.strategy != best
            assert not (decision.strategy == "in_context" and "not worth its cost" in decision.reason)
    saved = [f for f in levels if cost(careful.with_cost_weight(2 * weight), f) < cost(careful, f)]
    assert saved, "a cheaper strategy needs no lead at a higher cost weight"
    assert any(cost(plain, f) != cost(careful, f) for f in levels)


def test_a_sure_in_context_answer_gives_way_to_nothing_dearer_at_a_higher_cost_weight(learned):
    costs = dict.fromkeys(("", "list"), (1.0, 60.0, 8.0))
    ranking = ("in_context_vote", "ttt_in_context", "in_context")
    sure = dataclasses.replace(
        learned.trained, ranking=ranking, mean_costs=costs, cost_models=(), utility_margins=(0.3, 0.3),
        sure_thresholds=(0.0, 0.0),
    )  # fmt: skip
    policy = LearnedPolicy(sure)
    levels = [at(level) for level in np.linspace(-1, 1, 41)]
    kept = [f for f in levels if policy.decide(f, ALL).strategy == "in_context"]
    by_margin = [f for f in kept if best_of(policy.decide(f, ALL)) == "ttt_in_context"]
    assert by_margin, "there is an answer that is kept by its margin alone"
    for factor in (1.001, 1.05, 2):
        higher = policy.with_cost_weight(factor * sure.cost_weight)
        assert {higher.decide(f, ALL).strategy for f in kept} == {"in_context"}, factor
    for decision in (higher.decide(f, ALL) for f in by_margin):
        assert best_of(decision) == "in_context" or "is not certain enough" in decision.reason


def best_of(decision):
    return max(decision.utilities, key=decision.utilities.__getitem__)


def test_a_cost_weight_replaces_an_earlier_one(learned):
    careful = LearnedPolicy(dataclasses.replace(learned.trained, utility_margins=(0.3, 0.2), probe_margin=0.05))
    weight = careful.trained.cost_weight
    levels = [at(level, stage) for level in np.linspace(-1, 1, 21) for stage in (0, 1)]
    for first in (0, weight / 2, 3 * weight):
        assert careful.with_cost_weight(first).with_cost_weight(weight) == careful.with_cost_weight(weight)
        for second in (0, weight / 3, weight, 2 * weight, 4 * weight):
            twice, once = careful.with_cost_weight(first).with_cost_weight(second), careful.with_cost_weight(second)
            assert [twice.decide(f, ALL) for f in levels] == [once.decide(f, ALL) for f in levels]
            assert [twice.needs_more(f) for f in levels] == [once.needs_more(f) for f in levels]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_sure_in_context_answer_needs_no_lead(learned, stage):
    plain = dataclasses.replace(learned.trained, utility_margins=(0.0, 0.0), sure_thresholds=(NEVER, NEVER))
    features, sbs = at(0.9, stage), plain.ranking[0]
    before = LearnedPolicy(plain).decide(features, ALL)
    assert before.strategy == "in_context"
    for threshold, expected in ((before.scores["in_context"], "in_context"), (before.scores["in_context"] + 0.01, sbs)):
        thresholds = (threshold, 0.0) if stage == 0 else (0.0, threshold)
        careful = dataclasses.replace(plain, utility_margins=(1.0, 1.0), sure_thresholds=thresholds)
        assert LearnedPolicy(careful).decide(features, ALL).strategy == expected


def test_the_reason_tells_a_sure_answer_that_precedes_another_strategy(learned):
    plain = dataclasses.replace(learned.trained, ranking=("in_context_vote", "ttt_in_context", "in_context"))
    careful = dataclasses.replace(plain, utility_margins=(1.0, 1.0), sure_thresholds=(0.0, 0.0))
    decisions = [LearnedPolicy(careful).decide(at(level), ALL) for level in np.linspace(-1, 1, 41)]
    told = [d for d in decisions if "sure enough to precede in_context_vote" in d.reason]
    assert told
    for decision in told:
        assert decision.strategy == "in_context"
        assert decision.utilities["ttt_in_context"] > decision.utilities["in_context"]
        assert "the lead of ttt_in_context (+" in decision.reason
        assert "not worth its cost" not in decision.reason


def test_a_strategy_that_leads_by_the_probe_margin_is_chosen_without_the_probe(learned):
    policy = LearnedPolicy(
        dataclasses.replace(
            learned.trained, skip_probe_threshold=1.0, probe_margin=0.05, probe_cost=10.0, utility_margins=(0.0, 0.0)
        )
    )
    chosen = set()
    for level in np.linspace(-1, 3, 41):
        decision = policy.decide(at(level, stage=0), ALL)
        training = decision.utilities["ttt_in_context"]
        others = max(decision.utilities["in_context"], decision.utilities["in_context_vote"])
        lead = abs(training - others)
        assert policy.needs_more(at(level, stage=0)) == (lead < 0.05)
        chosen.add(decision.strategy if lead >= 0.05 else "undecided")
    assert chosen >= {"undecided", "in_context", "ttt_in_context"}
    easy = next(features for features in (at(level, stage=0) for level in (1, 2, 3)) if not policy.needs_more(features))
    assert LearnedPolicy(dataclasses.replace(policy.trained, probe_margin=None)).needs_more(easy)
    assert not policy.with_cost_weight(2 * policy.trained.cost_weight).needs_more(easy)
    assert policy.with_cost_weight(policy.trained.cost_weight / 2).needs_more(easy), "accuracy is worth more"


def test_the_probe_margin_keeps_no_answer_outside_the_risk_guarantee(learned):
    strict = dataclasses.replace(learned.trained, keep_threshold=0.99, risk=0.1, probe_margin=0.0)
    policy = LearnedPolicy(strict)
    sure = dataclasses.replace(strict, keep_threshold=0.0, skip_probe_threshold=0.0)
    easy = at(1.0, stage=0)
    assert LearnedPolicy(sure).decide(easy, ALL).strategy == "in_context"
    assert not LearnedPolicy(sure).needs_more(easy)
    assert policy.decide(easy, ALL).strategy != "in_context"
    assert policy.needs_more(easy), "the probe may show that the answer can be kept"
    free = dataclasses.replace(strict, mean_costs={"": (1.0, 0, 0), "list": (1.0, 0, 0)}, cost_models=())
    assert LearnedPolicy(free).needs_more(easy), "also where no strategy costs more than the probe"


def test_a_query_out_of_distribution_gets_the_fallback_where_no_evidence_decides(learned):
    far = at(1.0, **dict.fromkeys(STAGE_0[6:12], 50.0))
    without = LearnedPolicy(dataclasses.replace(learned.trained, evidence=None))
    free = Features(0, {name: far.values[name] for name in STAGE_0})
    for policy, features in ((without, far), (without, free), (learned, free)):
        decision = policy.decide(features, ALL)
        assert decision.strategy == learned.trained.ranking[0] == "ttt_in_context"
        assert "out of distribution; fallback" in decision.reason
    assert not without.needs_more(free)
    assert learned.needs_more(free), "the evidence is not measured yet"


def test_a_kind_without_training_data_is_out_of_distribution(learned):
    assert "out of distribution" in learned.decide(at(1.0, kind_list=0.0, kind_text=1.0), ALL).reason


def test_training_is_estimated_to_help_between_easy_and_hopeless_queries(learned):
    """What a line cannot say of a strategy's own answers: it helps where in-context is wrong, and can be mended."""
    uplifts = []
    for level in (-1.5, -0.2, 1.5):
        scores = learned.decide(at(level), ALL).scores
        uplifts.append(scores["ttt_in_context"] - scores["in_context"])
    assert uplifts[1] > max(uplifts[0], uplifts[2]) + 0.1


def constant(chance: float) -> CalibratedClassifier:
    return CalibratedClassifier(DummyClassifier(strategy="constant", constant=chance).fit(np.zeros((2, 1)), [0, 1]))


def test_probabilities_compose_fixes_and_breaks(learned):
    changes = {s: (Change(constant(1), constant(0)), Change(constant(0), constant(1))) for s in NAMES}
    policy = LearnedPolicy(dataclasses.replace(learned.trained, changes=changes))
    scores = policy.decide(at(0.3), ALL).scores
    assert scores["in_context_vote"] == pytest.approx(1, abs=1e-3), "it mends all and spoils nothing"
    assert scores["ttt_in_context"] == pytest.approx(0, abs=1e-3)
    assert 0.1 < scores["in_context"] < 0.9


def test_the_reason_of_a_guarantee_has_finite_numbers(learned):
    policy = LearnedPolicy(dataclasses.replace(learned.trained, keep_threshold=NEVER, risk=0.1))
    decision = policy.decide(at(1.0), ALL)
    assert decision.strategy != "in_context"
    assert "inf" not in decision.reason.replace("in_context", "")


def test_a_fixed_policy_skips_the_probe_and_uses_its_strategy():
    fixed = FixedPolicy("ttt_direct")
    assert not fixed.needs_more(thumb(0.0))
    assert fixed.decide(thumb(0.9), ["in_context", "ttt_direct"]).strategy == "ttt_direct"
    instead = fixed.decide(thumb(0.9), ["in_context", "ttt_in_context"])
    assert instead.strategy == "in_context"
    assert "requested by the caller); it cannot be used" in instead.reason


@pytest.mark.parametrize(
    ("agreement", "kind", "choice"),
    [
        (0.9, "list", "in_context"),
        (0.9, "grid", "in_context"),
        (0.2, "list", "ttt_in_context"),
        (0.2, "text", "ttt_in_context"),
        (0.2, "grid", "ttt_augmented"),
    ],
)
def test_the_rule_of_thumb_trains_if_leave_one_out_accuracy_is_low(agreement, kind, choice):
    decision = HeuristicPolicy().decide(thumb(agreement, kind), ["in_context", "ttt_in_context", "ttt_augmented"])
    assert decision.strategy == choice
    assert "rule of thumb" in decision.reason
    assert decision.difficulty == pytest.approx(1 - agreement)


@pytest.mark.parametrize(
    ("loo_hits", "kind", "choice"),
    [
        (0.0, "list", "ttt_in_context"), (0.4, "list", "ttt_crossfit"), (0.7, "list", "ttt_in_context"),
        (0.4, "text", "ttt_in_context"),
    ],
)  # fmt: skip
def test_the_rule_of_thumb_cross_validates_if_leave_one_out_accuracy_is_between(loo_hits, kind, choice):
    features = thumb(0.4, kind)
    features = dataclasses.replace(features, values={**features.values, "loo_hits": loo_hits, "orders_hits": 0.0})
    allowed = ["in_context", "ttt_in_context", "ttt_crossfit"]
    decision = HeuristicPolicy().decide(features, allowed)
    assert decision.strategy == choice
    assert ("cross-validates its adapters" in decision.reason) == (choice == "ttt_crossfit")
    assert HeuristicPolicy().decide(features, allowed, tried=["ttt_crossfit"]).strategy == "ttt_in_context"
    assert HeuristicPolicy().decide(features, allowed[:2]).strategy == "ttt_in_context", "it needs more demonstrations"
    assert HeuristicPolicy().decide(thumb(0.9), allowed).strategy == "in_context"


def test_the_rule_of_thumb_probes_unless_the_estimate_is_high():
    assert HeuristicPolicy().needs_more(thumb(0.5, stage=0))
    assert not HeuristicPolicy().needs_more(thumb(0.99, stage=0))
    assert not HeuristicPolicy().needs_more(thumb(0.5))


def test_the_rule_of_thumb_uses_an_available_strategy():
    assert HeuristicPolicy().decide(thumb(0.1), ["zero_shot"]).strategy == "zero_shot"
    assert HeuristicPolicy().decide(
        thumb(0.1), ["in_context", "ttt_in_context"], tried=["ttt_in_context"]
    ).strategy == ("in_context")


def test_a_policy_for_this_model_is_loaded(learned, tmp_path):
    save_bundle(learned.trained, tmp_path)
    loaded = load_policy(tmp_path, base_hash="base")
    assert loaded.decide(at(-0.25), ALL) == learned.decide(at(-0.25), ALL)
    assert loaded.card()["scorecard"] == learned.trained.scorecard


def test_a_requested_policy_for_another_model_is_refused(learned, tmp_path):
    save_bundle(learned.trained, tmp_path)
    with pytest.raises(PolicyError, match=r"trained for another model, base; this model is other\..*policy fit"):
        load_policy(tmp_path, base_hash="other")


def test_without_a_shipped_policy_for_the_model_the_rule_of_thumb_gives_the_reason(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundled")
    missing = load_policy(base_hash="base")
    assert "no policy was trained" in missing.decide(thumb(0.9), ALL).reason
    save_bundle(learned.trained, tmp_path / "bundled")
    assert load_policy(base_hash="base").name == "learned"
    other = load_policy(base_hash="other")
    assert other.name == "rule of thumb"
    assert "another model" in other.decide(thumb(0.9), ALL).reason


def test_only_a_policy_that_beats_fixed_strategies_significantly_is_the_default(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundled")
    sure = {"strategy": "x", "value": 0.05, "interval_90": [0.01, 0.1]}
    names = ("gain_over_sbs", "gain_over_best_fixed")
    cases = [(low, name, low > 0) for name in names for low in (0.01, 0.0, -0.1)]
    for low, name, released in cases:
        gains = dict.fromkeys(names, sure) | {name: sure | {"interval_90": [low, 0.1]}}
        one = dataclasses.replace(learned.trained, scorecard={**learned.trained.scorecard, **gains})
        assert one.released == released
        save_bundle(one, tmp_path / "bundled", over_released=True)
        policy = load_policy(base_hash="base")
        assert isinstance(policy, LearnedPolicy if released else FixedPolicy)
        assert isinstance(load_policy(tmp_path / "bundled", base_hash="base"), LearnedPolicy), "asked for by name"
    assert policy.strategy == learned.trained.ranking[0]
    assert "neither significantly better nor as good and cheaper" in policy.decide(at(0.0), ALL).reason


@pytest.mark.parametrize(
    ("low", "cost", "release"),
    [
        (0.001, 50.0, "better"), (-0.005, 50.0, "cheaper"), (-0.005, 60.0, None), (-0.005, 70.0, None),
        (-0.011, 1.0, None),
    ],
)  # fmt: skip
def test_a_policy_that_is_not_worse_and_cheaper_is_released(learned, low, cost, release) -> None:
    gain = {"strategy": "x", "value": 0.002, "interval_90": [low, 0.01]}
    arms = {"policy": {"cost": cost}, "sbs": {"cost": 80.0}, "x": {"cost": 60.0}}
    card = {"gain_over_sbs": gain, "gain_over_best_fixed": gain, "arms": arms}
    one = dataclasses.replace(learned.trained, scorecard=card)
    assert (one.release, one.released) == (release, release is not None)
    dearer = dataclasses.replace(one, scorecard=card | {"arms": arms | {"sbs": {"cost": 50.0}}})
    assert dearer.release == (release if release == "better" else None)


def test_a_released_policy_is_replaced_by_an_unreleased_one_only_on_request(learned, tmp_path):
    sure = {"strategy": "x", "value": 0.05, "interval_90": [0.01, 0.1]}
    names = ("gain_over_sbs", "gain_over_best_fixed")
    released = dataclasses.replace(learned.trained, scorecard=learned.trained.scorecard | dict.fromkeys(names, sure))
    worse = dataclasses.replace(released, scorecard={}, seed=5)
    served, beside = tmp_path / "served", tmp_path / "served-unreleased"
    save_bundle(worse, served)
    save_bundle(released, served)
    assert save_bundle(worse, served) == beside
    assert (load_bundle(served).seed, load_bundle(beside).seed) == (0, 5)
    save_bundle(dataclasses.replace(released, seed=6), served)
    assert load_bundle(served).seed == 6
    save_bundle(dataclasses.replace(worse, base_hash="other"), served)
    assert load_bundle(served).seed == 5, "of another model it is no use"
    save_bundle(released, served)
    save_bundle(worse, served, over_released=True)
    assert load_bundle(served).seed == 5


def test_without_the_probe_the_guarantee_needs_the_skip_probe_threshold(learned):
    """A budget may forbid to measure what the promise was tested on: then an in-context answer is kept only where no
    more would have been measured."""
    policy = LearnedPolicy(
        dataclasses.replace(learned.trained, keep_threshold=0.3, risk=0.2, skip_probe_threshold=0.999)
    )
    assert policy.decide(at(1.0), ALL).strategy == "in_context"
    decision = policy.decide(at(1.0, stage=0), ALL)
    assert decision.strategy != "in_context"
    assert not decision.may_keep
    assert "requires probability 1.00 to keep an in-context answer without the probe" in decision.reason
    assert OUTSIDE_GUARANTEE in policy.decide(at(1.0, stage=0), ["in_context"]).reason
    sure = LearnedPolicy(dataclasses.replace(policy.trained, skip_probe_threshold=0.3))
    assert sure.decide(at(1.0, stage=0), ALL).strategy == "in_context"
    generous = LearnedPolicy(dataclasses.replace(policy.trained, keep_threshold=0.0, risk=0.9))
    assert not generous.decide(at(0.0, stage=0), ALL).may_keep, "what was promised is of those that need no more"
    none = LearnedPolicy(dataclasses.replace(policy.trained, keep_threshold=0.0, risk=None))
    assert none.decide(at(1.0, stage=0), ALL).strategy == "in_context", "nothing was promised"
    assert none.decide(at(1.0, stage=0), ALL).may_keep


def test_out_of_distribution_queries_are_outside_the_guarantee_and_the_reason_says_so() -> None:
    policy = LearnedPolicy(dataclasses.replace(trained_small(), keep_threshold=NEVER, risk=0.1, ranking=ALL))
    strange = at(0.0, **dict.fromkeys(NAMES[0], 1e6))
    assert policy.is_out_of_distribution(strange)
    assert policy.decide(strange, ALL).strategy == ALL[1]
    alone = policy.decide(strange, ["in_context"])
    assert alone.strategy == "in_context"
    assert OUTSIDE_GUARANTEE in alone.reason
    assert OUTSIDE_GUARANTEE in policy.decide(at(0.0), ["in_context"]).reason


def test_a_policy_of_other_recipes_is_refused_unless_ignored(learned, tmp_path) -> None:
    save_bundle(dataclasses.replace(learned.trained, recipes={"ttt_in_context/list": "a"}), tmp_path)
    assert load_policy(tmp_path, base_hash="base").name == "learned"
    assert load_policy(tmp_path, base_hash="base", recipe_of=lambda strategy, kind: "a").name == "learned"
    with pytest.raises(PolicyError, match=r"another recipe of ttt_in_context.*on list tasks.*--ignore-mismatch"):
        load_policy(tmp_path, base_hash="base", recipe_of=lambda strategy, kind: "b")
    known = load_policy(tmp_path, base_hash="other", recipe_of=lambda strategy, kind: "b", ignore_mismatch=True)
    assert known.name == "learned"


def test_the_estimators_of_a_shipped_policy_for_another_model_are_not_read(learned, tmp_path, monkeypatch) -> None:
    save_bundle(dataclasses.replace(learned.trained, recipes={"ttt_in_context/list": "a"}), tmp_path / "bundled")
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundled")
    read = []
    monkeypatch.setattr(bundle_module, "_read_estimators", lambda *_: read.append("estimators"))
    assert isinstance(load_policy(base_hash="other"), HeuristicPolicy)
    assert isinstance(load_policy(base_hash="base", recipe_of=lambda *_: "another"), HeuristicPolicy)
    assert not read


def test_a_shipped_policy_is_loaded_by_its_name(learned, tmp_path, monkeypatch) -> None:
    """Unless a folder of that name is there."""
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundles" / "bundled")
    save_bundle(dataclasses.replace(learned.trained, datasets=("theirs",)), tmp_path / "bundles" / "public")
    monkeypatch.chdir(tmp_path)
    assert load_policy("public", base_hash="base").card()["datasets"] == ("theirs",)
    with pytest.raises(PolicyError, match="another: not a usable policy"):
        load_policy("another", base_hash="base")
    save_bundle(dataclasses.replace(learned.trained, datasets=("mine",)), tmp_path / "public")
    assert load_policy("public", base_hash="base").card()["datasets"] == ("mine",)


def test_the_policies_that_ship_are_for_the_bundled_model_and_released() -> None:
    """`public` was trained on all that `bundled` was, and on public sets."""
    shipped, public = load_bundle(BUNDLED), load_bundle(bundle_folder("public"))
    assert shipped.released
    assert public.released
    assert public.base_hash == shipped.base_hash
    assert public.strategies == shipped.strategies
    assert set(public.datasets) > set(shipped.datasets)


def test_a_policy_of_an_unregistered_strategy_is_refused(learned, tmp_path) -> None:
    save_bundle(dataclasses.replace(learned.trained, recipes={"mine/list": "a"}), tmp_path)
    with pytest.raises(
        PolicyError, match="the strategy mine too, which is not registered here: load its file with --plug"
    ):
        load_policy(tmp_path, base_hash="base", recipe_of=lambda strategy, kind: None)


def test_a_policy_of_another_prompt_format_is_refused_unless_ignored(learned, tmp_path) -> None:
    save_bundle(dataclasses.replace(learned.trained, prompt_format="compact"), tmp_path)
    assert load_policy(tmp_path, base_hash="base").name == "learned"
    assert load_policy(tmp_path, base_hash="base", prompt_format="compact").name == "learned"
    with pytest.raises(
        PolicyError, match=r"prompt format 'compact'; this model is prompted in 'chat'.*--ignore-mismatch"
    ):
        load_policy(tmp_path, base_hash="base", prompt_format="chat")
    assert load_policy(tmp_path, base_hash="base", prompt_format="chat", ignore_mismatch=True).name == "learned"


def test_a_guarantee_that_cannot_hold_keeps_nothing():
    policy = LearnedPolicy(trained(SMALL, risk=0.001))
    assert policy.trained.keep_threshold == NEVER
    decision = policy.decide(at(2.0), ALL)
    assert decision.strategy != "in_context"
    assert "requires probability 2.00 to keep" in decision.reason
    with pytest.raises(PolicyError, match="above 0 and below 1"):
        trained(risk=1.5)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("agreement", [0.1, 0.9])
def test_a_rule_of_thumb_shows_measurements_and_no_probability(agreement: float, stage: int) -> None:
    reason = HeuristicPolicy().decide(thumb(agreement, stage=stage), ["in_context", "ttt_in_context"]).reason
    assert "probability" not in reason
    assert ("leave-one-out accuracy on the demonstrations" in reason) == (stage == 1)


def test_a_cached_adapter_costs_what_its_answers_cost(learned):
    features = at(-0.25)
    cached = dataclasses.replace(features, cached_adapters={"ttt_in_context": 1.0, "ttt_unknown": 1.0})
    before, decision = learned.decide(features, ALL), learned.decide(cached, ALL)
    assert (before.costs["ttt_in_context"], decision.costs["ttt_in_context"]) == (60.0, 1.0)
    assert decision.scores == before.scores
    assert decision.reason.endswith("; its adapter for these demonstrations is cached")
    easy = at(0.6)
    dear = LearnedPolicy(dataclasses.replace(learned.trained, cost_weight=0.5))
    assert dear.decide(easy, ALL).strategy == "in_context"
    assert "cached" not in dear.decide(dataclasses.replace(easy, cached_adapters={"zero_shot": 1.0}), ALL).reason


def test_a_query_out_of_distribution_is_answered_by_a_cached_adapter_without_the_probe(learned):
    far = at(1.0, **dict.fromkeys(STAGE_0[6:12], 50.0))
    free = Features(0, {name: far.values[name] for name in STAGE_0}, {"ttt_augmented": 3.0})
    known = [name for name in learned.trained.strategies if name != learned.trained.ranking[0]]
    cached = dataclasses.replace(free, cached_adapters={known[-1]: 3.0})
    assert learned.needs_more(dataclasses.replace(free, cached_adapters={}))
    assert not learned.needs_more(cached)
    assert learned.decide(cached, ALL).strategy == known[-1]
    assert "the strategy with an adapter" in learned.decide(cached, ALL).reason


def test_the_rule_of_thumb_prefers_a_cached_adapter_and_needs_no_probe():
    cached = dataclasses.replace(thumb(0.1, stage=0), cached_adapters={"ttt_augmented": 3.0})
    assert not HeuristicPolicy().needs_more(cached)
    decision = HeuristicPolicy().decide(cached, ["in_context", "ttt_in_context", "ttt_augmented"])
    assert decision.strategy == "ttt_augmented"
    assert "its adapter for these demonstrations is cached" in decision.reason


def test_queries_that_share_an_adapter_share_what_training_costs(learned):
    features = dataclasses.replace(at(-0.25), shared_adapters={"ttt_in_context": 1.0}, queries=4)
    decision = learned.decide(features, ALL)
    assert decision.costs["ttt_in_context"] == pytest.approx(1.0 + 59.0 / 4)
    assert decision.reason.endswith("; 4 queries share its adapter")
    assert features.cost_alone("ttt_in_context", decision.costs["ttt_in_context"]) == pytest.approx(60.0)
    assert features.cost_alone("zero_shot", 0.5) == 0.5
    assert dataclasses.replace(features, cached_adapters={"ttt_direct": 1.0}).cost_alone("ttt_direct", 1.0) is None
    cheap = dataclasses.replace(features, shared_adapters={"ttt_in_context": 100.0})
    assert learned.decide(cheap, ALL).costs["ttt_in_context"] == 60.0, "answering costs no more than everything"


def test_costs_are_multiples_of_an_in_context_answer_that_shares_the_reading_of_the_demonstrations(learned):
    shared = {"ttt_in_context": 1.0, "ttt_augmented": 3.0}
    features = dataclasses.replace(at(-0.25), shared_adapters=shared, queries=4, reading_share=0.25)
    alone = {"in_context": 0.0, "in_context_vote": 10.0, "ttt_in_context": 60.0, "ttt_augmented": 63.0}
    paid = {name: features.shared_cost(name, cost) for name, cost in alone.items()}
    assert paid == {"in_context": 0, "in_context_vote": 40, "ttt_in_context": 60, "ttt_augmented": 72}
    assert {name: features.cost_alone(name, cost) for name, cost in paid.items()} == alone
    cached = dataclasses.replace(features, cached_adapters=shared, shared_adapters={})
    assert [cached.shared_cost(name, 60.0) for name in shared] == [1.0, 12.0], "votes read whole prompts"
    views = ["in_context_vote", "ttt_augmented"]
    paid = {
        name: dataclasses.replace(features, shared_views=views).shared_cost(name, cost) for name, cost in alone.items()
    }
    assert paid == {"in_context": 0, "in_context_vote": 10, "ttt_in_context": 60, "ttt_augmented": 63}
    again = dataclasses.replace(features, shared_views=views)
    assert {name: again.cost_alone(name, cost) for name, cost in paid.items()} == alone
    assert dataclasses.replace(cached, shared_views=views).shared_cost("ttt_augmented", 60.0) == 3.0
    assert learned.decide(features, ALL).costs["in_context"] == 0


def test_every_setting_of_the_heuristic_policy_is_part_of_its_digest() -> None:
    policies = [
        HeuristicPolicy(), HeuristicPolicy(note="why"), HeuristicPolicy(skip_probe_threshold=0.8),
        HeuristicPolicy(keep_threshold=0.5), HeuristicPolicy(training_strategies={}),
        HeuristicPolicy(doubtful_below=0.1), HeuristicPolicy(cross_validated_kinds=()),
    ]  # fmt: skip
    assert len({policy_digest(policy) for policy in policies}) == len(policies)
    assert policy_digest(HeuristicPolicy()) == policy_digest(policies[0])
