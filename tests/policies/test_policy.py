"""A policy picks the best chance minus price times cost, says why, and is judged on families it has not seen."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import roc_auc_score

from autottt.policies import policy as policy_module
from autottt.policies import scorecard as scorecard_module
from autottt.policies import training
from autottt.policies.bundle import load_bundle, save_bundle
from autottt.policies.classifiers import CalibratedClassifier
from autottt.policies.explain import as_text, explain
from autottt.policies.features import FEATURES_VERSION, NAMES, STAGE_0, Features
from autottt.policies.outcome_table import OutcomeTable, RoutedCases, build_outcome_table
from autottt.policies.outcomes import Outcome
from autottt.policies.policy import (
    BUNDLED,
    FixedPolicy,
    HeuristicPolicy,
    LearnedPolicy,
    bundle_folder,
    load_policy,
    simulate,
)
from autottt.policies.scorecard import Bootstrap, OutOfFoldDecisions, intervals, leakage, routing, scorecard
from autottt.policies.trained import NEVER, Change
from autottt.policies.training import TrainingSettings, _choose, _fit_stage, _held_out, _kept_from, fit, train_policy
from autottt.ttt_core.errors import PolicyError

COSTS = {"in_context": 1.0, "in_context_vote": 8.0, "ttt_in_context": 60.0}
ALL = list(COSTS)


def values_of(level: float, rng: np.random.Generator) -> dict[str, float]:
    """Features of a list task; how likely the in-context answer is right, -1 to 1, shows in three of them."""
    values = {name: float(rng.normal()) for name in NAMES[1]}
    values |= {"instruction": 0.0, "kind_grid": 0.0, "kind_grid1d": 0.0, "kind_list": 1.0, "kind_text": 0.0}
    values |= {"answer_mean": level + 0.5 * rng.normal(), "loo_hits": level + 0.3 * rng.normal(), "loo_possible": 1.0}
    return values | {"reading_hits": level + 0.4 * rng.normal()}


def made(families: int = 24, each: int = 10, seed: int = 0) -> list[Outcome]:
    """Outcomes where reading suffices above a level, training helps below, nothing far below; training may fail."""
    rng = np.random.default_rng(seed)
    outcomes = []
    for family in range(families):
        for number in range(each):
            level = rng.uniform(-1, 1)
            easy = level + 0.2 * rng.normal() > 0.1
            learnable = level + 0.2 * rng.normal() > -0.5 and rng.uniform() < 0.8
            right = {"in_context": easy, "in_context_vote": easy, "ttt_in_context": learnable}
            for strategy, cost in COSTS.items():
                base = strategy == "in_context"
                outcomes.append(
                    Outcome(
                        f"t{family}-{number}", f"t{family}-{number}", f"family{family}", "made", "list", strategy, 0,
                        "answered", float(right[strategy]), cost / 10, int(100 * cost), cost, "base",
                        features=values_of(level, rng) if base else {},
                        features_version=FEATURES_VERSION if base else 0, probe_cost=2.0 if base else 0.0,
                    )
                )  # fmt: skip
    return outcomes


OUTCOMES = made()
SMALL = made(8, 8)


def trained(outcomes=OUTCOMES, **settings):
    return train_policy(outcomes, **{"fold_count": 3, "candidates": ("logistic",), "repeats": 1} | settings)


@pytest.fixture(scope="module")
def learned():
    return LearnedPolicy(trained())


def at(level: float, stage: int = 1, **changed: float) -> Features:
    """Features without noise."""
    values = dict.fromkeys(NAMES[stage], 0.0) | {"kind_list": 1.0, "answer_mean": level, "reading_hits": level}
    return Features(stage, values | ({"loo_hits": level, "loo_possible": 1.0} if stage else {}) | changed)


# --- deciding --------------------------------------------------------------------------------------------------------


def test_an_easy_query_keeps_its_in_context_answer(learned):
    decision = learned.decide(at(1.0), ALL)
    assert decision.strategy == "in_context"
    assert decision.difficulty < 0.2
    assert "likely right" in decision.reason
    assert "not worth it" in decision.reason


def test_a_query_that_training_helps_is_trained_on(learned):
    decision = learned.decide(at(-0.25), ALL)
    assert decision.strategy == "ttt_in_context"
    assert decision.difficulty == pytest.approx(1 - decision.scores["in_context"])
    assert decision.reason.startswith("in context is likely wrong (difficulty")
    assert "for 60x the cost" in decision.reason


def test_what_is_paid_for_is_free(learned):
    decision = learned.decide(at(0.0), ALL)
    assert decision.costs["in_context"] == 0
    assert decision.utilities["in_context"] == decision.scores["in_context"]
    price = learned.trained.cost_weight
    assert price == pytest.approx(0.1 / 60)
    assert decision.utilities["ttt_in_context"] == pytest.approx(decision.scores["ttt_in_context"] - 60 * price)


def test_what_was_tried_or_is_not_allowed_is_not_chosen_again(learned):
    assert learned.decide(at(-0.25), ALL, tried=["ttt_in_context"]).strategy != "ttt_in_context"
    assert learned.decide(at(-0.25), ["in_context"]).strategy == "in_context"
    with pytest.raises(PolicyError, match="no strategy is left"):
        learned.decide(at(0.0), ["in_context"], tried=["in_context"])


def test_a_strategy_that_nothing_was_learned_about_is_the_last_resort(learned):
    assert learned.decide(at(-0.25), [*ALL, "brand_new"]).strategy == "ttt_in_context"
    decision = learned.decide(at(-0.25), ["brand_new"])
    assert decision.strategy == "brand_new"
    assert "nothing was learned" in decision.reason


def test_no_more_is_measured_where_the_free_features_suffice(learned):
    assert 0 < learned.trained.skip_probe_threshold < 1
    assert not learned.needs_more(at(3.0, stage=0))
    assert learned.needs_more(at(-0.25, stage=0))
    assert not learned.needs_more(at(-0.25))
    assert 0 < learned.trained.scorecard["measured_share"] < 1


def test_a_query_unlike_the_training_tasks_gets_what_was_best_there(learned):
    far = at(1.0, **dict.fromkeys(STAGE_0[6:12], 50.0))
    decision = learned.decide(far, ALL)
    assert decision.strategy == learned.trained.ranking[0] == "ttt_in_context"
    assert "unlike the tasks" in decision.reason
    assert not learned.needs_more(Features(0, {name: far.values[name] for name in STAGE_0}))


def test_a_kind_that_was_not_trained_on_is_unlike_the_training_tasks(learned):
    assert "unlike the tasks" in learned.decide(at(1.0, kind_list=0.0, kind_text=1.0), ALL).reason


# --- training --------------------------------------------------------------------------------------------------------


def test_training_twice_gives_equal_policies():
    one, two = (trained(SMALL, fold_count=2) for _ in range(2))
    rows = np.random.default_rng(0).normal(size=(20, len(NAMES[1])))
    np.testing.assert_array_equal(one.probabilities(1, rows), two.probabilities(1, rows))
    assert one.scorecard == two.scorecard


def test_several_processes_train_what_one_does() -> None:
    told: list[tuple[int, int]] = []
    one = trained(SMALL, repeats=2)
    several = trained(SMALL, repeats=2, workers=2, on_progress=lambda *n: told.append(n))
    assert several.scorecard == one.scorecard
    assert told == [(1, 4), (2, 4), (3, 4)]


def test_the_policy_beats_every_fixed_strategy_where_features_tell(learned):
    card = learned.trained.scorecard
    arms = card["arms"]
    assert all(arms["policy"]["utility"] > arms[s]["utility"] for s in [*ALL, "single_best", "random_at_equal_share"])
    assert arms["best_of_each_query"]["utility"] > arms["policy"]["utility"]
    assert 0 < card["gap_closed"]["value"] < 1
    low, high = card["gain_over_single_best"]["interval_90"]
    assert 0 < low < card["gain_over_single_best"]["value"] < high
    assert card["difficulty"]["auroc"] > 0.85
    assert card["difficulty"]["ece"] < 0.15
    assert (card["families"], card["queries"]) == (24, 240)
    assert sum(card["shares"].values()) == pytest.approx(1)


def test_features_that_tell_nothing_close_no_gap():
    rng = np.random.default_rng(1)
    blind = [dataclasses.replace(o, features=values_of(0.0, rng)) if o.features else o for o in OUTCOMES]
    gain = trained(blind).scorecard["gain_over_single_best"]
    assert gain["interval_90"][0] < 0.01


def test_the_best_of_a_task_is_one_strategy_for_all_its_queries():
    right = {"in_context": (0.0, 1.0), "in_context_vote": (1.0, 0.0), "ttt_in_context": (1.0, 1.0)}
    costs = {"in_context": 1.0, "in_context_vote": 2.0, "ttt_in_context": 4.0}
    pairs = [
        dataclasses.replace(
            o, correct=right[o.strategy][int(o.task_id[-1])], cost=costs[o.strategy],
            group="t0" if o.task_id.startswith("t0") else "",
        )
        for o in SMALL if o.task_id[-1] in "01"
    ]  # fmt: skip
    cases = build_outcome_table(pairs)
    of_a_task = np.array([task.startswith("t0") for task in cases.tasks])
    alone = np.array([right[s] for s in cases.strategies]).T - 0.01 * cases.costs[:2]
    best = cases.best_of_tasks(0.01)
    assert (best[of_a_task] == 2).all(), "two queries of one task: training is right on both"
    own = alone.argmax(axis=1)[[int(name[-1]) for name in cases.tasks]]
    np.testing.assert_array_equal(best[~of_a_task], own[~of_a_task])
    assert len(set(own)) == 2


def test_measuring_is_charged_to_the_policy(learned):
    dear = [dataclasses.replace(o, probe_cost=30.0) if o.features else o for o in OUTCOMES]
    cheap, expensive = learned.trained.scorecard, trained(dear).scorecard
    extra = expensive["arms"]["policy"]["cost"] - cheap["arms"]["policy"]["cost"]
    assert extra == pytest.approx(28 * cheap["measured_share"])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_strategy_that_is_always_wrong_or_always_right_is_known_to_be(value):
    outcomes = [dataclasses.replace(o, correct=value) if o.strategy == "in_context_vote" else o for o in SMALL]
    policy = LearnedPolicy(trained(outcomes, fold_count=2))
    scores = [policy.decide(at(level), ALL).scores["in_context_vote"] for level in (-1.0, 0.0, 1.0)]
    assert scores == pytest.approx([value] * 3, abs=0.06)


def test_nothing_to_choose_between_still_gives_a_scorecard():
    same = [dataclasses.replace(o, correct=0.0) for o in SMALL]
    card = trained(same, fold_count=2).scorecard
    assert card["difficulty"]["auroc"] is None
    assert card["shares"]["in_context"] == 1.0
    assert card["harm_share"] == 0.0


def test_a_query_that_lacks_a_strategy_is_learned_from_but_not_judged_by():
    assert build_outcome_table(OUTCOMES).fully_observed.all()
    cases = build_outcome_table(OUTCOMES[:-1])
    assert len(cases) == 240
    assert len(cases.complete()) == 239
    assert np.isnan(cases.correct).sum() == 1


def test_what_was_served_teaches_the_heads_of_what_was_tried():
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


def test_a_strategy_that_was_hardly_tried_makes_nothing_incomparable():
    rare = [dataclasses.replace(OUTCOMES[n], strategy=s) for n, s in ((1, "ttt_augmented"), (7, "zero_shot"))]
    assert build_outcome_table([*OUTCOMES, *rare]).strategies == tuple(ALL)
    some = [dataclasses.replace(o, strategy="ttt_augmented") for o in OUTCOMES[2::30]]
    assert "ttt_augmented" in build_outcome_table([*OUTCOMES, *some]).strategies


# --- what a strategy mends and spoils --------------------------------------------------------------------------------


@pytest.mark.parametrize("families", [110, 130, 220, 260])
def test_what_is_judged_is_what_is_shipped(families, monkeypatch) -> None:
    """What takes many families is for every fold, or for none and not for the policy either."""
    seen = []

    def noted(cases, settings):
        seen.append((settings.candidates, settings.predict_costs))
        return plain(cases, dataclasses.replace(settings, candidates=("logistic",), predict_costs=False))

    plain = training.fit
    monkeypatch.setattr(training, "fit", noted)
    train_policy(made(families, 1), repeats=1)
    assert len(seen) == 11  # five folds twice, and the policy
    ((candidates, foretell),) = set(seen)
    assert ("forest" in candidates, foretell) == (families * 4 / 5 >= 200, families * 4 / 5 >= 100)


def test_what_a_query_has_too_few_demonstrations_for_is_answered_in_context_and_teaches_nothing() -> None:
    few = [
        dataclasses.replace(o, status="too_few", correct=0.0, cost=0.0, work=0)
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
    held = _held_out(cases, TrainingSettings(policy.cost_weight, 0, 3, ("logistic",)), True)
    assert (held.choice[~unable] == 2).any()
    assert not (held.choice[unable] == 2).any()
    assert not (simulate(LearnedPolicy(policy), cases).choice[unable] == 2).any()


def test_what_cannot_be_read_is_paid_for_and_what_is_tried_next_as_well() -> None:
    """As the graph does it: the next best that is worth its price, three at most, then the in-context answer."""
    some = build_outcome_table(SMALL[:3])
    names, cost = list(some.strategies), some.costs[0]

    def served(unread: str, best: list[str]) -> tuple[str, float]:
        cases = dataclasses.replace(some, unparsed=np.array([[name in unread.split() for name in names]]))
        order = [names.index(name) for name in best]
        following = lambda tried: next((n for n in order if n not in tried), None)  # noqa: E731
        choice, before = cases.run_attempts(0, order[0], following)
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


def test_a_policy_is_judged_with_what_it_tries_after_answers_that_cannot_be_read() -> None:
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


def test_strange_queries_get_what_serving_gives_them() -> None:
    """The next best on average, where the best cannot be used or its answer cannot be read."""
    cases = build_outcome_table(SMALL[:9])
    strange = np.full_like(cases.X, 1e6)
    able, unread = np.ones((3, 3), bool), np.zeros((3, 3), bool)
    able[1, 2], unread[2, 2] = False, True
    cases = dataclasses.replace(cases, X=strange, applicable=able, unparsed=unread)
    policy = LearnedPolicy(dataclasses.replace(trained(SMALL), ranking=tuple(ALL[::-1])))
    served = simulate(policy, cases)
    assert served.choice.tolist() == [2, 1, 1]
    assert served.wasted_cost.tolist() == [0, 0, cases.costs[2, 2]]
    assert_training_does_the_same(policy, cases, served)


def test_a_promise_is_of_answers_that_are_kept_and_of_no_others() -> None:
    """An in-context answer that is given because nothing else could be read is none that the policy kept."""
    cases = build_outcome_table(made(100, 2))
    half = np.arange(200) < 100
    chances = np.stack([np.where(half, 0.9, 0.2), np.full(200, 0.5), np.full(200, 0.95)], axis=1)
    unread = np.zeros((200, 3), bool)
    unread[~half, 1:] = True
    for kept_right in (True, False):
        right = np.stack([half == kept_right, np.zeros(200), np.zeros(200)], axis=1).astype(float)
        some = dataclasses.replace(cases, correct=right, unparsed=unread)
        policy = dataclasses.replace(trained(SMALL), cost_weight=0.002)
        costs = np.tile([0.0, 8.0, 60.0], (200, 1))
        keep = _kept_from(policy, some, dict.fromkeys(NAMES, chances), costs, 0.3)
        assert (0.2 < keep < 0.9) == kept_right


def test_queries_that_were_not_measured_are_counted() -> None:
    lost = [dataclasses.replace(o, status="failed", features={}) if o.task_id == "t1-1" else o for o in SMALL]
    assert trained(lost).scorecard["unmeasured"] == 1
    assert trained(SMALL).scorecard["unmeasured"] == 0


def test_costs_of_what_can_hardly_ever_be_used_are_nothing_to_stumble_over() -> None:
    few = [
        dataclasses.replace(o, status="too_few", correct=0.0, cost=0.0)
        if o.strategy == "ttt_in_context" and o.family != "family0"
        else o
        for o in made(126, 1)
    ]
    policy = trained(few, fold_count=5)
    assert policy.cost_models
    assert policy.mean_costs[""][2] == pytest.approx(60)


def test_the_scorecard_tells_what_it_is_not_of() -> None:
    often = {f"family{n}" for n in range(3)}
    late = [dataclasses.replace(o, strategy="late") for o in SMALL if o.strategy == "in_context_vote"]
    card = trained([*SMALL, *(o for o in late if o.family in often)]).scorecard
    assert (card["left_out"], card["learned_from"], card["cases"]) == (["late"], 64, 64)
    often |= {"family3", "family4"}
    card = trained([*SMALL, *(o for o in late if o.family in often)]).scorecard
    assert (card["left_out"], card["learned_from"], card["cases"]) == ([], 64, 40)


def test_uplift_expects_what_was_gained_on_average():
    cases = build_outcome_table(OUTCOMES)
    _, changes, chances = _fit_stage(cases, cases.X, TrainingSettings(0.001, 0, 3, ("logistic",)))
    assert len(changes) == 2
    for strategy in (1, 2):
        expected, gained = chances[:, strategy] - chances[:, 0], cases.correct[:, strategy] - cases.correct[:, 0]
        assert expected.mean() == pytest.approx(gained.mean(), abs=0.02)
        assert np.ptp(gained) == 0 or np.corrcoef(expected, gained)[0, 1] > 0.1


def test_training_is_expected_to_help_between_easy_and_hopeless_queries(learned):
    """What a line cannot say of a strategy's own answers: it helps where in-context is wrong, and can be mended."""
    uplifts = []
    for level in (-1.5, -0.2, 1.5):
        scores = learned.decide(at(level), ALL).scores
        uplifts.append(scores["ttt_in_context"] - scores["in_context"])
    assert uplifts[1] > max(uplifts[0], uplifts[2]) + 0.1


