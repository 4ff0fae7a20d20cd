"""Training is reproducible, evaluates on held-out families, and bounds the risk of kept answers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from autottt.policies import training
from autottt.policies.features import NAMES
from autottt.policies.outcome_table import OutcomeTable, build_outcome_table
from autottt.policies.policy import (
    LearnedPolicy,
)
from autottt.policies.simulation import simulate
from autottt.policies.trained_policy import NEVER
from autottt.policies.training import (
    TrainingSettings,
    _cross_validate,
    _fit_stage,
    _select_keep_threshold,
    _select_margin,
    fit,
    train_policy,
)
from autottt.ttt_core.errors import PolicyError
from tests.policies.synthetic import ALL, OUTCOMES, SMALL, at, made, trained, trained_small, values_of


def test_training_twice_gives_equal_policies():
    one, two = (trained(SMALL, fold_count=2) for _ in range(2))
    rows = np.random.default_rng(0).normal(size=(20, len(NAMES[1])))
    np.testing.assert_array_equal(one.probabilities(1, rows), two.probabilities(1, rows))
    assert one.scorecard == two.scorecard


def test_several_processes_train_the_same_policy_as_one(forkserver, monkeypatch) -> None:
    monkeypatch.setattr("multiprocessing.get_context", lambda method: forkserver)  # a spawned one imports for seconds
    told: list[tuple[int, int]] = []
    one = trained(SMALL, repeats=2)
    several = trained(SMALL, repeats=2, workers=2, on_progress=lambda *n: told.append(n))
    assert several.scorecard == one.scorecard
    assert told == [(1, 4), (2, 4), (3, 4)]


def test_uninformative_features_close_no_gap():
    rng = np.random.default_rng(1)
    blind = [dataclasses.replace(o, features=values_of(0.0, rng)) if o.features else o for o in OUTCOMES]
    gain = trained(blind).scorecard["gain_over_sbs"]
    assert gain["interval_90"][0] < 0.01


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_strategy_that_is_always_wrong_or_always_right_gets_that_probability(value):
    outcomes = [dataclasses.replace(o, correct=value) if o.strategy == "in_context_vote" else o for o in SMALL]
    policy = LearnedPolicy(trained(outcomes, fold_count=2))
    scores = [policy.decide(at(level), ALL).scores["in_context_vote"] for level in (-1.0, 0.0, 1.0)]
    assert scores == pytest.approx([value] * 3, abs=0.06)


def test_served_outcomes_train_the_classifiers_of_the_strategies_tried():
    """A tenth is known whole, of the others only what two strategies did: the third is judged by the tenth."""
    served = [o for o in OUTCOMES if o.strategy != "in_context_vote" or o.task_id.endswith("-0")]
    policy = trained(served, fold_count=2)
    assert policy.scorecard["cases"] == 24
    few = trained([o for o in OUTCOMES if o.task_id.endswith("-0")], fold_count=2)
    cases, new = build_outcome_table(OUTCOMES), build_outcome_table(made(seed=5))

    def brier(known) -> float:
        return float(np.mean((known.probabilities(1, new.X)[:, 2] - new.correct[:, 2]) ** 2))

    assert cases.strategies[2] == "ttt_in_context"
    assert brier(policy) < brier(few)


@pytest.mark.parametrize("families", [110, 130, 220, 260])
def test_the_evaluated_and_the_final_policy_have_the_same_settings(families, monkeypatch) -> None:
    """What takes many families is for every fold, or for none and not for the policy either."""
    seen = []

    def noted(cases, settings):
        seen.append((settings.candidates, settings.predict_costs))
        return plain(cases, dataclasses.replace(settings, candidates=("logistic",), predict_costs=False))

    plain = training.fit
    monkeypatch.setattr(training, "fit", noted)
    train_policy(made(families, 1), repeats=1)
    assert len(seen) == 11  # five folds twice, and the policy
    ((candidates, predicts_costs),) = set(seen)
    assert ("forest" in candidates, predicts_costs) == (families * 4 / 5 >= 200, families * 4 / 5 >= 100)


def test_a_strategy_with_too_few_demonstrations_is_answered_in_context_and_not_trained_on() -> None:
    few = [
        dataclasses.replace(o, status="too_few", correct=0.0, relative_cost=0.0, token_equivalents=0)
        if o.strategy == "ttt_in_context" and int(o.task_id.rpartition("-")[2]) % 2
        else o
        for o in OUTCOMES
    ]
    cases, whole = build_outcome_table(few), build_outcome_table(OUTCOMES)
    unable = ~cases.applicable[:, 2]
    assert cases.applicable[:, :2].all()
    assert unable.mean() == 0.5
    np.testing.assert_array_equal(cases.correct[unable, 2], cases.correct[unable, 0])
    assert set(cases.costs[unable, 2]) == {1.0}
    np.testing.assert_array_equal(cases.correct[~unable], whole.correct[~unable])
    policy = trained(few)
    assert policy.mean_costs[""] == pytest.approx((1, 8, 60))
    assert policy.cost_weight == pytest.approx(0.1 / 60)
    held = _cross_validate(cases, TrainingSettings(policy.cost_weight, 0, 3, ("logistic",)), True)
    assert (held.policy.choice[~unable] == 2).any()
    assert not (held.policy.choice[unable] == 2).any()
    assert not (simulate(LearnedPolicy(policy), cases).choice[unable] == 2).any()


def test_the_risk_guarantee_covers_only_in_context_answers_that_are_returned() -> None:
    """An in-context answer that is given because nothing else could be read is none that the policy kept."""
    cases = build_outcome_table(made(100, 2))
    half = np.arange(200) < 100
    chances = np.stack([np.where(half, 0.9, 0.2), np.full(200, 0.5), np.full(200, 0.95)], axis=1)
    unread = np.zeros((200, 3), bool)
    unread[~half, 1:] = True
    for kept_right in (True, False):
        right = np.stack([half == kept_right, np.zeros(200), np.zeros(200)], axis=1).astype(float)
        some = dataclasses.replace(cases, correct=right, unparsed=unread)
        policy = dataclasses.replace(trained_small(), cost_weight=0.002, probe_margin=None)
        costs = np.tile([0.0, 8.0, 60.0], (200, 1))
        keep = _select_keep_threshold(policy, some, dict.fromkeys(NAMES, chances), costs, 0.3)
        assert (0.2 < keep < 0.9) == kept_right


def test_a_strategy_that_is_rarely_applicable_has_a_mean_cost() -> None:
    few = [
        dataclasses.replace(o, status="too_few", correct=0.0, relative_cost=0.0)
        if o.strategy == "ttt_in_context" and o.family != "family0"
        else o
        for o in made(126, 1)
    ]
    policy = trained(few, fold_count=5)
    assert policy.cost_models
    assert policy.mean_costs[""][2] == pytest.approx(60)


def test_estimated_uplift_matches_the_mean_gain():
    cases = build_outcome_table(OUTCOMES)
    _, changes, chances = _fit_stage(cases, cases.X, TrainingSettings(0.001, 0, 3, ("logistic",)))
    assert len(changes) == 2
    for strategy in (1, 2):
        expected, gained = chances[:, strategy] - chances[:, 0], cases.correct[:, strategy] - cases.correct[:, 0]
        assert expected.mean() == pytest.approx(gained.mean(), abs=0.02)
        assert np.ptp(gained) == 0 or np.corrcoef(expected, gained)[0, 1] > 0.1


def test_costs_are_predicted_per_query_with_enough_families() -> None:
    """Training costs more where the output is long, which is known before anything is decided."""
    place, rng = NAMES[0].index("output_size"), np.random.default_rng(0)
    known = build_outcome_table(made(120, 3))
    long = rng.uniform(size=len(known)) < 0.5
    rows, costs = known.X.copy(), known.costs.copy()
    rows[:, place], costs[:, 2] = np.where(long, 5.0, 2.0), np.where(long, 90.0, 30.0)
    cases, settings = (
        dataclasses.replace(known, X=rows, costs=costs),
        TrainingSettings(0.1 / 60, 0, 3, ("logistic",)),
    )
    policy = fit(cases, settings)
    told = policy.expected_costs(["list", "list"], np.array([rows[long][0], rows[~long][0]])[:, : len(NAMES[0])])
    assert told[:, 0].tolist() == [0.0, 0.0]
    assert told[:, 2] == pytest.approx([90, 30], abs=12)
    few = fit(cases.take(np.arange(60)), settings.for_families(20))
    assert few.cost_models == ()
    assert few.expected_costs(["list"], rows[:1, : len(NAMES[0])])[0, 2] == pytest.approx(costs[:60, 2].mean())


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf])
def test_an_invalid_cost_weight_is_refused(price):
    with pytest.raises(PolicyError, match=r"cost weight: expected accuracy .* received"):
        trained(SMALL, cost_weight=price)


def test_features_of_the_family_alone_do_not_generalise_to_held_out_families():
    """Each family has features of its own, and they say nothing of other families: by case they tell all."""
    rng = np.random.default_rng(0)
    of_family = {f"family{n}": (rng.normal(size=len(NAMES[1])), float(n % 2)) for n in range(24)}
    outcomes = []
    for o in made(24, 6):
        values, right = of_family[o.family]
        noisy = dict(zip(NAMES[1], (values + 0.1 * rng.normal(size=len(values))).tolist(), strict=True))
        outcomes.append(dataclasses.replace(o, correct=right, features=noisy if o.features else {}))
    cases = build_outcome_table(outcomes)
    settings = TrainingSettings(0.001, 0, 4, ("logistic_free",))
    wrong = 1 - cases.correct[:, 0]
    by_family, by_case = (
        roc_auc_score(wrong, 1 - _cross_validate(cases, settings, families).in_context_probability)
        for families in (True, False)
    )
    assert by_case > 0.95
    assert by_family < 0.75


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**40])
def test_every_seed_trains_and_those_beyond_32_bits_count_modulo_them(seed) -> None:
    policy = trained(made(4, 2), seed=seed, repeats=2)
    assert policy.seed == seed % 2**32


def test_a_guarantee_of_next_to_no_risk_keeps_no_answer() -> None:
    assert trained(made(4, 2), risk=1e-300).keep_threshold == NEVER


def test_invalid_settings_are_refused():
    with pytest.raises(PolicyError, match="at least 2 folds and 1 repeat; received 1 and 5"):
        train_policy(SMALL, fold_count=1)
    with pytest.raises(PolicyError, match="received 5 and 0"):
        train_policy(SMALL, repeats=0)
    with pytest.raises(PolicyError, match=r"expected some of logistic, .*; received logistik"):
        train_policy(SMALL, candidates=("logistik",))


def test_the_risk_guarantee_holds_in_nine_of_ten_trainings(learned):
    """Chances that are true and spread evenly: kept from t on, a share of (1 - t) / 2 is wrong, so 0.6 keeps a promise
    of 0.2. Were it broken in three of ten trainings instead of one, so few of sixty would be by a chance of 0.02."""
    some = build_outcome_table(made(300, 1))
    policy = dataclasses.replace(
        learned.trained, skip_probe_threshold=1.0, mean_costs={"": (1.0, 0, 0), "list": (1.0, 0, 0)}
    )
    thresholds = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        chances = np.zeros((300, 3))
        chances[:, 0] = rng.uniform(size=300)
        right = some.correct.copy()
        right[:, 0] = rng.uniform(size=300) < chances[:, 0]
        cases = dataclasses.replace(some, correct=right)
        thresholds.append(_select_keep_threshold(policy, cases, dict.fromkeys(NAMES, chances), np.zeros((300, 3)), 0.2))
    assert sum(keep < 0.6 for keep in thresholds) <= 10
    assert np.median(thresholds) < 0.8, "a promise that keeps next to nothing is easily kept"


@pytest.mark.parametrize(("probe_cost", "is_worth_it"), [(0.05, True), (40.0, None), (120.0, False)])
def test_the_probe_is_run_where_it_pays(probe_cost, is_worth_it):
    """The free features say little here, the probe much."""

    def cases(seed: int) -> OutcomeTable:
        rng = np.random.default_rng(seed)
        outcomes = made(60, 10, seed=seed)
        for n, outcome in enumerate(outcomes):
            if outcome.features:
                noisy = dict(outcome.features) | {"answer_mean": rng.normal(), "reading_hits": rng.normal()}
                outcomes[n] = dataclasses.replace(outcome, features=noisy, probe_cost=probe_cost)
        return build_outcome_table(outcomes)

    settings, new = TrainingSettings(0.1 / 60, 0, 3, ("logistic",)), cases(99)
    policy = fit(cases(1), settings)
    routed, always = (
        simulate(LearnedPolicy(one), new) for one in (policy, dataclasses.replace(policy, probe_margin=None))
    )
    (right, cost), (right_always, cost_always) = new.score_routing(routed), new.score_routing(always)
    gain = (right - right_always - settings.cost_weight * (cost - cost_always)).mean()
    familiar = ~policy.is_out_of_distribution(new.stage(0), new.kinds)
    assert always.measured[familiar].mean() > 0.8
    assert gain > -0.005
    if is_worth_it is not None:
        assert (routed.measured[familiar].mean() > 0.8) == is_worth_it
        assert (gain > 0.02) == (not is_worth_it)


def test_estimates_that_tell_nothing_leave_the_strategy_that_is_best_on_average():
    table = build_outcome_table(made(40, 5))
    policy = trained_small()
    sbs = policy.strategies.index(policy.ranking[0])
    costs = policy.expected_costs(table.kinds, table.stage(0))
    noise = np.random.default_rng(0).uniform(size=table.correct.shape)
    threshold, margin = _select_margin(policy, table, noise, costs)
    careful = dataclasses.replace(policy, sure_thresholds=(threshold,) * 2, utility_margins=(margin,) * 2)
    favoured = careful.with_margin(noise, costs, measured=True)
    assert (favoured.argmax(axis=1) == sbs).mean() > 0.95
    assert _select_margin(policy, table, table.correct, costs)[1] < 0.05, "and perfect ones may always be followed"


def test_in_context_answers_that_are_sure_precede_the_strategy_that_is_best_on_average():
    """Where training is as accurate on answers that are sure, and the other estimates tell nothing."""
    table, policy, rng = build_outcome_table(made(40, 5)), trained_small(), np.random.default_rng(0)
    sbs = policy.strategies.index(policy.ranking[0])
    is_sure = np.arange(len(table)) % 4 == 0
    correct = table.correct.copy()
    correct[is_sure] = 1.0
    correct[~is_sure] = rng.uniform(size=correct[~is_sure].shape) < 0.3
    correct[~is_sure, sbs] = rng.uniform(size=int((~is_sure).sum())) < 0.7
    table = dataclasses.replace(table, correct=correct)
    held_out = rng.uniform(0, 0.8, size=correct.shape)
    held_out[is_sure] = 0.9
    costs = policy.expected_costs(table.kinds, table.stage(0))
    threshold, margin = _select_margin(policy, table, held_out, costs)
    assert 0.8 < threshold <= 0.9
    careful = dataclasses.replace(policy, sure_thresholds=(threshold,) * 2, utility_margins=(margin,) * 2)
    choice = careful.with_margin(held_out, costs, measured=True).argmax(axis=1)
    assert (choice[is_sure] == 0).all()
    assert (choice[~is_sure] == sbs).mean() > 0.9
    never = careful.with_margin(np.where(is_sure[:, None], 0.79, held_out), costs, measured=True).argmax(axis=1)
    assert (never == sbs).mean() > 0.9


def test_the_risk_guarantee_holds_on_new_tasks():
    many, new = build_outcome_table(made(300, 1)), build_outcome_table(made(100, 10, seed=99))
    policy = LearnedPolicy(fit(many, TrainingSettings(0.1 / 60, 0, 3, ("logistic",), risk=0.2)))
    choice = simulate(policy, new).choice
    kept = choice == 0
    assert kept.mean() > 0.1
    assert 1 - new.correct[kept, 0].mean() < 0.2
    assert policy.decide(at(1.0), ["in_context"]).strategy == "in_context"


def test_a_stricter_guarantee_keeps_fewer():
    many = made(160, 2)
    loose, strict = trained(many, risk=0.3), trained(many, risk=0.12)
    assert loose.keep_threshold <= strict.keep_threshold
    assert loose.keep_threshold < NEVER
    assert loose.scorecard["kept"]["share"] >= strict.scorecard["kept"]["share"]


def test_copies_of_a_family_are_no_more_evidence_for_a_guarantee() -> None:
    once = made(120, 1)
    copies = [dataclasses.replace(o, seed=seed) for o in once for seed in range(4)]
    keeps = [trained(some, risk=0.2).keep_threshold for some in (once, copies)]
    assert keeps[0] > 0
    assert keeps[1] >= keeps[0] - 0.1
