"""Fast inference of fitted forests and logistic regressions from arrays, in a tenth of scikit-learn's time per row.

Knows nothing about what they predict. Axes: N rows, F features, T trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import lazy

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.pipeline import Pipeline

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PackedForest:
    """All trees of a forest in one set of arrays: tenths of a millisecond per row, milliseconds in scikit-learn."""

    roots: NDArray[np.intp]
    """[T]"""
    feature: NDArray[np.intp]
    """[nodes of all trees]"""
    threshold: Floats
    """[nodes]; leaves point to themselves."""
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    value: Floats
    """[nodes], the share of positive cases, or the mean of the target."""
    depth: int

    @classmethod
    def from_sklearn(cls, forest: RandomForestClassifier | RandomForestRegressor) -> PackedForest:
        """Packs a fitted binary classifier or regressor."""
        trees = [one.tree_ for one in forest.estimators_]
        roots = np.concatenate([[0], np.cumsum([t.node_count for t in trees])[:-1]])
        leaf = np.concatenate([t.children_left < 0 for t in trees])
        own = np.arange(len(leaf))

        def child_index(children: list[NDArray[np.intp]]) -> NDArray[np.intp]:
            return np.where(leaf, own, np.concatenate([c + r for c, r in zip(children, roots, strict=True)]))

        if isinstance(forest, lazy.ensemble.RandomForestClassifier):
            values = [t.value[:, 0, 1] / t.value[:, 0].sum(axis=1) for t in trees]
        else:
            values = [t.value[:, 0, 0] for t in trees]
        return cls(
            roots, np.where(leaf, 0, np.concatenate([t.feature for t in trees])),
            np.concatenate([t.threshold for t in trees]), child_index([t.children_left for t in trees]),
            child_index([t.children_right for t in trees]), np.concatenate(values), max(t.max_depth for t in trees),
        )  # fmt: skip

    @classmethod
    def concatenate(cls, forests: Sequence[PackedForest]) -> PackedForest:
        """Packs several forests with equal numbers of trees: evaluating all of them takes the time of one."""
        nodes = np.cumsum([0, *(len(f.value) for f in forests)])
        roots, left, right = (
            np.concatenate([getattr(f, name) + n for f, n in zip(forests, nodes, strict=False)])
            for name in ("roots", "left", "right")
        )
        feature, threshold, value = (
            np.concatenate([getattr(f, name) for f in forests]) for name in ("feature", "threshold", "value")
        )
        return cls(roots, feature, threshold, left, right, value, max(f.depth for f in forests))

    def means(self, rows: Floats) -> Floats:
        """The mean over all trees for each row [N, F] -> [N]."""
        return self.means_of_each(rows, 1)[:, 0]

    def means_of_each(self, rows: Floats, forests: int) -> Floats:
        """The mean over the trees of each of the packed forests, for each row [N, F] -> [N, forests]."""
        values, node = rows.astype(np.float32), np.tile(self.roots, (len(rows), 1))
        case = np.arange(len(rows))[:, None]
        for _ in range(self.depth):
            lower = values[case, self.feature[node]] <= self.threshold[node]
            node = np.where(lower, self.left[node], self.right[node])
        means: Floats = self.value[node].reshape(len(rows), forests, -1).mean(axis=2)
        return means


@dataclass(frozen=True)
class LinearModel:
    """A standardised logistic regression as one dot product."""

    weights: Floats
    """[F]"""
    bias: float

    @classmethod
    def from_sklearn(cls, pipeline: Pipeline) -> LinearModel:
        """Merges a fitted scaler and a binary logistic regression."""
        (_, scaler), (_, logistic) = pipeline.steps
        weights = logistic.coef_[0] / scaler.scale_
        return cls(weights, float(logistic.intercept_[0] - weights @ scaler.mean_))

    def probabilities(self, rows: Floats) -> Floats:
        """Probability of the positive class for each row [N, F] -> [N]."""
        probabilities: Floats = 0.5 + 0.5 * np.tanh(0.5 * (rows @ self.weights + self.bias))
        return probabilities


FastEstimator: TypeAlias = PackedForest | LinearModel


def fast_form(estimator: Any, features: int) -> FastEstimator | None:
    """The arrays of a fitted estimator that reads this many features; None for an estimator that has no such form.

    A constant is a linear model without weights.
    """
    if isinstance(estimator, (PackedForest, LinearModel)):
        return estimator
    if isinstance(estimator, lazy.ensemble.RandomForestClassifier | lazy.ensemble.RandomForestRegressor):
        return PackedForest.from_sklearn(estimator)
    if isinstance(estimator, lazy.dummy.DummyClassifier):
        share = float(estimator.class_prior_[1])
        return LinearModel(np.zeros(features), float(np.log(share / (1 - share)))) if 0 < share < 1 else None
    if isinstance(estimator, lazy.pipeline.Pipeline) and isinstance(
        estimator.steps[-1][1], lazy.linear_model.LogisticRegression
    ):
        return LinearModel.from_sklearn(estimator)
    return None