def constant(chance: float) -> CalibratedClassifier:
    return CalibratedClassifier(DummyClassifier(strategy="constant", constant=chance).fit(np.zeros((2, 1)), [0, 1]))


def test_the_chance_of_a_strategy_is_what_it_leaves_and_what_it_mends(learned):
    changes = {s: (Change(constant(1), constant(0)), Change(constant(0), constant(1))) for s in NAMES}
    policy = LearnedPolicy(dataclasses.replace(learned.trained, changes=changes))
    scores = policy.decide(at(0.3), ALL).scores
    assert scores["in_context_vote"] == pytest.approx(1, abs=1e-3), "it mends all and spoils nothing"
    assert scores["ttt_in_context"] == pytest.approx(0, abs=1e-3)
    assert 0.1 < scores["in_context"] < 0.9


def test_costs_are_foretold_for_each_query_once_there_are_families_enough() -> None:
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


def test_a_promise_is_told_in_finite_numbers(learned):
    policy = LearnedPolicy(dataclasses.replace(learned.trained, keep_threshold=NEVER, risk=0.1))
    decision = policy.decide(at(1.0), ALL)
    assert decision.strategy != "in_context"
    assert "inf" not in decision.reason.replace("in_context", "")


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([], "there are no outcomes to learn from"),
        ([o for o in OUTCOMES if o.strategy == "in_context"], "a policy chooses between"),
        ([o for o in OUTCOMES if o.strategy != "in_context"], "a policy chooses between"),
        ([*OUTCOMES, dataclasses.replace(OUTCOMES[0], base_hash="other")], "outcomes of 2 models"),
        ([dataclasses.replace(o, features_version=99) for o in OUTCOMES], "features of version 99"),
        (made(families=3), "3 families"),
        ([OUTCOMES[0], OUTCOMES[4]], "no query has an outcome for each"),
        ([dataclasses.replace(o, features={}) for o in OUTCOMES], "have no features .imported"),
    ],
)
def test_outcomes_that_nothing_can_be_learned_from_are_refused(outcomes, reason):
    with pytest.raises(PolicyError, match=reason):
        trained(outcomes)


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(PolicyError, match=r"price: expected the accuracy .* received"):
        trained(SMALL, cost_weight=price)


