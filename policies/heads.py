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
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
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
    "boosting": lambda seed, cases: HistGradientBoostingClassifier(
        learning_rate=0.06, max_iter=60, max_leaf_nodes=8, min_samples_leaf=15, l2_regularization=1.0,
        early_stopping=False, random_state=seed,
    ),
}  # fmt: skip
"""Estimators to choose from, simplest first, each made from a seed and the number of cases.

The logistic regression is as strongly regularized, case for case, with a hundred cases as with a thousand.
"""
LEAST_CASES = {"boosting": 400}
"""Cases that an estimator needs to be a candidate beside others: with fewer it wins by chance, and then loses."""


@dataclass(frozen=True)
class Head:
    """A fitted classifier and the sigmoid that calibrates it."""

    estimator: Any
    """A fitted scikit-learn classifier of 0 and 1."""
    slope: float = 1.0
    """Of the sigmoid, on the log-odds that the estimator gives."""
    intercept: float = 0.0

    def chances(self, rows: Floats) -> Floats:
        """The chance of a yes for each row [N, F] -> [N]."""
        with one_thread():
            return _sigmoid(self.slope * _log_odds(_yes(self.estimator, rows)) + self.intercept)


def fit_head(
    rows: Floats, right: Floats, splits: Sequence[Split], seed: int, candidates: Sequence[str] = tuple(CANDIDATES)
) -> tuple[Head, Floats]:
    """The candidate with the best log-loss on held-out families, calibrated on them, and its held-out chances [N].

    `right` is 0 or 1 per case. A question with nearly always the same answer gets a constant.
    """
    with one_thread():
        candidates = [n for n in candidates if len(right) >= LEAST_CASES.get(n, 0)] or list(candidates)
        held_outs = {name: _held_out(name, rows, right, splits, seed) for name in candidates}
        name = min(candidates, key=lambda n: log_loss(right, held_outs[n], labels=[0, 1]))
        estimator, held_out = _fit(name, rows, right, seed), held_outs[name]
        if isinstance(estimator, DummyClassifier):
            return Head(estimator), held_out
        slope, intercept = _calibration(held_out, right)
    return Head(estimator, slope, intercept), _sigmoid(slope * _log_odds(held_out) + intercept)


def folds(families: Sequence[str], count: int, seed: int) -> list[Split]:
    """Up to `count` splits of the cases; a family is wholly on one side of each. Needs two families."""
    count = min(count, len(set(families)))
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


def _held_out(name: str, rows: Floats, right: Floats, splits: Sequence[Split], seed: int) -> Floats:
    chances = np.empty(len(right))
    for learn, held in splits:
        chances[held] = _yes(_fit(name, rows[learn], right[learn], seed), rows[held])
    return chances


def _fit(name: str, rows: Floats, right: Floats, seed: int) -> Any:
    if min(right.sum(), len(right) - right.sum()) < RAREST:
        return _constant((right.sum() + 1) / (len(right) + 2), rows)
    return CANDIDATES[name](seed, len(right)).fit(rows, right.astype(int))


def _constant(chance: float, rows: Floats) -> DummyClassifier:
    two = np.zeros((2, rows.shape[1]))
    return DummyClassifier(strategy="prior").fit(two, [0, 1], sample_weight=[1 - chance, chance])


def _calibration(chances: Floats, right: Floats) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid; a slope that would turn the order around becomes 0."""
    fitted = LogisticRegression(solver="newton-cholesky").fit(_log_odds(chances)[:, None], right.astype(int))
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    share = (right.sum() + 1) / (len(right) + 2)
    return (slope, intercept) if slope > 0 else (0.0, float(_log_odds(np.array([share]))[0]))


def _yes(estimator: Any, rows: Floats) -> Floats:
    chances: Floats = estimator.predict_proba(rows)[:, 1]
    return chances


def _log_odds(chances: Floats) -> Floats:
    clipped = np.clip(chances, 1e-4, 1 - 1e-4)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def _sigmoid(log_odds: Floats) -> Floats:
    chances: Floats = 1 / (1 + np.exp(-log_odds))
    return chances
