"""Heads: calibrated classifiers of one yes-or-no question, chosen and judged with families held out; and amounts.

Knows nothing about strategies, prices or features' names. Axes: N cases, F features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_regressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

from .fast_inference import Floats, LinearModel, PackedForest

Split = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices to learn from, and indices held out."""

MIN_CLASS_COUNT = 4
"""With fewer cases of the rarer outcome there is nothing to learn: the head is a constant."""


def _line(freedom: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=freedom, solver="newton-cholesky"))


def _forest(seed: int) -> RandomForestClassifier:
    return RandomForestClassifier(60, min_samples_leaf=10, max_features="sqrt", random_state=seed, n_jobs=1)


CANDIDATES: Mapping[str, Callable[[int, int], Any]] = {
    "logistic": lambda seed, cases: _line(0.03),
    "logistic_free": lambda seed, cases: _line(0.3),
    "nearest_families": lambda seed, cases: make_pipeline(
        StandardScaler(), KNeighborsRegressor(min(NEAREST, cases), weights="distance", algorithm="brute")
    ),
    "forest": lambda seed, cases: _forest(seed),
    "blend": lambda seed, cases: [_line(0.1), _forest(seed)],
    "boosting": lambda seed, cases: HistGradientBoostingClassifier(
        learning_rate=0.06, max_iter=60, max_leaf_nodes=8, min_samples_leaf=15, l2_regularization=1.0,
        early_stopping=False, random_state=seed,
    ),
}  # fmt: skip
"""Estimators to choose from, simplest first, each made from a seed and the number of cases.

The logistic regressions have the same prior on their weights whatever the number of cases: the more there are, the less
it says. A blend is the mean of what its estimators say: unlike ones err unlike. Nearest families learn from one row for
each family: its mean features, and the share of yeses.
"""
NEAREST = 9
"""Families that a query is compared with."""
BY_FAMILY = ("nearest_families",)
MIN_FAMILIES = {"forest": 200, "blend": 200, "boosting": 400}
"""Families that an estimator needs to be a candidate beside others: with fewer it wins by chance, and then loses."""


@dataclass(frozen=True)
class CalibratedClassifier:
    """A fitted classifier and the sigmoid that calibrates it."""

    estimator: Any
    """A fitted scikit-learn classifier of 0 and 1, a regressor of the share of 1, or a list of such, for their mean."""
    slope: float = 1.0
    """Of the sigmoid, on the log-odds that the estimator gives."""
    intercept: float = 0.0

    def probabilities(self, rows: Floats) -> Floats:
        """The chance of a yes for each row [N, F] -> [N]."""
        return _calibrated(np.mean([part(rows) for part in self._parts], axis=0), self.slope, self.intercept)

    @cached_property
    def _parts(self) -> list[Callable[[Floats], Floats]]:
        """What gives the chances of each estimator, for a row in a tenth of a millisecond where that can be."""
        return [_fast_inference(one) for one in self.estimators]

    @property
    def estimators(self) -> list[Any]:
        """One, or those whose mean it is."""
        return self.estimator if isinstance(self.estimator, list) else [self.estimator]


def batched_probabilities(heads: Sequence[CalibratedClassifier]) -> Callable[[Floats], Floats]:
    """What gives the chances of several heads at once for rows [N, F] -> [N, H]: their forests are gone down side by
    side, which takes the time of one."""
    forests = [(n, one) for n, head in enumerate(heads) for one in head.estimators if _is_forest(one)]
    others = [
        (n, _fast_inference(one)) for n, head in enumerate(heads) for one in head.estimators if not _is_forest(one)
    ]
    trees = PackedForest.concatenate([PackedForest.from_sklearn(one) for _, one in forests]) if forests else None
    counts = np.array([len(head.estimators) for head in heads])
    slopes, intercepts = (np.array([getattr(head, name) for head in heads]) for name in ("slope", "intercept"))

    def chances(rows: Floats) -> Floats:
        sums = np.zeros((len(rows), len(heads)))
        if trees is not None:
            for (n, _), found in zip(forests, trees.means_of_each(rows, len(forests)).T, strict=True):
                sums[:, n] += found
        for n, part in others:
            sums[:, n] += part(rows)
        return _calibrated(sums / counts, slopes, intercepts)

    return chances


def _is_forest(estimator: Any) -> bool:
    return isinstance(estimator, RandomForestClassifier)


@dataclass(frozen=True)
class CostRegressor:
    """A fitted forest that foretells an amount, such as a cost."""

    estimator: RandomForestRegressor


