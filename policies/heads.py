"""Heads: calibrated classifiers of one yes-or-no question, chosen and judged with families held out.

Knows nothing about strategies, prices or features' names. Axes: N cases, F features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

Floats = NDArray[np.float64]
Split = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices to learn from, and indices held out."""

RAREST = 4
"""With fewer cases of the rarer outcome there is nothing to learn: the head is a constant."""

CANDIDATES: Mapping[str, Callable[[int, int], Any]] = {
    "logistic": lambda seed, cases: make_pipeline(
        StandardScaler(), LogisticRegression(C=3e-4 * cases, solver="newton-cholesky")
    ),
    "logistic_free": lambda seed, cases: make_pipeline(
        StandardScaler(), LogisticRegression(C=3e-3 * cases, solver="newton-cholesky")
    ),
    "nearest_families": lambda seed, cases: make_pipeline(
        StandardScaler(), KNeighborsRegressor(min(NEAREST, cases), weights="distance", algorithm="brute")
    ),
    "forest": lambda seed, cases: RandomForestClassifier(
        100, min_samples_leaf=5, max_features="sqrt", random_state=seed, n_jobs=1
    ),
    "boosting": lambda seed, cases: HistGradientBoostingClassifier(
        learning_rate=0.06, max_iter=60, max_leaf_nodes=8, min_samples_leaf=15, l2_regularization=1.0,
        early_stopping=False, random_state=seed,
    ),
}  # fmt: skip
"""Estimators to choose from, simplest first, each made from a seed and the number of cases.

The logistic regressions are as strongly regularized, case for case, with a hundred cases as with a thousand. Nearest
families learn from one row for each family: its mean features, and the share of yeses.
"""
NEAREST = 9
"""Families that a query is compared with."""
BY_FAMILY = ("nearest_families",)
LEAST_CASES = {"forest": 400, "boosting": 400}
"""Cases that an estimator needs to be a candidate beside others: with fewer it wins by chance, and then loses."""


@dataclass(frozen=True)
class Head:
    """A fitted classifier and the sigmoid that calibrates it."""

    estimator: Any
    """A fitted scikit-learn classifier of 0 and 1, or a regressor of the share of 1."""
    slope: float = 1.0
    """Of the sigmoid, on the log-odds that the estimator gives."""
    intercept: float = 0.0

    def chances(self, rows: Floats) -> Floats:
        """The chance of a yes for each row [N, F] -> [N]."""
        with one_thread():
            return _sigmoid(self.slope * _log_odds(_yes(self.estimator, rows)) + self.intercept)


@dataclass(frozen=True)
class Question:
    """What a head learns: N cases, yes or no of each, and how much each matters."""

    rows: Floats
    """[N, F]"""
    yes: Floats
    """[N], 0 or 1."""
    families: NDArray[np.str_]
    """[N]"""
    weights: Floats
    """[N]"""

    def take(self, chosen: NDArray[np.int64]) -> Question:
        """The question about the cases at these indices."""
        return Question(self.rows[chosen], self.yes[chosen], self.families[chosen], self.weights[chosen])

    def by_family(self) -> Question:
        """One row for each family: means, and the sum of its weights."""
        names, place = np.unique(self.families, return_inverse=True)
        of = np.zeros((len(names), len(place)))
        of[place, np.arange(len(place))] = self.weights
        weights: Floats = of.sum(axis=1)
        means = of / np.maximum(weights, 1e-12)[:, None]
        return Question(means @ self.rows, means @ self.yes, names, weights)


