"""Fitted trees and lines as arrays: what scikit-learn says of a row in milliseconds, in a tenth of that.

Knows nothing about what they say. Axes: N rows, F features, T trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.pipeline import Pipeline

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PackedForest:
    """The trees of a forest in one piece: what scikit-learn does in milliseconds for a row, in a tenth of that."""

    roots: NDArray[np.intp]
    """[T]"""
    feature: NDArray[np.intp]
    """[nodes of all trees]"""
    threshold: Floats
    """[nodes]; at a leaf there is no way on."""
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    value: Floats
    """[nodes], the share of yeses, or the mean amount."""
    depth: int

    @classmethod
    def from_sklearn(cls, forest: RandomForestClassifier | RandomForestRegressor) -> PackedForest:
        """The trees of a fitted forest that tells 0 from 1, or an amount."""
        trees = [one.tree_ for one in forest.estimators_]
        roots = np.concatenate([[0], np.cumsum([t.node_count for t in trees])[:-1]])
        leaf = np.concatenate([t.children_left < 0 for t in trees])
        here = np.arange(len(leaf))

        def onwards(children: list[NDArray[np.intp]]) -> NDArray[np.intp]:
            return np.where(leaf, here, np.concatenate([c + r for c, r in zip(children, roots, strict=True)]))

        if isinstance(forest, RandomForestClassifier):
            values = [t.value[:, 0, 1] / t.value[:, 0].sum(axis=1) for t in trees]
        else:
            values = [t.value[:, 0, 0] for t in trees]
        return cls(
            roots, np.where(leaf, 0, np.concatenate([t.feature for t in trees])),
            np.concatenate([t.threshold for t in trees]), onwards([t.children_left for t in trees]),
            onwards([t.children_right for t in trees]), np.concatenate(values), max(t.max_depth for t in trees),
        )  # fmt: skip

    @classmethod
    def concatenate(cls, forests: Sequence[PackedForest]) -> PackedForest:
        """The trees of several forests of as many trees each, one after the other: going down all at once takes a
        single forest's time."""
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
        """The mean of all trees for each row [N, F] -> [N]."""
        return self.means_of_each(rows, 1)[:, 0]

    def means_of_each(self, rows: Floats, forests: int) -> Floats:
        """The mean of the trees of each of so many forests, for each row [N, F] -> [N, forests]."""
        values, node = rows.astype(np.float32), np.tile(self.roots, (len(rows), 1))
        case = np.arange(len(rows))[:, None]
        for _ in range(self.depth):
            lower = values[case, self.feature[node]] <= self.threshold[node]
            node = np.where(lower, self.left[node], self.right[node])
        found: Floats = self.value[node].reshape(len(rows), forests, -1).mean(axis=2)
        return found


@dataclass(frozen=True)
class LinearModel:
    """A standardized logistic regression as one product, which scikit-learn does in a tenth of a millisecond."""

    weights: Floats
    """[F]"""
    bias: float

    @classmethod
    def from_sklearn(cls, pipeline: Pipeline) -> LinearModel:
        """The line of a fitted scaler and logistic regression that tells 0 from 1."""
        (_, scaler), (_, logistic) = pipeline.steps
        weights = logistic.coef_[0] / scaler.scale_
        return cls(weights, float(logistic.intercept_[0] - weights @ scaler.mean_))

    def probabilities(self, rows: Floats) -> Floats:
        """The chance of a yes for each row [N, F] -> [N]."""
        found: Floats = expit(rows @ self.weights + self.bias)
        return found