def test_over_long_queries_are_counted_and_left_out():
    first = [
        dataclasses.replace(
            o, task_id="long", status="too_long", correct=0.0, cost=0.0, features={}, features_version=0
        )
        for o in SMALL[:3]
    ]
    cases = build_outcome_table([*SMALL, *first])
    assert (len(cases), cases.over_long) == (64, 1)
    np.testing.assert_array_equal(cases.costs, build_outcome_table(SMALL).costs)
    drawn = dataclasses.replace(OutOfFoldDecisions.empty(64, 3), expected=cases.costs)
    card = scorecard(cases, [drawn], 0.001, 0)
    assert (card["cases"], card["over_long"]) == (64, 1)
    assert card["digest"] == build_outcome_table(SMALL).digest != build_outcome_table(SMALL[:-3]).digest


def test_queries_without_a_family_are_of_their_group():
    """Four of one group are one family, which is too few for a strategy that was tried on no others."""
    grouped = [dataclasses.replace(o, family="", group=o.family) for o in SMALL]
    assert set(build_outcome_table(grouped).families) == {o.family for o in SMALL}
    rare = [dataclasses.replace(o, strategy="zero_shot") for o in grouped[1:24:3]]
    assert len({o.task_id for o in rare}) == 8
    assert "zero_shot" not in build_outcome_table([*grouped, *rare]).strategies