def fit_head(
    question: Question, splits: Sequence[Split], seed: int, candidates: Sequence[str] = tuple(CANDIDATES)
) -> tuple[Head, Floats]:
    """A candidate with the best log-loss on held-out families, calibrated on them, and its held-out chances [N].

    The simplest one is taken whose loss is within a standard error of the best (Breiman et al. 1984). A question with
    nearly always the same answer, or about one family only (no `splits`), gets a constant.
    """
    yes, weights = question.yes, question.weights
    if not splits:
        chance = float((yes.sum() + 1) / (len(yes) + 2))
        return Head(_constant(chance, question.rows)), np.full(len(yes), chance)
    with one_thread():
        candidates = [n for n in candidates if len(yes) >= LEAST_CASES.get(n, 0)] or list(candidates)
        held_outs = {name: _held_out(name, question, splits, seed) for name in candidates}
        losses = {name: _losses(yes, chances) for name, chances in held_outs.items()}
        best = min(candidates, key=lambda n: np.average(losses[n], weights=weights))
        name = next(n for n in candidates if n == best or _no_worse(losses[n] - losses[best], weights))
        estimator, held_out = _fit(name, question, seed), held_outs[name]
        if isinstance(estimator, DummyClassifier):
            return Head(estimator), held_out
        slope, intercept = _calibration(held_out, question)
    return Head(estimator, slope, intercept), _sigmoid(slope * _log_odds(held_out) + intercept)


def folds(families: Sequence[str], count: int, seed: int) -> list[Split]:
    """Up to `count` splits of the cases; a family is wholly on one side of each. A single family has none."""
    count = min(count, len(set(families)))
    if count < 2:
        return []
    splitter = GroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(families)), groups=np.asarray(families)))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps scikit-learn from using threads: with so little data it would wait for them a thousand times longer."""
    with _threadpools().limit(limits=1):
        yield


@cache
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()


def _held_out(name: str, question: Question, splits: Sequence[Split], seed: int) -> Floats:
    chances = np.empty(len(question.yes))
    for learn, held in splits:
        chances[held] = _yes(_fit(name, question.take(learn), seed), question.rows[held])
    return chances


def _fit(name: str, question: Question, seed: int) -> Any:
    yes = question.yes
    if min(yes.sum(), len(yes) - yes.sum()) < RAREST:
        return _constant((yes.sum() + 1) / (len(yes) + 2), question.rows)
    if name in BY_FAMILY:
        families = question.by_family()
        return CANDIDATES[name](seed, len(families.yes)).fit(families.rows, families.yes)
    estimator = CANDIDATES[name](seed, len(yes))
    weighted = "sample_weight"
    if isinstance(estimator, Pipeline):
        weighted = f"{estimator.steps[-1][0]}__{weighted}"
    return estimator.fit(question.rows, yes.astype(int), **{weighted: question.weights})


def _losses(yes: Floats, chances: Floats) -> Floats:
    """Log-loss of each case [N], in nats."""
    clipped = np.clip(chances, 1e-4, 1 - 1e-4)
    losses: Floats = -np.where(yes == 1, np.log(clipped), np.log(1 - clipped))
    return losses


def _no_worse(more: Floats, weights: Floats) -> bool:
    """Whether a loss is within a standard error of the best: `more` is by how much it is higher, case by case [N]."""
    mean = np.average(more, weights=weights)
    error = np.sqrt(np.average((more - mean) ** 2, weights=weights) / len(more))
    return bool(mean <= error)


def _constant(chance: float, rows: Floats) -> DummyClassifier:
    two = np.zeros((2, rows.shape[1]))
    return DummyClassifier(strategy="prior").fit(two, [0, 1], sample_weight=[1 - chance, chance])


def _calibration(chances: Floats, question: Question) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid; a slope that would turn the order around becomes 0."""
    yes, weights = question.yes, question.weights
    fitted = LogisticRegression(solver="newton-cholesky").fit(_log_odds(chances)[:, None], yes.astype(int), weights)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    share = (weights @ yes + 1) / (weights.sum() + 2)
    return (slope, intercept) if slope > 0 else (0.0, float(_log_odds(np.array([share]))[0]))


def _yes(estimator: Any, rows: Floats) -> Floats:
    if hasattr(estimator, "predict_proba"):
        chances: Floats = estimator.predict_proba(rows)[:, 1]
    else:
        chances = estimator.predict(rows)
    return chances


def _log_odds(chances: Floats) -> Floats:
    clipped = np.clip(chances, 1e-4, 1 - 1e-4)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def _sigmoid(log_odds: Floats) -> Floats:
    chances: Floats = 1 / (1 + np.exp(-log_odds))
    return chances
