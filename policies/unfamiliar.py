"""Queries that are unlike the training set: a score that recognises them, and estimates from the task's own evidence.

Estimators extrapolate badly to kinds of family that they never saw. How well the model answers the demonstrations of a
task from each other means the same on every family, so a linear model of that evidence alone decides there. Knows
nothing about files. Axes: N cases, S strategies, F features.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import lazy
from .classifiers import MIN_CLASS_COUNT, group_folds, one_thread
from .fast_inference import Floats
from .outcome_table import OutcomeTable
from .trained_policy import Evidence, Familiarity

EVIDENCE = (
    "loo_hits", "loo_mean", "loo_min", "orders_hits", "orders_mean", "turns_hits", "turns_mean", "reading_hits",
    "reading_hits_late", "reading_hit_last", "answer_total", "answer_entropy_max", "answer_margin_min",
    "answer_readable", "answer_ended", "answer_is_query", "answer_is_shown",
)  # fmt: skip
"""The features that count as evidence of a task itself; outcomes may lack some."""
ESSENTIAL = {"loo_hits", "orders_hits", "reading_hits_late"}
"""Those without which there is no evidence."""
FALSE_ALARMS = 0.05
"""Share of the queries of held-out families that are called unfamiliar."""
RIDGE = 0.05
"""Added to the diagonal of the correlation matrix."""
SURE = tuple(np.linspace(0.5, 0.99, 50).round(2).tolist())
"""Thresholds to choose from, above which an in-context answer is as accurate as the best fixed strategy."""
MARGINS = tuple(np.linspace(0.0, 0.5, 26).round(2).tolist())
"""Leads to choose from that a strategy needs over the most accurate fixed one where accuracy comes first."""


def fit_familiarity(table: OutcomeTable, fold_count: int, seed: int) -> Familiarity:
    """The distance of free features from the training set, with the threshold that `FALSE_ALARMS` of the queries of
    held-out families exceed."""
    names = [n for n in table.feature_names[0] if not n.startswith("kind_")]
    columns = [table.feature_names[0].index(name) for name in names]
    X = table.stage(0)[:, columns]
    held_out = np.zeros(len(X))
    splits = group_folds(table.families, fold_count, seed)
    for train, others in splits:
        held_out[others] = _distances(X[train], tuple(names)).scores(X[others])
    whole = _distances(X, tuple(names))
    scores = held_out if splits else whole.scores(X)
    threshold = float(np.quantile(scores, 1 - FALSE_ALARMS))
    return Familiarity(whole.names, whole.mean, whole.scale, whole.precision, threshold)


def _distances(X: Floats, names: tuple[str, ...]) -> Familiarity:
    """The familiarity without a threshold."""
    mean, scale = X.mean(axis=0), np.maximum(X.std(axis=0), 1e-3)
    Z = (X - mean) / scale
    precision = np.linalg.inv(Z.T @ Z / max(1, len(Z)) + RIDGE * np.eye(Z.shape[1]))
    return Familiarity(
        names, tuple(mean.round(6).tolist()), tuple(scale.round(6).tolist()),
        tuple(map(tuple, precision.round(6).tolist())), np.inf,
    )  # fmt: skip


def fit_evidence(table: OutcomeTable, fold_count: int, seed: int) -> tuple[Evidence | None, Floats]:
    """The estimates from evidence alone, and the probabilities of right in-context answers with kinds of task held out,
    for the cases on which every strategy was tried. None where the outcomes lack features of it, or where in-context
    answers are nearly all right or nearly all wrong."""
    if not set(table.feature_names[1]) >= ESSENTIAL or _degenerate(table.correct[:, 0]):
        return None, np.zeros(int(table.fully_observed.sum()))
    kinds = sorted(set(table.kinds))
    groups = table.kinds if len(kinds) > 1 else table.families
    families, held_out = np.array(table.families), np.full(len(table), table.correct[:, 0].mean())
    with one_thread():
        for fold, others in group_folds(groups, max(fold_count, len(kinds)), seed):
            train = fold[~np.isin(families[fold], families[others])]  # a family may have tasks of several kinds
            if not _degenerate(table.correct[train, 0]):
                held_out[others] = _fit_linear(table.take(train)).probabilities(_columns(table.take(others)))
        fitted = _fit_linear(table)
    whole = table.complete()
    observed = held_out[table.fully_observed]
    return replace(fitted, sure=_sure_threshold(observed, whole)), observed


def evidence_pays(evidence: Evidence | None, held_out: Floats, whole: OutcomeTable, cost_weight: float) -> bool:
    """Whether choosing by the evidence, the probe included, has at least the utility of the best fixed strategy without
    the probe, where `held_out` are the probabilities of right in-context answers on kinds of task that were held out.
    Where training costs little more than the probe, it does not."""
    if evidence is None:
        return False
    right, index = held_out[:, None], np.arange(len(whole))
    others = (1 - right) * np.array(evidence.fixes) + right * (1 - np.array(evidence.breaks))
    expected = np.hstack([right, others]) - cost_weight * whole.costs
    choice = np.where(whole.applicable, expected, -np.inf).argmax(axis=1)
    utilities = whole.utilities(cost_weight)
    utilities[:, 1:] -= cost_weight * whole.costs[:, :1]  # the in-context answer is there before the choice
    chosen = utilities[index, choice] - cost_weight * whole.probe_cost
    return bool(chosen.mean() >= utilities.mean(axis=0).max())


def _degenerate(right: Floats) -> bool:
    return bool(min(right.sum(), len(right) - right.sum()) < MIN_CLASS_COUNT)


def _names(table: OutcomeTable) -> tuple[str, ...]:
    return tuple(name for name in EVIDENCE if name in table.feature_names[1])


def _columns(table: OutcomeTable) -> Floats:
    return table.X[:, [table.feature_names[1].index(name) for name in _names(table)]]


def _fit_linear(table: OutcomeTable) -> Evidence:
    X, right = _columns(table), table.correct[:, 0]
    mean, scale = X.mean(axis=0), np.maximum(X.std(axis=0), 1e-6)
    model = lazy.linear_model.LogisticRegression(C=0.03, solver="newton-cholesky").fit(
        (X - mean) / scale, right.astype(int)
    )
    weights = model.coef_[0] / scale
    others = np.where(table.applicable, table.correct, np.nan)
    return Evidence(
        _names(table), tuple(weights.tolist()), float(model.intercept_[0] - weights @ mean),
        fixes=tuple(_shares(others[right == 0])), breaks=tuple(_shares(1 - others[right == 1])),
    )  # fmt: skip


def _shares(values: Floats) -> list[float]:
    """Mean of each column but the first, without NaN, smoothed towards 0."""
    known = ~np.isnan(values[:, 1:])
    sums = np.where(known, values[:, 1:], 0.0).sum(axis=0)
    return [float(x) for x in sums / (known.sum(axis=0) + 2)]


def _sure_threshold(held_out: Floats, whole: OutcomeTable) -> float:
    """The lowest threshold from which on in-context answers are at least as accurate as the most accurate fixed
    strategy, on kinds of task that were held out."""
    lead = whole.correct[:, 0] - whole.correct[:, most_accurate(whole)]
    reached = 1.0
    for threshold in reversed(SURE):
        kept = held_out >= threshold
        if kept.any() and lead[kept].sum() < 0:
            break
        reached = threshold if kept.any() else reached
    return float(reached)


def most_accurate(table: OutcomeTable) -> int:
    """The index of the fixed strategy with the highest accuracy; the cheapest of equals."""
    return int(table.complete().correct.mean(axis=0).argmax())


def accuracy_margin(held_out: Floats, whole: OutcomeTable) -> float:
    """The lead in probability, over the most accurate fixed strategy, that a strategy needs to be preferred where
    accuracy comes first: the smallest with the highest accuracy on held-out families, given held-out probabilities
    [N, S]."""
    preferred, index = most_accurate(whole), np.arange(len(whole))
    best, chosen = -np.inf, MARGINS[-1]
    for margin in MARGINS:
        scores = np.where(whole.applicable, held_out, -np.inf)
        scores[:, preferred] += margin
        accuracy = float(whole.correct[index, scores.argmax(axis=1)].mean())
        if accuracy > best + 1e-12:
            best, chosen = accuracy, margin
    fixed = float(whole.correct[:, preferred].mean())
    return chosen if best >= fixed else 1.0
