"""Calibrated classifiers and cost regressors, selected and calibrated by cross-validation over families.

Knows nothing about strategies, cost weights or names of features. Axes: N cases, F features, C classifiers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from . import lazy
from .fast_inference import Floats, LinearModel, PackedForest

if TYPE_CHECKING:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.pipeline import Pipeline

Split = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Training indices and held-out indices."""

MIN_CLASS_COUNT = 4
"""Cases of the rarer class below which a classifier is a constant."""
TREES = 60
"""Trees of a random forest."""


def _logistic(C: float) -> Pipeline:
    return lazy.pipeline.make_pipeline(
        lazy.preprocessing.StandardScaler(), lazy.linear_model.LogisticRegression(C=C, solver="newton-cholesky")
    )


def _forest(seed: int) -> RandomForestClassifier:
    return lazy.ensemble.RandomForestClassifier(
        TREES, min_samples_leaf=10, max_features="sqrt", random_state=seed, n_jobs=1
    )


CANDIDATES: Mapping[str, Callable[[int, int], Any]] = {
    "logistic": lambda seed, cases: _logistic(0.03),
    "logistic_free": lambda seed, cases: _logistic(0.3),
    "nearest_families": lambda seed, cases: lazy.pipeline.make_pipeline(
        lazy.preprocessing.StandardScaler(),
        lazy.neighbors.KNeighborsRegressor(min(NEAREST, cases), weights="distance", algorithm="brute"),
    ),
    "forest": lambda seed, cases: _forest(seed),
    "blend": lambda seed, cases: [_logistic(0.1), _forest(seed)],
    "boosting": lambda seed, cases: lazy.ensemble.HistGradientBoostingClassifier(
        learning_rate=0.06, max_iter=60, max_leaf_nodes=8, min_samples_leaf=15, l2_regularization=1.0,
        early_stopping=False, random_state=seed,
    ),
}  # fmt: skip
"""Estimators to select from, simplest first; each is built from a seed and the number of cases.

The logistic regressions have a fixed prior on their weights, whose influence falls with the number of cases. `blend`
averages its estimators; dissimilar models make dissimilar errors. `nearest_families` is fitted to one row per family:
its mean features and its share of positive cases.
"""
NEAREST = 9
"""Nearest families that a query is compared with."""
BY_FAMILY = ("nearest_families",)
"""Candidates that are fitted to one row per family."""
MIN_FAMILIES = {"forest": 200, "blend": 200, "boosting": 400}
"""Families that an estimator needs to be a candidate: with fewer it is selected by chance and generalises worse."""