# --- the other policies ----------------------------------------------------------------------------------------------


def test_a_fixed_policy_measures_nothing_and_does_what_it_was_told():
    fixed = FixedPolicy("ttt_direct")
    assert not fixed.needs_more(thumb(0.0))
    assert fixed.decide(thumb(0.9), ["in_context", "ttt_direct"]).strategy == "ttt_direct"
    instead = fixed.decide(thumb(0.9), ["in_context", "ttt_in_context"])
    assert instead.strategy == "in_context"
    assert "asked for, but cannot be used" in instead.reason


def thumb(agreement: float, kind: str = "list", stage: int = 1) -> Features:
    values = dict.fromkeys(NAMES[stage], 0.0) | {f"kind_{kind}": 1.0}
    values |= {"reading_hits_late": agreement, "answer_total": float(np.log(agreement + 1e-9))}
    more = {"loo_possible": 1.0, "loo_hits": agreement, "orders_hits": agreement}
    return Features(stage, values | (more if stage else {}))


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
def test_the_rule_of_thumb_trains_where_demonstrations_do_not_follow_from_each_other(agreement, kind, choice):
    decision = HeuristicPolicy().decide(thumb(agreement, kind), ["in_context", "ttt_in_context", "ttt_augmented"])
    assert decision.strategy == choice
    assert "rule of thumb" in decision.reason
    assert decision.difficulty == pytest.approx(1 - agreement)


