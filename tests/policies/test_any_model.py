"""A policy for models without one of their own: trained on several, judged on models held out, and self-calibrating."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache

import numpy as np
import pytest

from autottt.policies import any_model
from autottt.policies import policy as policy_module
from autottt.policies.any_model import PROBE_COSTS, completed, tables_by_model, train_any_model
from autottt.policies.bundle import load_bundle, save_bundle
from autottt.policies.bundle_card import policies_folder
from autottt.policies.calibration import DECAY, MAX_SHIFT, Calibration, share_answered_right
from autottt.policies.classifiers import group_folds
from autottt.policies.exploration import ExploringPolicy
from autottt.policies.features import COMPARABLE, NAMES, REQUIRED, Features
from autottt.policies.outcomes import Outcome
from autottt.policies.policy import AnyModelPolicy, FixedPolicy, HeuristicPolicy, LearnedPolicy, load_policy
from autottt.policies.trained_policy import ProbePlan, TrainedPolicy
from autottt.policies.training import TrainingSettings, fit
from autottt.ttt_core.errors import PolicyError
from tests.policies.synthetic import ALL, at, made, thumb, trained_small

SIGNALS = ("answer_mean", "loo_hits", "reading_hits")
"""The features of the synthetic outcomes that tell whether the in-context answer is right."""
NOMINAL = {"in_context": 1.0, "in_context_vote": 8.0, "ttt_in_context": 300.0}


def of_model(name: str, seed: int, scale: float = 1.0) -> list[Outcome]:
    return [
        dataclasses.replace(o, base_hash=name, relative_cost=o.relative_cost * (scale if o.relative_cost > 1 else 1))
        for o in made(12, 8, seed)
    ]


OUTCOMES = [*of_model("first", 0), *of_model("second", 1, 4.0), *of_model("third", 2, 0.5)]


def with_shares(outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes where `loo_hits` are shares, on average those of right answers to queries."""
    return [
        dataclasses.replace(o, features={**o.features, "loo_hits": min(1.0, max(0.0, 0.4 + o.features["loo_hits"]))})
        if o.features else o for o in outcomes
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def few_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies are fitted many times here; which estimator is selected is tested elsewhere."""
    monkeypatch.setattr(any_model, "CANDIDATES", ("logistic",))


@cache
def trained() -> TrainedPolicy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(any_model, "CANDIDATES", ("logistic",))
        return train_any_model(OUTCOMES, fold_count=2)


@pytest.fixture
def policy(tmp_path, monkeypatch) -> AnyModelPolicy:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    sure = {"value": 0.1, "interval_90": [0.05, 0.2]}
    released = dataclasses.replace(trained(), scorecard={**trained().scorecard, "gain_over_rule_of_thumb": sure})
    save_bundle(released, policies_folder() / "any_model")
    loaded = load_policy(base_hash="unknown", nominal_cost=NOMINAL.__getitem__)
    assert isinstance(loaded, AnyModelPolicy)
    return loaded


def measured(level: float, right: float, stage: int = 1) -> Features:
    return at(level, stage, **({"loo_hits": right} if stage else {}))


def test_features_and_costs_mean_the_same_for_every_model() -> None:
    tables = tables_by_model(OUTCOMES, {})
    assert len({table.feature_names[1] for table in tables.values()}) == 1
    names = set(tables["first"].feature_names[1])
    assert names <= {*COMPARABLE, *REQUIRED}
    assert not names & {"model_parameters", "model_vocabulary", "answer_mean", "loo_mean"}
    for table in tables.values():
        assert table.costs.mean(axis=0).max() == pytest.approx(100)


def test_outcomes_of_older_features_are_completed_with_what_follows_from_them() -> None:
    values = {"answer_mean": -2.0, "answer_total": -6.0, "reading_mean": -1.0, "loo_mean": -1.0}
    old = dataclasses.replace(OUTCOMES[0], features=values)
    new = completed(old, 100).features
    assert new["answer_mean_normalised"] == pytest.approx(-2 / 4.605, rel=1e-3)
    assert new["answer_tokens"] == pytest.approx(1.386, rel=1e-3)
    assert completed(dataclasses.replace(old, features={**values, "answer_tokens": 7.0}), 100).features[
        "answer_tokens"
    ] == (7.0)
    assert completed(dataclasses.replace(old, features={}), 100).features == {}


def test_each_model_is_judged_by_policies_that_saw_neither_it_nor_the_families(monkeypatch) -> None:
    seen = []

    def spied(table, settings, *ranking):
        seen.append({d.partition(":")[0] for d in table.datasets})
        return fitted(table, settings, *ranking)

    fitted = any_model.fit
    monkeypatch.setattr(any_model, "fit", spied)
    judged = train_any_model(with_shares(OUTCOMES), fold_count=2)
    assert [len(models) for models in seen] == [2] * 6 + [3]
    assert set(judged.scorecard["models"]) == {"first", "second", "third"} == set(judged.models)
    for card in judged.scorecard["models"].values():
        utilities = {name: arm["utility"] for name, arm in card["arms"].items()}
        assert utilities["policy"] > utilities["random_at_equal_share"] + 0.01
        assert card["difficulty"]["auroc"] > 0.7
    assert judged.scorecard["gain_over_rule_of_thumb"]["interval_90"][0] > 0
    with pytest.raises(PolicyError, match="outcomes of at least 2 models; received 1"):
        train_any_model(of_model("first", 0))


def test_no_task_is_on_both_sides_of_a_split_whatever_its_family_is_called(monkeypatch) -> None:
    def spied(table, settings):
        trained_on.append({task.partition("-")[0] for task in table.tasks})
        return fitted(table, settings)

    def noted(results, held_out, policy, unseen, *more):
        judged_on.append({task.partition("-")[0] for task in unseen.tasks})
        recorded(results, held_out, policy, unseen, *more)

    fitted, recorded = any_model._fitted, any_model.record_policy
    trained_on: list[set[str]] = []
    judged_on: list[set[str]] = []
    monkeypatch.setattr(any_model, "_fitted", spied)
    monkeypatch.setattr(any_model, "record_policy", noted)
    tasks = [dataclasses.replace(o, digest=o.task_id) for o in OUTCOMES]
    renamed = [dataclasses.replace(o, family=f"{o.family} of {o.base_hash}") for o in tasks]
    train_any_model(renamed, fold_count=2)
    first_rounds = [*judged_on[:2], *judged_on[4:6], *judged_on[8:10]]  # each model is judged twice, in two folds
    for unseen, known in zip(first_rounds, trained_on[:6], strict=True):
        assert unseen
        assert known
        assert not unseen & known


def test_where_nothing_is_left_to_train_on_the_families_are_named() -> None:
    first = of_model("first", 0)
    families = [o.family for o in first if o.strategy == "in_context"]
    _, held_out = group_folds(families, 3, 0)[0]
    inside = {families[case] for case in held_out}
    second = [o for o in of_model("second", 1) if o.family in inside]
    with pytest.raises(PolicyError, match="nothing is left to train on while a model and the families 'family"):
        train_any_model([*first, *second], fold_count=2)


def test_a_held_out_model_is_judged_with_the_calibration_by_its_own_demonstrations(monkeypatch) -> None:
    wrong = [  # the third model answers no query and no demonstration right in context
        dataclasses.replace(o, correct=0.0, features={**o.features, "loo_hits": 0.0})
        if (o.base_hash, o.strategy) == ("third", "in_context") else o for o in with_shares(OUTCOMES)
    ]  # fmt: skip
    calibrated = train_any_model(wrong, fold_count=2).scorecard["models"]["third"]["difficulty"]["ece"]
    monkeypatch.setattr(any_model, "_calibration_shifts", lambda table, results, seed: np.zeros(len(table)))
    plain = train_any_model(wrong, fold_count=2).scorecard["models"]["third"]["difficulty"]["ece"]
    assert calibrated < 0.9 * plain, (calibrated, plain)


def test_it_is_the_default_only_where_it_beats_the_rule_of_thumb_and_says_so(policy, monkeypatch) -> None:
    decision = policy.decide(at(1.0), ALL)
    assert "no policy was trained for this model; this one was trained on 3 others" in decision.reason
    assert decision.costs["ttt_in_context"] == pytest.approx(300, rel=0.3), "costs are those of this model's recipes"
    worse = {"value": 0.1, "interval_90": [-0.05, 0.2]}
    card = {**trained().scorecard, "gain_over_rule_of_thumb": worse}
    save_bundle(dataclasses.replace(trained(), scorecard=card), policies_folder() / "any_model", over_released=True)
    monkeypatch.setattr(policy_module, "ANY_MODEL_SHIPPED", policies_folder() / "none")
    rule = load_policy(base_hash="unknown", nominal_cost=NOMINAL.__getitem__)
    assert isinstance(rule, HeuristicPolicy)
    assert "the policy for any model does not beat this rule significantly" in rule.decide(thumb(0.5), ALL).reason
    assert isinstance(load_policy("any_model", base_hash="x", nominal_cost=NOMINAL.__getitem__), AnyModelPolicy)
    assert isinstance(load_policy(base_hash="unknown"), HeuristicPolicy)
    monkeypatch.undo()
    bundled = json.loads((policy_module.BUNDLED / "card.json").read_text())["base_hash"]
    assert isinstance(load_policy(base_hash=bundled, nominal_cost=NOMINAL.__getitem__), LearnedPolicy)


def test_it_precedes_a_shipped_policy_that_is_not_released_and_names_what_it_knows(
    policy, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundles" / "bundled")
    save_bundle(trained_small(), tmp_path / "bundles" / "bundled")
    sure = {"strategy": "x", "value": 0.05, "interval_90": [0.01, 0.1]}
    released = {"gain_over_sbs": sure, "gain_over_best_fixed": sure}
    for card, kind in (({}, AnyModelPolicy), (released, LearnedPolicy)):
        own = dataclasses.replace(trained_small(), base_hash="first", scorecard=card)
        save_bundle(own, tmp_path / "bundles" / "own", over_released=True)
        served = load_policy(base_hash="first", nominal_cost=NOMINAL.__getitem__)
        assert isinstance(served, kind)
        if kind is AnyModelPolicy:
            assert "the policy was trained on this model and 2 others" in served.decide(at(1.0), ALL).reason


def test_the_probe_is_skipped_on_models_on_which_it_costs_nearly_as_much_as_training(policy) -> None:
    plans = trained().probe_plans
    assert [plan.cost for plan in plans] == list(PROBE_COSTS)
    margins = [math.inf if plan.margin is None else plan.margin for plan in plans]
    assert margins[0] > margins[-1] == min(margins), "without a dear probe a smaller lead suffices"
    assert not plans[-1].unfamiliar
    answers = trained().probe_answers
    assert answers > 0
    cheap, dear = (
        load_policy(base_hash="unknown", nominal_cost=(NOMINAL | {"ttt_in_context": training}).__getitem__)
        for training in (1000 * answers, answers)
    )
    levels = [n / 10 for n in range(-10, 11)]
    asked = [sum(one.needs_more(measured(level, 0.0, 0)) for level in levels) for one in (cheap, dear)]
    assert asked[0] > asked[1]
    for one in (cheap, dear):
        assert isinstance(one, AnyModelPolicy)
        assert one.learned.trained.probe_cost == pytest.approx(answers), "in multiples of the in-context answer's"


def test_every_model_counts_alike_in_the_ranking() -> None:
    table = any_model.joined([any_model.tables_by_model(OUTCOMES, {})[name] for name in ("first", "second", "third")])
    own = np.array([d.startswith("0:") for d in table.datasets])
    many = table.take(np.concatenate([np.tile(np.flatnonzero(own), 20), np.flatnonzero(~own)]))
    best = many.correct.copy()
    best[:, 0] = [d.startswith("0:") for d in many.datasets]  # in context is best on the model with many outcomes only
    best[:, 1] = [not d.startswith("0:") for d in many.datasets]
    many = dataclasses.replace(many, correct=best)
    settings = TrainingSettings(any_model.COST_WEIGHT, 0, 3, any_model.CANDIDATES, predict_costs=False)
    assert any_model._fitted(many, settings).ranking[0] == many.strategies[1]


def test_margins_are_such_that_the_estimates_paid_on_models_held_out() -> None:
    """What is right on one model where a feature is high is right on another where it is low."""

    def reversed_signals(outcome: Outcome) -> Outcome:
        values = outcome.features.items()
        return dataclasses.replace(outcome, features={n: -value if n in SIGNALS else value for n, value in values})

    reversed_features = [reversed_signals(o) for o in OUTCOMES if o.base_hash == "second"]
    opposite = [o for o in OUTCOMES if o.base_hash == "first"] + reversed_features
    alike = [o for o in OUTCOMES if o.base_hash != "third"]
    settings = TrainingSettings(any_model.COST_WEIGHT, 0, 3, any_model.CANDIDATES, predict_costs=False)
    tables = {
        name: any_model.joined(list(any_model.tables_by_model(some, {}).values()))
        for name, some in (("alike", alike), ("opposite", opposite))
    }
    alone, across = ({name: one(table, settings) for name, table in tables.items()} for one in (fit, any_model._fitted))
    assert max(across["alike"].utility_margins) < 0.3
    assert min(across["opposite"].utility_margins) > max(alone["opposite"].utility_margins)


def test_classifiers_for_a_model_held_out_saw_neither_it_nor_its_families(monkeypatch) -> None:
    table, seen = any_model.joined(list(any_model.tables_by_model(OUTCOMES, {}).values())), []

    def noted(elsewhere, unseen, settings):
        seen.append((elsewhere, unseen))
        return {stage: np.zeros(unseen.correct.shape) for stage in unseen.feature_names}

    monkeypatch.setattr(any_model, "estimated_elsewhere", noted)
    first = any_model._model_of(table) == "0"
    single_family = table.families[0]
    table = table.take(np.flatnonzero(~first | (np.array(table.families) == single_family)))
    settings = TrainingSettings(any_model.COST_WEIGHT, 0, 3, any_model.CANDIDATES, predict_costs=False)
    any_model._fitted(table, settings)
    assert sum(len(unseen) for _, unseen in seen) == len(table)
    for elsewhere, unseen in seen:
        assert len(set(any_model._model_of(unseen))) == 1
        others = {"0", "1", "2"} - set(any_model._model_of(unseen))
        assert set(any_model._model_of(elsewhere)) == others - ({"0"} if single_family in unseen.families else set())
        assert not set(elsewhere.families) & set(unseen.families)


def test_the_plan_of_the_nearest_cost_is_taken_by_ratio() -> None:
    plans = (ProbePlan(1.0, 0.3, True), ProbePlan(100.0, 0.1, False))
    policy = dataclasses.replace(trained(), probe_plans=plans)
    near, far = policy.with_probe_cost(9.0), policy.with_probe_cost(11.0)
    assert (near.probe_margin, near.probes_unfamiliar, near.probe_cost) == (0.3, True, 9.0)
    assert (far.probe_margin, far.probes_unfamiliar) == (0.1, False)
    without = dataclasses.replace(policy, probe_plans=())
    assert without.with_probe_cost(9.0) is without


def test_a_bundle_of_it_survives(tmp_path) -> None:
    save_bundle(trained(), tmp_path / "b")
    loaded = load_bundle(tmp_path / "b")
    assert (loaded.models, loaded.feature_names) == (trained().models, trained().feature_names)
    assert set(loaded.feature_names[1]) < set(NAMES[1])
    assert (loaded.probe_plans, loaded.probe_answers) == (trained().probe_plans, trained().probe_answers)


def test_answers_to_demonstrations_shift_later_estimates_and_no_earlier_snapshot(policy) -> None:
    before = policy.snapshot()
    first = before.decide(at(0.0), ALL)
    for _ in range(30):
        policy.observe(measured(0.0, 0.0))
    after = policy.snapshot().decide(at(0.0), ALL)
    assert before.decide(at(0.0), ALL) == first, "a run decides by the snapshot with which it began"
    assert after.scores["in_context"] < first.scores["in_context"]
    assert "calibrated on the demonstrations of 30 queries" in after.reason
    assert after.calibration["queries"] == 30
    repeated = policy.with_calibration(Calibration.from_plain(after.calibration))
    assert repeated.decide(at(0.0), ALL) == after
    assert policy.card() == before.card()


def test_without_the_probe_the_last_demonstration_is_the_label(policy) -> None:
    known = at(0.0, 0)
    for right in (0.0, 1.0):
        values = {**known.values, "demonstrations": 4.0, "reading_hit_last": right}
        policy.observe(dataclasses.replace(known, values=values))
    observed = policy.snapshot().calibration
    assert (observed.queries, observed.right) == (2, 1.0)
    assert 0 < observed.estimated < 2


def test_what_a_query_says_about_the_demonstrations() -> None:
    reading = {"demonstrations": 2.0, "reading_hit_last": 1.0}
    assert share_answered_right(reading) == 1.0
    assert share_answered_right({**reading, "loo_possible": 1.0, "loo_hits": 0.5}) == 0.5
    assert share_answered_right({**reading, "demonstrations": 1.0, "loo_possible": 0.0, "loo_hits": 0.0}) is None
    assert share_answered_right({"demonstrations": 2.0}) is None, "outcomes without this feature"


def test_the_shift_is_bounded_and_forgets() -> None:
    wrong = Calibration()
    for _ in range(1000):
        wrong = wrong.updated(0.95, 0.0)
    assert wrong.shift == -MAX_SHIFT
    assert wrong.weight == pytest.approx(1 / (1 - DECAY), rel=1e-3)
    for _ in range(1000):
        wrong = wrong.updated(0.95, 1.0)
    assert wrong.shift > 0
    assert Calibration().shift == 0.0
    assert abs(Calibration().updated(0.5, 0.0).shift) < 0.5


def test_an_exploring_policy_passes_snapshots_on(policy) -> None:
    exploring = ExploringPolicy(policy)
    before = exploring.snapshot()
    exploring.observe(measured(0.0, 1.0))
    assert before.policy.calibration.queries == 0
    assert exploring.snapshot().policy.calibration.queries == 1
    trial = ExploringPolicy(FixedPolicy("in_context"), policy)
    before = trial.snapshot()
    trial.observe(measured(0.0, 1.0))
    assert before.shadow.calibration.queries == 1, "what was observed before, by either"
    assert trial.snapshot().shadow.calibration.queries == 2