@dataclass(frozen=True)
class CalibratedClassifier:
    """A fitted classifier and the sigmoid that calibrates it."""

    estimator: Any
    """A fitted scikit-learn classifier of 0 and 1, a regressor of the share of 1, the fast form of one, or a list of
    them, which is averaged."""
    slope: float = 1.0
    """Of the sigmoid, on the log-odds of the estimator."""
    intercept: float = 0.0

    def probabilities(self, rows: Floats) -> Floats:
        """Probability of the positive class for each row [N, F] -> [N]."""
        return _calibrated(np.mean([part(rows) for part in self._parts], axis=0), self.slope, self.intercept)

    def __getstate__(self) -> dict[str, Any]:
        """Without the functions that are made of the estimators."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def _parts(self) -> list[Callable[[Floats], Floats]]:
        """Prediction function of each estimator, with fast inference where there is one."""
        return [_fast_inference(one) for one in self.estimators]

    @property
    def estimators(self) -> list[Any]:
        """The estimators that are averaged."""
        return self.estimator if isinstance(self.estimator, list) else [self.estimator]


def batched_probabilities(classifiers: Sequence[CalibratedClassifier]) -> Callable[[Floats], Floats]:
    """A function from rows [N, F] to the probabilities of several classifiers [N, C]; their forests are evaluated in
    one pass, which takes the time of a single forest."""
    estimators = [(n, one) for n, classifier in enumerate(classifiers) for one in classifier.estimators]
    forests = [(n, one) for n, one in estimators if _is_forest(one)]
    others = [(n, _fast_inference(one)) for n, one in estimators if not _is_forest(one)]
    trees = PackedForest.concatenate([_packed(one) for _, one in forests]) if forests else None
    counts = np.array([len(c.estimators) for c in classifiers])
    slopes, intercepts = (np.array([getattr(c, name) for c in classifiers]) for name in ("slope", "intercept"))

    def probabilities(rows: Floats) -> Floats:
        sums = np.zeros((len(rows), len(classifiers)))
        if trees is not None:
            for (n, _), means in zip(forests, trees.means_of_each(rows, len(forests)).T, strict=True):
                sums[:, n] += means
        for n, predict in others:
            sums[:, n] += predict(rows)
        return _calibrated(sums / counts, slopes, intercepts)

    return probabilities


def _is_forest(estimator: Any) -> bool:
    if isinstance(estimator, (PackedForest, LinearModel)):  # scikit-learn is not imported for these
        return isinstance(estimator, PackedForest)
    return isinstance(estimator, lazy.ensemble.RandomForestClassifier)


def _packed(forest: Any) -> PackedForest:
    return forest if isinstance(forest, PackedForest) else PackedForest.from_sklearn(forest)


@dataclass(frozen=True)
class CostRegressor:
    """A fitted forest that predicts a relative cost."""

    estimator: RandomForestRegressor | PackedForest


def cost_predictor(regressors: Sequence[CostRegressor]) -> Callable[[Floats], Floats]:
    """A function from rows [N, F] to the predictions of all regressors [N, number of regressors]."""
    trees = PackedForest.concatenate([_packed(regressor.estimator) for regressor in regressors])
    return lambda rows: trees.means_of_each(rows, len(regressors))


def fit_cost_regressor(
    X: Floats, costs: Floats, families: Sequence[str], fold_count: int, seed: int
) -> tuple[CostRegressor, Floats]:
    """A regressor of costs [N], NaN where unknown, from features [N, F]; and its predictions for each case [N] with its
    family held out."""
    known, predictions = ~np.isnan(costs), np.full(len(X), np.nanmean(costs))

    def fitted(train: NDArray[np.int64]) -> RandomForestRegressor:
        forest = lazy.ensemble.RandomForestRegressor(
            TREES, min_samples_leaf=10, max_features=0.4, random_state=seed, n_jobs=1
        )
        return forest.fit(X[train], costs[train])

    with one_thread():
        for train, held_out in group_folds(families, fold_count, seed):
            if known[train].any():
                predictions[held_out] = fitted(train[known[train]]).predict(X[held_out])
        return CostRegressor(fitted(np.flatnonzero(known))), predictions


@dataclass(frozen=True)
class BinaryTarget:
    """What a classifier is trained on: N cases with binary labels. Cases with an unknown label are not trained on."""

    X: Floats
    """[N, F]"""
    labels: Floats
    """[N], 0 or 1; NaN where unknown."""
    families: NDArray[np.str_]
    """[N]"""
    prior: float = 0.5
    """Share of positive cases to assume without data."""

    def take(self, chosen: NDArray[np.int64]) -> BinaryTarget:
        """The cases at these indices."""
        return replace(self, X=self.X[chosen], labels=self.labels[chosen], families=self.families[chosen])

    @property
    def known(self) -> BinaryTarget:
        """The cases with a known label."""
        return self.take(np.flatnonzero(~np.isnan(self.labels)))

    def by_family(self) -> BinaryTarget:
        """One row per family: its mean features and label."""
        names, place = np.unique(self.families, return_inverse=True)
        means = (np.arange(len(names))[:, None] == place) / np.bincount(place)[:, None]
        return replace(self, X=means @ self.X, labels=means @ self.labels, families=names)

    def losses(self, probabilities: Floats) -> Floats:
        """Log-loss of each probability [N] in nats."""
        clipped = np.clip(probabilities, 1e-4, 1 - 1e-4)
        losses: Floats = -np.where(self.labels == 1, np.log(clipped), np.log(1 - clipped))
        return losses

    @property
    def base_rate(self) -> float:
        """The share of positive cases, smoothed towards the prior."""
        return float((self.labels.sum() + 2 * self.prior) / (len(self.labels) + 2))

    @property
    def is_degenerate(self) -> bool:
        """Whether nearly all cases have the same label."""
        return bool(min(self.labels.sum(), len(self.labels) - self.labels.sum()) < MIN_CLASS_COUNT)


def fit_classifiers(
    targets: Sequence[BinaryTarget], fold_count: int, seed: int, candidates: Sequence[str] = tuple(CANDIDATES)
) -> list[tuple[CalibratedClassifier, Floats]]:
    """For each target a classifier, calibrated on held-out families, and its held-out probabilities of all cases [N].

    All use the same candidate, since similar errors cancel when classifiers are compared: the simplest one whose
    log-loss on held-out families, over all targets, is within one standard error of the best (Breiman et al. 1984). A
    degenerate target, or one with a single family, gets a constant.
    """
    splits = [group_folds(t.families.tolist(), fold_count, seed) for t in targets]
    with one_thread():
        raw = {n: [_held_out(n, t, s, seed) for t, s in zip(targets, splits, strict=True)] for n in candidates}
        sigmoids = {n: [_calibration(h, t) for h, t in zip(raw[n], targets, strict=True)] for n in candidates}
        probabilities = {
            n: [_calibrated(h, *pair) for h, pair in zip(raw[n], sigmoids[n], strict=True)] for n in candidates
        }
        name = _simplest(targets, probabilities)
        estimators = [
            _fit(name, t.known, seed) if s else _constant(t.known) for t, s in zip(targets, splits, strict=True)
        ]
    return [
        (CalibratedClassifier(estimator), uncalibrated)
        if isinstance(estimator, lazy.dummy.DummyClassifier)
        else (CalibratedClassifier(estimator, *pair), calibrated)
        for estimator, uncalibrated, pair, calibrated in zip(
            estimators, raw[name], sigmoids[name], probabilities[name], strict=True
        )
    ]


def _simplest(targets: Sequence[BinaryTarget], held_out: Mapping[str, Sequence[Floats]]) -> str:
    """The first candidate whose losses, over all targets, are not significantly above those of the best."""
    known = [~np.isnan(t.labels) for t in targets]
    families = np.concatenate([t.families[k] for t, k in zip(targets, known, strict=True)])
    losses = {
        name: np.concatenate([t.known.losses(p[k]) for t, k, p in zip(targets, known, probabilities, strict=True)])
        for name, probabilities in held_out.items()
    }
    best = min(losses, key=lambda name: float(losses[name].mean()))
    return next(n for n in losses if n == best or not lower_bound_above_zero(losses[n] - losses[best], families))


def lower_bound_above_zero(values: Floats, families: NDArray[np.str_]) -> bool:
    """Whether the mean of the values [N] is more than a standard error above 0, clustered by family, since the cases of
    a family are not independent."""
    mean = values.mean()
    _, place = np.unique(families, return_inverse=True)
    error = np.sqrt((np.bincount(place, values - mean) ** 2).sum()) / len(values)
    return bool(mean > error)


def eligible_candidates(candidates: Sequence[str], families: int) -> tuple[str, ...]:
    """The candidates that this number of families suffices for; all of them if it suffices for none."""
    return tuple(n for n in candidates if families >= MIN_FAMILIES.get(n, 0)) or tuple(candidates)


def group_folds(families: Sequence[str], count: int, seed: int) -> list[Split]:
    """Up to `count` splits of the cases, each with a family on one side only; none for a single family."""
    count = min(count, len(set(families)))
    if count < 2:
        return []
    splitter = lazy.model_selection.GroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(families)), groups=np.asarray(families)))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limits scikit-learn to one thread: on small data the overhead of threads exceeds the work a thousandfold."""
    with _threadpools().limit(limits=1):
        yield