@pytest.mark.parametrize(("found", "choice"), [(0.0, "ttt_in_context"), (0.4, "ttt_crossfit"), (0.7, "ttt_in_context")])
def test_where_some_demonstrations_follow_from_the_others_held_out_ones_judge_training(found, choice):
    features = thumb(0.4)
    features = dataclasses.replace(features, values={**features.values, "loo_hits": found, "orders_hits": 0.0})
    allowed = ["in_context", "ttt_in_context", "ttt_crossfit"]
    decision = HeuristicPolicy().decide(features, allowed)
    assert decision.strategy == choice
    assert ("holds demonstrations out" in decision.reason) == (choice == "ttt_crossfit")
    assert HeuristicPolicy().decide(features, allowed, tried=["ttt_crossfit"]).strategy == "ttt_in_context"
    assert HeuristicPolicy().decide(features, allowed[:2]).strategy == "ttt_in_context", "it needs more demonstrations"
    assert HeuristicPolicy().decide(thumb(0.9), allowed).strategy == "in_context"


def test_the_rule_of_thumb_measures_more_unless_it_is_sure():
    assert HeuristicPolicy().needs_more(thumb(0.5, stage=0))
    assert not HeuristicPolicy().needs_more(thumb(0.99, stage=0))
    assert not HeuristicPolicy().needs_more(thumb(0.5))


def test_the_rule_of_thumb_takes_what_there_is():
    assert HeuristicPolicy().decide(thumb(0.1), ["zero_shot"]).strategy == "zero_shot"
    assert HeuristicPolicy().decide(
        thumb(0.1), ["in_context", "ttt_in_context"], tried=["ttt_in_context"]
    ).strategy == ("in_context")


def test_a_policy_for_this_model_is_loaded(learned, tmp_path):
    save_bundle(learned.trained, tmp_path)
    loaded = load_policy(tmp_path, base_hash="base")
    assert loaded.decide(at(-0.25), ALL) == learned.decide(at(-0.25), ALL)
    assert loaded.card()["scorecard"] == learned.trained.scorecard


def test_a_policy_that_was_asked_for_but_is_for_another_model_is_refused(learned, tmp_path):
    save_bundle(learned.trained, tmp_path)
    with pytest.raises(PolicyError, match=r"trained for another model, base, and this one is other\..*train-policy"):
        load_policy(tmp_path, base_hash="other")


def test_without_a_shipped_policy_for_the_model_the_rule_of_thumb_says_why(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundled")
    missing = load_policy(base_hash="base")
    assert "no policy was trained" in missing.decide(thumb(0.9), ALL).reason
    save_bundle(learned.trained, tmp_path / "bundled")
    assert load_policy(base_hash="base").name == "learned"
    other = load_policy(base_hash="other")
    assert other.name == "rule of thumb"
    assert "another model" in other.decide(thumb(0.9), ALL).reason


# --- families ---------------------------------------------------------------------------------------------------------


def test_copies_of_a_familys_cases_make_no_interval_narrower(monkeypatch):
    monkeypatch.setattr(scorecard_module, "INTERVALS", 40)
    cases = build_outcome_table(SMALL)
    rng = np.random.default_rng(0)
    worth = {"policy": rng.normal(size=len(cases)) + 0.5, "other": rng.normal(size=len(cases))}
    drawn = held_out(rng.random(len(cases)).tolist())
    drawn.choice[:], drawn.in_context_probability[:] = 2, rng.random(len(cases))
    copies = np.repeat(np.arange(len(cases)), 4)
    many = cases.take(copies)
    once = Bootstrap(cases.families, worth, 0).gain("other")
    again = Bootstrap(many.families, {name: values[copies] for name, values in worth.items()}, 0).gain("other")
    assert again["interval_90"] == pytest.approx(once["interval_90"], rel=1e-6)
    all_once, all_again = intervals(cases, drawn, 0.001, 0), intervals(many, drawn.take(copies), 0.001, 0)
    for name in ("accuracy", "cost", "utility", "auroc", "brier"):
        assert all_again[name] == pytest.approx(all_once[name], rel=1e-6), name


def test_what_only_the_family_tells_is_worth_nothing_with_families_held_out():
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
        roc_auc_score(wrong, 1 - _held_out(cases, settings, families).in_context_probability)
        for families in (True, False)
    )
    assert by_case > 0.95
    assert by_family < 0.75


def test_the_same_query_under_two_names_is_of_one_family():
    named = [dataclasses.replace(o, digest=o.task_id) for o in SMALL]
    again = [dataclasses.replace(o, task_id=f"again {o.task_id}", family=f"again {o.family}") for o in named]
    cases, both = build_outcome_table(named), build_outcome_table([*named, *again])
    assert len(both) == 2 * len(cases)
    assert set(both.families) == {f"again {family}" for family in cases.families}
    unknown = [dataclasses.replace(o, digest="") for o in [*named, *again]]
    assert len(set(build_outcome_table(unknown).families)) == 2 * len(set(cases.families))


def test_what_was_answered_counts_as_the_judge_would_have_served_it():
    cases = build_outcome_table(SMALL)
    other = cases.strategies[-1]

    def served(gain: float, confidence: float) -> list[float]:
        answers = {"in_context": "a", other: "b"}
        rows = [
            dataclasses.replace(o, answer=answers.get(o.strategy, ""), confidence=confidence, gain=gain)
            if o.strategy == other
            else dataclasses.replace(o, answer=answers.get(o.strategy, ""), confidence=0.5)
            for o in SMALL
        ]
        cases = build_outcome_table(rows)
        return cases.correct[:, cases.strategies.index(other)].tolist()

    own, read = cases.correct[:, -1].tolist(), cases.correct[:, 0].tolist()
    assert own != read
    assert served(1.0, 0.1) == own, "nothing was held out"
    assert served(0.0, 0.9) == own
    assert served(0.0, 0.1) == read