def cost_predictor(amounts: Sequence[CostRegressor]) -> Callable[[Floats], Floats]:
    """What gives the amounts [N, A] for rows [N, F]."""
    trees = PackedForest.concatenate([PackedForest.from_sklearn(amount.estimator) for amount in amounts])
    return lambda rows: trees.means_of_each(rows, len(amounts))


def fit_cost_regressor(
    rows: Floats, amounts: Floats, families: Sequence[str], fold_count: int, seed: int
) -> tuple[CostRegressor, Floats]:
    """What foretells amounts [N], not a number where they are not known, from rows [N, F]; and what was foretold of
    each case [N] with its family held out."""
    known, held_out = ~np.isnan(amounts), np.full(len(rows), np.nanmean(amounts))

    def fitted(learn: NDArray[np.int64]) -> RandomForestRegressor:
        forest = RandomForestRegressor(60, min_samples_leaf=10, max_features=0.4, random_state=seed, n_jobs=1)
        return forest.fit(rows[learn], amounts[learn])

    with one_thread():
        for learn, held in group_folds(families, fold_count, seed):
            if known[learn].any():
                held_out[held] = fitted(learn[known[learn]]).predict(rows[held])
        return CostRegressor(fitted(np.flatnonzero(known))), held_out


@dataclass(frozen=True)
class BinaryTarget:
    """What a head learns: N cases, and yes or no of each. One of which it is not known teaches nothing."""

    X: Floats
    """[N, F]"""
    labels: Floats
    """[N], 0 or 1; not a number, where it is not known."""
    families: NDArray[np.str_]
    """[N]"""
    prior: float = 0.5
    """The share of yeses that is expected where there are no cases."""

    def take(self, chosen: NDArray[np.int64]) -> BinaryTarget:
        """The question about the cases at these indices."""
        return replace(self, X=self.X[chosen], labels=self.labels[chosen], families=self.families[chosen])

    @property
    def known(self) -> BinaryTarget:
        """The question about the cases of which the answer is known."""
        return self.take(np.flatnonzero(~np.isnan(self.labels)))

    def by_family(self) -> BinaryTarget:
        """One row for each family: its means."""
        names, place = np.unique(self.families, return_inverse=True)
        means = (np.arange(len(names))[:, None] == place) / np.bincount(place)[:, None]
        return replace(self, X=means @ self.X, labels=means @ self.labels, families=names)

    def losses(self, chances: Floats) -> Floats:
        """Log-loss of each chance [N] in nats."""
        clipped = np.clip(chances, 1e-4, 1 - 1e-4)
        found: Floats = -np.where(self.labels == 1, np.log(clipped), np.log(1 - clipped))
        return found

    @property
    def base_rate(self) -> float:
        """The share of yeses, drawn a little towards the prior."""
        return float((self.labels.sum() + 2 * self.prior) / (len(self.labels) + 2))

    @property
    def is_degenerate(self) -> bool:
        """Whether nearly all cases have the same answer."""
        return bool(min(self.labels.sum(), len(self.labels) - self.labels.sum()) < MIN_CLASS_COUNT)


def fit_classifiers(
    questions: Sequence[BinaryTarget], fold_count: int, seed: int, candidates: Sequence[str] = tuple(CANDIDATES)
) -> list[tuple[CalibratedClassifier, Floats]]:
    """For each question a head, calibrated on families held out, and its held-out chances [N], of all cases.

    All are of one candidate, since errors that are alike cancel where heads are compared: the simplest whose log-loss
    on families held out, over all questions, is not above the best by more than a standard error (Breiman et al. 1984).
    A question with nearly always the same answer, or about one family only, gets a constant.
    """
    splits = [group_folds(q.families.tolist(), fold_count, seed) for q in questions]
    with one_thread():
        held_outs = {n: [_held_out(n, q, s, seed) for q, s in zip(questions, splits, strict=True)] for n in candidates}
        sigmoids = {n: [_calibration(h, q) for h, q in zip(held_outs[n], questions, strict=True)] for n in candidates}
        chances = {
            n: [_calibrated(h, *pair) for h, pair in zip(held_outs[n], sigmoids[n], strict=True)] for n in candidates
        }
        name = _simplest(questions, chances)
        estimators = [
            _fit(name, q.known, seed) if s else _constant(q.known) for q, s in zip(questions, splits, strict=True)
        ]
    return [
        (CalibratedClassifier(estimator), held_out)
        if isinstance(estimator, DummyClassifier)
        else (CalibratedClassifier(estimator, *pair), calibrated)
        for estimator, held_out, pair, calibrated in zip(
            estimators, held_outs[name], sigmoids[name], chances[name], strict=True
        )
    ]