@cache
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()


def _held_out(name: str, target: BinaryTarget, splits: Sequence[Split], seed: int) -> Floats:
    """Uncalibrated held-out probabilities [N] of a candidate."""
    probabilities = np.full(len(target.labels), target.known.base_rate)
    for train, held_out in splits:
        estimator = _fit(name, target.take(train).known, seed)
        probabilities[held_out] = _positive_probability(estimator, target.X[held_out])
    return probabilities


def _fit(name: str, target: BinaryTarget, seed: int) -> Any:
    """A fitted estimator of a candidate, or a list of them; a constant for a degenerate target."""
    if target.is_degenerate:
        return _constant(target)
    if name in BY_FAMILY:
        families = target.by_family()
        return CANDIDATES[name](seed, len(families.labels)).fit(families.X, families.labels)
    estimator = CANDIDATES[name](seed, len(target.labels))
    labels = target.labels.astype(int)
    if isinstance(estimator, list):
        return [one.fit(target.X, labels) for one in estimator]
    return estimator.fit(target.X, labels)


def _constant(target: BinaryTarget) -> DummyClassifier:
    """A classifier that always predicts the base rate."""
    two = np.zeros((2, target.X.shape[1]))
    return lazy.dummy.DummyClassifier(strategy="prior").fit(
        two, [0, 1], sample_weight=[1 - target.base_rate, target.base_rate]
    )