def test_the_order_of_the_outcomes_changes_nothing():
    shuffled = list(SMALL)
    np.random.default_rng(0).shuffle(shuffled)
    assert build_outcome_table(shuffled).digest == build_outcome_table(SMALL).digest


def test_what_no_training_can_be_of_is_refused():
    with pytest.raises(PolicyError, match="2 folds or more, drawn once or more; received 1 and 5"):
        train_policy(SMALL, fold_count=1)
    with pytest.raises(PolicyError, match="received 5 and 0"):
        train_policy(SMALL, repeats=0)
    with pytest.raises(PolicyError, match=r"expected some of logistic, .*; received logistik"):
        train_policy(SMALL, candidates=("logistik",))


def test_the_leakage_gauge_is_of_families_that_can_leak():
    cases = build_outcome_table(SMALL)
    lonely = dataclasses.replace(cases, families=("alone", *cases.families[1:]))
    by_family, at_random = held_out([0.0] * len(cases)), held_out([0.0] * len(cases))
    at_random.choice[0] = 2  # as if only the family that is alone were decided otherwise
    found = leakage(lonely, by_family, at_random, 0.001)
    assert found["cases"] == len(cases) - 1
    assert found["families_held_out"] == found["cases_held_out"]
    apart = dataclasses.replace(cases, families=tuple(map(str, range(len(cases)))))
    assert leakage(apart, by_family, at_random, 0.001) is None


# --- routing ---------------------------------------------------------------------------------------------------------


def held_out(uplift: list[float]) -> OutOfFoldDecisions:
    found = OutOfFoldDecisions.empty(len(uplift), 3)
    found.other[:], found.uplift[:] = 2, uplift
    return found


def test_routing_is_as_good_as_its_order():
    cases = build_outcome_table(SMALL)
    gains = cases.correct[:, 2] - cases.correct[:, 0]
    best, worst = routing(cases, held_out(gains.tolist())), routing(cases, held_out((-gains).tolist()))
    drawn = [routing(cases, held_out(np.random.default_rng(n).random(len(cases)).tolist())) for n in range(200)]
    assert best["apgr"] > 0.8 > 0.2 > worst["apgr"]
    assert np.mean([one["apgr"] for one in drawn]) == pytest.approx(0.5, abs=0.05)
    assert best["cpt_95"] < 0.5 < worst["cpt_95"]
    assert best["curve"][0] == [0.0, 0.0]
    assert best["curve"][-1] == [1.0, 1.0]
    assert best["apgr_cost"] == pytest.approx(best["apgr"]), "every query costs the same here"


def test_there_is_no_routing_to_what_gains_nothing():
    found = held_out([0.0] * len(SMALL))
    found.other[:] = 1
    same = [dataclasses.replace(o, correct=0.0) if o.strategy != "in_context" else o for o in SMALL]
    cases = build_outcome_table(same)
    assert (
        routing(cases, dataclasses.replace(found, uplift=np.zeros(len(cases)), other=np.ones(len(cases), int))) is None
    )


def test_the_scorecard_says_how_it_routes_and_what_leaks(learned):
    card = learned.trained.scorecard
    assert card["routing"]["apgr"] > 0.6
    assert set(card["leakage"]) == {"families_held_out", "cases_held_out", "cases"}
    assert card["leakage"]["cases"] == card["cases"], "every family has several here"
    assert card["leakage"]["families_held_out"]["utility"] == pytest.approx(card["arms"]["policy"]["utility"])
    assert card["arms"]["by_kind"] == card["arms"]["single_best"], "there is one kind"
    assert card["arms"]["rule_of_thumb"]["cost"] > 1


# --- explaining ------------------------------------------------------------------------------------------------------


def test_pushes_are_differences_of_the_policys_own_numbers(learned):
    features = at(-0.25)
    found = explain(learned, features, ALL)
    assert found.decision == learned.decide(features, ALL)
    assert {push.feature for push in found.contributions} == {n for n in NAMES[1] if not n.startswith("kind_")}
    first = found.contributions[0]
    assert first.feature in ("loo_hits", "reading_hits", "answer_mean"), "what the outcomes were made from"
    assert first.difficulty > 0
    without = dataclasses.replace(features, values={**features.values, first.feature: first.median})
    other = learned.decide(without, ALL)
    assert found.decision.difficulty - other.difficulty == pytest.approx(first.difficulty)
    assert found.by == "chances"
    assert found.preferences[0] == ("ttt_in_context", found.decision.utilities["ttt_in_context"])
    leads = [d.utilities["ttt_in_context"] - d.utilities[found.runner_up] for d in (found.decision, other)]
    assert leads[0] - leads[1] == pytest.approx(first.lead) != 0
    assert [abs(p.lead) for p in found.contributions] == sorted(
        (abs(p.lead) for p in found.contributions), reverse=True
    )


def test_a_query_unlike_those_in_training_is_explained_as_such(learned):
    found = explain(learned, at(1.0, **dict.fromkeys(STAGE_0[6:12], 50.0)), ALL)
    assert (found.by, found.preferences, found.cost_weights, found.runner_up) == ("average", (), (), "")
    assert {push.lead for push in found.contributions} == {0.0}
    assert "no price changes what was best there on average" in as_text(found)
    assert "lead over" not in as_text(found)


def test_an_answer_that_may_not_be_kept_is_no_runner_up(learned):
    found = explain(LearnedPolicy(dataclasses.replace(learned.trained, keep_threshold=NEVER, risk=0.1)), at(1.0), ALL)
    assert found.preferences[-1] == ("in_context", -math.inf)
    assert found.runner_up in ALL[1:]
    assert all(math.isfinite(push.lead) for push in found.contributions)
    assert "inf" not in as_text(found).replace("in_context", "")


