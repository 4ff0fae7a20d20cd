"""Heads are calibrated on families held out, and say quickly and together what their estimators say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from autottt.policies.classifiers import (
    CANDIDATES,
    BinaryTarget,
    CalibratedClassifier,
    batched_probabilities,
    cost_predictor,
    fit_classifiers,
    fit_cost_regressor,
    group_folds,
    lower_bound_above_zero,
)
from autottt.policies.fast_inference import PackedForest


def asked(rows: np.ndarray, right: np.ndarray, families: int = 20) -> BinaryTarget:
    """A question about cases of this number of families."""
    return BinaryTarget(rows, right, np.array([f"f{i % families}" for i in range(len(rows))]))


@pytest.mark.parametrize("name", CANDIDATES)
def test_fitting_twice_gives_equal_heads(name):
    rows = np.random.default_rng(0).normal(size=(200, 5))
    right = (rows[:, 0] > 0).astype(float)
    question = asked(rows, right)
    one, two = (fit_classifiers([question], 3, 0, (name,))[0][0] for _ in range(2))
    np.testing.assert_array_equal(one.probabilities(rows), two.probabilities(rows))


def test_families_never_straddle_folds():
    families = [f"f{i % 11}" for i in range(200)]
    splits = group_folds(families, 5, seed=3)
    assert len(splits) == 5
    assert sorted(i for _, held in splits for i in held) == list(range(200))
    for learn, held in splits:
        assert not {families[i] for i in learn} & {families[i] for i in held}


def test_chances_are_calibrated_on_held_out_families():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 5))
    right = (rng.uniform(size=600) < 1 / (1 + np.exp(-2 * rows[:, 0]))).astype(float)
    question = asked(rows, right)
    ((head, held_out),) = fit_classifiers([question], 5, 0)
    assert held_out.mean() == pytest.approx(right.mean(), abs=0.01)
    sure = head.probabilities(np.array([[3.0, 0, 0, 0, 0], [-3.0, 0, 0, 0, 0]]))
    assert sure[0] > 0.95
    assert sure[1] < 0.05


@pytest.mark.parametrize("name", CANDIDATES)
def test_cases_without_an_answer_are_predicted_and_not_trained_on(name: str) -> None:
    """Half of the cases are known, and of those alone the answer is the sign of a feature."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3))
    yes = (rows[:, 0] > 0).astype(float)
    known = np.where(rng.uniform(size=400) < 0.5, yes, np.nan)
    some = ~np.isnan(known)
    ((head, held_out),) = fit_classifiers([asked(rows, known)], 4, 0, (name,))
    ((alone, _),) = fit_classifiers(
        [BinaryTarget(rows[some], yes[some], asked(rows, yes).families[some])], 4, 0, (name,)
    )
    assert np.isfinite(held_out).all()
    assert ((held_out > 0.5) == (yes == 1))[~some].mean() > 0.85
    assert np.abs(head.probabilities(rows) - alone.probabilities(rows)).mean() < 0.05


def test_all_heads_are_of_one_kind_the_simplest_that_is_as_good() -> None:
    """A product of two features is nothing that a line can tell: the forest is taken, also where a line would do."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 4))
    crooked, straight = (
        (x + 0.5 * rng.normal(size=500) > 0).astype(float) for x in (rows[:, 0] * rows[:, 1], rows[:, 2])
    )
    kinds = ("logistic", "forest")

    def chosen(*questions: BinaryTarget) -> set[str]:
        return {type(head.estimator).__name__ for head, _ in fit_classifiers(questions, 4, 0, kinds)}

    both = [asked(rows, yes, families=250) for yes in (crooked, straight)]
    assert chosen(both[1]) == {"Pipeline"}
    assert chosen(*both) == {"RandomForestClassifier"}
    noise = (rng.uniform(size=500) < 0.5).astype(float)
    assert chosen(asked(rows, noise, families=250)) == {"Pipeline"}


def test_a_difference_is_sure_only_if_families_agree() -> None:
    alike = np.repeat(np.random.default_rng(0).normal(0.1, 1.0, size=10), 50)
    apart = np.array([str(n) for n in range(500)])
    assert lower_bound_above_zero(alike, apart) or alike.mean() < 0.05
    assert not lower_bound_above_zero(np.repeat([1.0, -0.9], 250), np.repeat(["a", "b"], 250))
    assert lower_bound_above_zero(np.repeat([1.0, 0.9], 250), np.repeat(["a", "b"], 250))


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_head_says_quickly_what_its_estimators_say(name: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(3.0, 2.0, size=(300, 6))
    right = (rows[:, 0] + rng.normal(size=300) > 3).astype(float)
    ((head, _),) = fit_classifiers([asked(rows, right, families=300)], 3, 0, (name,))
    estimators = head.estimator if isinstance(head.estimator, list) else [head.estimator]
    said = [e.predict_proba(rows)[:, 1] if hasattr(e, "predict_proba") else e.predict(rows) for e in estimators]
    plain = CalibratedClassifier(head.estimator)
    assert len(estimators) == (2 if name == "blend" else 1)
    np.testing.assert_allclose(plain.probabilities(rows), np.clip(np.mean(said, axis=0), 1e-4, 1 - 1e-4), atol=1e-6)


def test_a_forest_in_one_piece_is_the_forest() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 6))
    yes = (rows[:, 0] * rows[:, 1] + 0.3 * rng.normal(size=300) > 0).astype(float)
    forest = RandomForestClassifier(20, min_samples_leaf=3, random_state=0).fit(rows, yes.astype(int))
    new = rng.normal(size=(200, 6))
    np.testing.assert_allclose(PackedForest.from_sklearn(forest).means(new), forest.predict_proba(new)[:, 1])


def test_heads_say_together_what_each_says_alone() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 6))
    names = ("blend", "logistic", "forest", "boosting", "nearest_families")
    heads = [
        fit_classifiers([asked(rows, (rows[:, n] > rng.normal(size=300)).astype(float), families=100)], 3, 0, (name,))[
            0
        ][0]
        for n, name in enumerate(names)
    ]
    alone = np.stack([head.probabilities(rows) for head in heads], axis=1)
    np.testing.assert_allclose(batched_probabilities(heads)(rows), alone, rtol=1e-12)
    np.testing.assert_allclose(batched_probabilities(heads[1:2])(rows[:1]), alone[:1, 1:2], rtol=1e-12)


def test_forests_that_predict_costs_do_so_in_one_pass() -> None:
    rng = np.random.default_rng(0)
    rows, new = rng.normal(size=(300, 6)), rng.normal(size=(50, 6))
    amounts = [
        fit_cost_regressor(rows, 5 + k * rows[:, k] ** 2, [str(n % 50) for n in range(300)], 3, 0) for k in (1, 2, 3)
    ]
    predictions = cost_predictor([amount for amount, _ in amounts])(new)
    np.testing.assert_allclose(predictions, np.stack([amount.estimator.predict(new) for amount, _ in amounts], axis=1))
    for k, (_, held_out) in zip((1, 2, 3), amounts, strict=True):
        assert np.corrcoef(held_out, rows[:, k] ** 2)[0, 1] > 0.5