def _calibration(probabilities: Floats, target: BinaryTarget) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid; a negative slope, which would reverse the order, becomes 0."""
    known = target.known
    if known.is_degenerate:
        return 1.0, 0.0
    odds = _log_odds(probabilities[~np.isnan(target.labels)])
    fitted = lazy.linear_model.LogisticRegression(solver="newton-cholesky").fit(odds[:, None], known.labels.astype(int))
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, intercept) if slope > 0 else (0.0, float(_log_odds(np.array([known.base_rate]))[0]))


def _fast_inference(estimator: Any) -> Callable[[Floats], Floats]:
    """The fastest prediction function for a fitted estimator, from rows [N, F] to probabilities [N]."""
    if isinstance(estimator, LinearModel):
        return estimator.probabilities
    if _is_forest(estimator):
        return _packed(estimator).means
    if isinstance(estimator, lazy.pipeline.Pipeline) and isinstance(
        estimator.steps[-1][1], lazy.linear_model.LogisticRegression
    ):
        return LinearModel.from_sklearn(estimator).probabilities

    def probabilities(rows: Floats) -> Floats:
        with one_thread():
            return _positive_probability(estimator, rows)

    return probabilities


def _positive_probability(estimator: Any, rows: Floats) -> Floats:
    """Probability of the positive class by scikit-learn's own prediction; the mean for a list of estimators."""
    if isinstance(estimator, list):
        return np.asarray(np.mean([_positive_probability(one, rows) for one in estimator], axis=0), dtype=np.float64)
    last = estimator.steps[-1][1] if isinstance(estimator, lazy.pipeline.Pipeline) else estimator
    values: Floats = estimator.predict(rows) if lazy.base.is_regressor(last) else estimator.predict_proba(rows)[:, 1]
    return values


def _log_odds(probabilities: Floats) -> Floats:
    clipped = np.clip(probabilities, 1e-4, 1 - 1e-4)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def _calibrated(probabilities: Floats, slope: float | Floats, intercept: float | Floats) -> Floats:
    calibrated: Floats = 1 / (1 + np.exp(-slope * _log_odds(probabilities) - intercept))
    return calibrated