def _simplest(questions: Sequence[BinaryTarget], held_outs: Mapping[str, Sequence[Floats]]) -> str:
    """The first candidate whose losses are not surely above the best one's, all questions taken together."""
    known = [~np.isnan(q.labels) for q in questions]
    families = np.concatenate([q.families[k] for q, k in zip(questions, known, strict=True)])
    losses = {
        name: np.concatenate([q.known.losses(c[k]) for q, k, c in zip(questions, known, all_chances, strict=True)])
        for name, all_chances in held_outs.items()
    }
    best = min(losses, key=lambda name: float(losses[name].mean()))
    return next(n for n in losses if n == best or not lower_bound_above_zero(losses[n] - losses[best], families))


def lower_bound_above_zero(values: Floats, families: NDArray[np.str_]) -> bool:
    """Whether the mean of the values [N] is more than a standard error above 0. Cases of a family are not
    independent, so the error is that of families drawn anew."""
    mean = values.mean()
    _, place = np.unique(families, return_inverse=True)
    error = np.sqrt((np.bincount(place, values - mean) ** 2).sum()) / len(values)
    return bool(mean > error)


def eligible_candidates(candidates: Sequence[str], families: int) -> tuple[str, ...]:
    """The candidates that so many families are enough for; all, where they are enough for none."""
    return tuple(n for n in candidates if families >= MIN_FAMILIES.get(n, 0)) or tuple(candidates)


def group_folds(families: Sequence[str], count: int, seed: int) -> list[Split]:
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


def _held_out(name: str, question: BinaryTarget, splits: Sequence[Split], seed: int) -> Floats:
    chances = np.full(len(question.labels), question.known.base_rate)
    for learn, held in splits:
        chances[held] = _positive_probability(_fit(name, question.take(learn).known, seed), question.X[held])
    return chances


def _fit(name: str, question: BinaryTarget, seed: int) -> Any:
    if question.is_degenerate:
        return _constant(question)
    if name in BY_FAMILY:
        families = question.by_family()
        return CANDIDATES[name](seed, len(families.labels)).fit(families.X, families.labels)
    made = CANDIDATES[name](seed, len(question.labels))
    yes = question.labels.astype(int)
    return [one.fit(question.X, yes) for one in made] if isinstance(made, list) else made.fit(question.X, yes)


def _constant(question: BinaryTarget) -> DummyClassifier:
    two = np.zeros((2, question.X.shape[1]))
    return DummyClassifier(strategy="prior").fit(
        two, [0, 1], sample_weight=[1 - question.base_rate, question.base_rate]
    )


def _calibration(chances: Floats, question: BinaryTarget) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid; a slope that would turn the order around becomes 0."""
    known = question.known
    if known.is_degenerate:
        return 1.0, 0.0
    odds = _log_odds(chances[~np.isnan(question.labels)])
    fitted = LogisticRegression(solver="newton-cholesky").fit(odds[:, None], known.labels.astype(int))
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, intercept) if slope > 0 else (0.0, float(_log_odds(np.array([known.base_rate]))[0]))


def _fast_inference(estimator: Any) -> Callable[[Floats], Floats]:
    """What gives a fitted estimator's chances, as quickly as is known."""
    if _is_forest(estimator):
        return PackedForest.from_sklearn(estimator).means
    if isinstance(estimator, Pipeline) and isinstance(estimator.steps[-1][1], LogisticRegression):
        return LinearModel.from_sklearn(estimator).probabilities

    def chances(rows: Floats) -> Floats:
        with one_thread():
            return _positive_probability(estimator, rows)

    return chances


def _positive_probability(estimator: Any, rows: Floats) -> Floats:
    if isinstance(estimator, list):
        return np.asarray(np.mean([_positive_probability(one, rows) for one in estimator], axis=0), dtype=np.float64)
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    chances: Floats = estimator.predict(rows) if is_regressor(last) else estimator.predict_proba(rows)[:, 1]
    return chances


def _log_odds(chances: Floats) -> Floats:
    clipped = np.clip(chances, 1e-4, 1 - 1e-4)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def _calibrated(chances: Floats, slope: float | Floats, intercept: float | Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-slope * _log_odds(chances) - intercept))
    return found