def test_beyond_a_price_the_choice_is_another(learned):
    found = explain(learned, at(-0.25), ALL)
    assert found.decision.strategy == "ttt_in_context"
    assert found.cost_weights
    for price, name in found.cost_weights:
        beyond = price * (1.001 if price > found.cost_weight else 0.999)
        other = LearnedPolicy(dataclasses.replace(learned.trained, cost_weight=beyond))
        assert other.decide(at(-0.25), ALL).strategy == name
        between = LearnedPolicy(
            dataclasses.replace(
                learned.trained, cost_weight=(price * 0.999 if price > found.cost_weight else price * 1.001)
            )
        )
        assert between.decide(at(-0.25), ALL).strategy == "ttt_in_context"


def test_the_words_hold_the_numbers(learned):
    text = as_text(explain(learned, at(-0.25), ALL))
    assert text.startswith("ttt_in_context: in context is likely wrong")
    assert "at " in text.splitlines()[-1]
    only = as_text(explain(learned, at(-0.25), ["in_context"]))
    assert "no other price changes the choice" in only


# --- releases --------------------------------------------------------------------------------------------------------


def test_only_a_policy_that_beats_the_single_best_strategy_for_sure_is_the_default(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path)
    sure = {"strategy": "x", "value": 0.05, "interval_90": [0.01, 0.1]}
    names = ("gain_over_single_best", "gain_over_first")
    cases = [(low, name, low > 0) for name in names for low in (0.01, 0.0, -0.1)]
    for low, name, released in cases:
        gains = dict.fromkeys(names, sure) | {name: sure | {"interval_90": [low, 0.1]}}
        one = dataclasses.replace(learned.trained, scorecard={**learned.trained.scorecard, **gains})
        assert one.released == released
        save_bundle(one, tmp_path, over_released=True)
        found = load_policy(base_hash="base")
        assert isinstance(found, LearnedPolicy if released else FixedPolicy)
        assert isinstance(load_policy(tmp_path, base_hash="base"), LearnedPolicy), "asked for by name"
    assert found.strategy == learned.trained.ranking[0]
    assert "does not beat it for sure" in found.decide(at(0.0), ALL).reason


def test_a_released_policy_gives_way_to_one_that_is_not_only_where_told(learned, tmp_path):
    sure = {"strategy": "x", "value": 0.05, "interval_90": [0.01, 0.1]}
    names = ("gain_over_single_best", "gain_over_first")
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


# --- promises --------------------------------------------------------------------------------------------------------


def test_a_promise_about_what_is_kept_is_kept_in_nine_of_ten_trainings(learned):
    """Chances that are true and spread evenly: kept from t on, a share of (1 - t) / 2 is wrong, so 0.6 keeps a promise
    of 0.2. Were it broken in three of ten trainings instead of one, so few of sixty would be by a chance of 0.02."""
    some = build_outcome_table(made(300, 1))
    policy = dataclasses.replace(
        learned.trained, skip_probe_threshold=1.0, mean_costs={"": (1.0, 0, 0), "list": (1.0, 0, 0)}
    )
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        chances = np.zeros((300, 3))
        chances[:, 0] = rng.uniform(size=300)
        right = some.correct.copy()
        right[:, 0] = rng.uniform(size=300) < chances[:, 0]
        cases = dataclasses.replace(some, correct=right)
        found.append(_kept_from(policy, cases, dict.fromkeys(NAMES, chances), np.zeros((300, 3)), 0.2))
    assert sum(keep < 0.6 for keep in found) <= 10
    assert np.median(found) < 0.8, "a promise that keeps next to nothing is easily kept"


def test_what_is_kept_of_new_tasks_is_as_seldom_wrong_as_promised():
    many, new = build_outcome_table(made(300, 1)), build_outcome_table(made(100, 10, seed=99))
    policy = LearnedPolicy(fit(many, TrainingSettings(0.1 / 60, 0, 3, ("logistic",), risk=0.2)))
    choice = simulate(policy, new).choice
    kept = choice == 0
    assert kept.mean() > 0.1
    assert 1 - new.correct[kept, 0].mean() < 0.2
    assert policy.decide(at(1.0), ["in_context"]).strategy == "in_context"


def test_before_all_is_measured_a_promise_is_of_those_only_that_need_no_more(learned):
    """A budget may forbid to measure what the promise was tested on: then an in-context answer is kept only where no
    more would have been measured."""
    policy = LearnedPolicy(
        dataclasses.replace(learned.trained, keep_threshold=0.3, risk=0.2, skip_probe_threshold=0.999)
    )
    assert policy.decide(at(1.0), ALL).strategy == "in_context"
    decision = policy.decide(at(1.0, stage=0), ALL)
    assert decision.strategy != "in_context"
    assert not decision.may_keep
    assert "kept from a chance of 1.00 on where no more is measured" in decision.reason
    assert "promised" in policy.decide(at(1.0, stage=0), ["in_context"]).reason
    sure = LearnedPolicy(dataclasses.replace(policy.trained, skip_probe_threshold=0.3))
    assert sure.decide(at(1.0, stage=0), ALL).strategy == "in_context"
    generous = LearnedPolicy(dataclasses.replace(policy.trained, keep_threshold=0.0, risk=0.9))
    assert not generous.decide(at(0.0, stage=0), ALL).may_keep, "what was promised is of those that need no more"
    none = LearnedPolicy(dataclasses.replace(policy.trained, keep_threshold=0.0, risk=None))
    assert none.decide(at(1.0, stage=0), ALL).strategy == "in_context", "nothing was promised"
    assert none.decide(at(1.0, stage=0), ALL).may_keep


def test_a_stricter_promise_keeps_fewer():
    many = made(160, 2)
    loose, strict = trained(many, risk=0.3), trained(many, risk=0.12)
    assert loose.keep_threshold <= strict.keep_threshold
    assert loose.keep_threshold < NEVER
    assert loose.scorecard["kept"]["share"] >= strict.scorecard["kept"]["share"]


def test_copies_of_a_family_are_no_more_evidence_for_a_promise() -> None:
    once = made(120, 1)
    copies = [dataclasses.replace(o, seed=seed) for o in once for seed in range(4)]
    keeps = [trained(some, risk=0.2).keep_threshold for some in (once, copies)]
    assert keeps[0] > 0
    assert keeps[1] >= keeps[0] - 0.1


def test_a_promise_holds_for_strange_queries_and_is_said_to_be_broken_where_nothing_else_is_possible() -> None:
    policy = LearnedPolicy(dataclasses.replace(trained(SMALL), keep_threshold=NEVER, risk=0.1, ranking=ALL))
    strange = at(0.0, **dict.fromkeys(NAMES[0], 1e6))
    assert policy.is_out_of_distribution(strange)
    assert policy.decide(strange, ALL).strategy == ALL[1]
    alone = policy.decide(strange, ["in_context"])
    assert alone.strategy == "in_context"
    assert "promised" in alone.reason
    assert "promised" in policy.decide(at(0.0), ["in_context"]).reason


def test_a_policy_of_other_recipes_is_refused_unless_told(learned, tmp_path) -> None:
    save_bundle(dataclasses.replace(learned.trained, recipes={"ttt_in_context/list": "a"}), tmp_path)
    assert load_policy(tmp_path, base_hash="base").name == "learned"
    assert load_policy(tmp_path, base_hash="base", recipe_of=lambda strategy, kind: "a").name == "learned"
    with pytest.raises(PolicyError, match=r"another recipe of ttt_in_context.*on list tasks.*--ignore-mismatch"):
        load_policy(tmp_path, base_hash="base", recipe_of=lambda strategy, kind: "b")
    known = load_policy(tmp_path, base_hash="other", recipe_of=lambda strategy, kind: "b", ignore_mismatch=True)
    assert known.name == "learned"


def test_a_shipped_policy_is_known_by_its_name(learned, tmp_path, monkeypatch) -> None:
    """Unless a folder of that name is there."""
    monkeypatch.setattr(policy_module, "BUNDLED", tmp_path / "bundles" / "bundled")
    save_bundle(dataclasses.replace(learned.trained, datasets=("theirs",)), tmp_path / "bundles" / "public")
    monkeypatch.chdir(tmp_path)
    assert load_policy("public", base_hash="base").card()["datasets"] == ("theirs",)
    with pytest.raises(PolicyError, match="another: not a policy that can be used"):
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


def test_a_policy_of_a_strategy_that_is_not_known_says_so(learned, tmp_path) -> None:
    save_bundle(dataclasses.replace(learned.trained, recipes={"mine/list": "a"}), tmp_path)
    with pytest.raises(PolicyError, match="the strategy mine too, which is not known here: name its file with --plug"):
        load_policy(tmp_path, base_hash="base", recipe_of=lambda strategy, kind: None)


def test_a_policy_of_another_prompt_format_is_refused_unless_told(learned, tmp_path) -> None:
    save_bundle(dataclasses.replace(learned.trained, prompt_format="compact"), tmp_path)
    assert load_policy(tmp_path, base_hash="base").name == "learned"
    assert load_policy(tmp_path, base_hash="base", prompt_format="compact").name == "learned"
    with pytest.raises(
        PolicyError, match=r"prompt format 'compact', and the model is asked in 'chat'.*--ignore-mismatch"
    ):
        load_policy(tmp_path, base_hash="base", prompt_format="chat")
    assert load_policy(tmp_path, base_hash="base", prompt_format="chat", ignore_mismatch=True).name == "learned"


def test_outcomes_of_several_prompt_formats_are_not_mixed() -> None:
    asked = [dataclasses.replace(o, prompt_format="compact") for o in SMALL]
    assert trained([*asked[:60], *SMALL[60:]]).prompt_format == "compact", "unknown is no other"
    with pytest.raises(PolicyError, match=r"2 prompt formats \(chat, compact\)"):
        build_outcome_table([*(dataclasses.replace(o, prompt_format="chat") for o in asked[:3]), *asked[3:]])


def test_features_of_other_names_are_named() -> None:
    odd = [dataclasses.replace(o, features=o.features and {**o.features, "strange": 1.0}) for o in SMALL]
    with pytest.raises(PolicyError, match=r"version 2 \(1 names differ: strange\)"):
        build_outcome_table(odd)


def test_outcomes_of_several_recipes_are_not_mixed() -> None:
    known = [dataclasses.replace(o, recipe="a" if o.strategy == "ttt_in_context" else "") for o in SMALL]
    assert build_outcome_table([*known[:60], *SMALL[60:]]).recipes == {"ttt_in_context/list": "a"}, (
        "unknown is no other"
    )
    mixed = [dataclasses.replace(o, recipe=o.recipe and "b") if n > 60 else o for n, o in enumerate(known)]
    with pytest.raises(PolicyError, match="ttt_in_context on list tasks are of several recipes"):
        build_outcome_table(mixed)


def test_a_promise_that_cannot_be_kept_keeps_nothing():
    policy = LearnedPolicy(trained(SMALL, risk=0.001))
    assert policy.trained.keep_threshold == NEVER
    decision = policy.decide(at(2.0), ALL)
    assert decision.strategy != "in_context"
    assert "kept from a chance of 2.00" in decision.reason
    with pytest.raises(PolicyError, match="between 0 and 1"):
        trained(risk=1.5)
