"""The scorecard: what a policy was worth on families held out, beside everything simple that it has to beat.

Knows nothing about how the policy came about. Whatever a policy measured is charged to it. Axes: N cases, S strategies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, roc_auc_score

from .fast_inference import Floats
from .features import NAMES, STAGE_0
from .outcome_table import OutcomeTable, RoutedCases

RESAMPLES = 2000
"""Of the bootstrap over families."""
INTERVALS = 300
"""Of the same, for numbers that take longer."""
Outcomes = tuple[Floats, Floats]
"""Whether right and costs, [N] each, or [D, N] of D draws of the folds."""


@dataclass(frozen=True)
class OutOfFoldDecisions:
    """What was decided for each case by something trained on other families; strategies as indices [N]."""

    choice: NDArray[np.int64]
    single: NDArray[np.int64]
    """The single best strategy of the training families."""
    by_rule: NDArray[np.int64]
    """What the best one-feature threshold of the training families does."""
    by_kind: NDArray[np.int64]
    """The single best strategy of the training families among tasks of the kind."""
    other: NDArray[np.int64]
    """The strategy beside in-context that was right most often on the training families: what queries are sent to."""
    uplift: Floats
    """Estimated chance that it is right, minus that of in-context: queries are sent to it in this order."""
    free_in_context_probability: Floats
    """That the in-context answer is right, from stage 0."""
    in_context_probability: Floats
    """The same from stage 1."""
    measured: NDArray[np.bool_]
    """Whether stage 1 was measured."""
    rule_measured: NDArray[np.bool_]
    shuffled: Floats
    """[F, N]: `chance`, had each feature been another held-out case's."""
    by_thumb: NDArray[np.int64]
    """What the rule of thumb for models without a policy does; nothing of it is learned."""
    thumb_measured: NDArray[np.bool_]
    thumb_wasted_cost: Floats
    wasted_cost: Floats
    """What the policy spent on strategies whose answers could not be read."""
    kept: NDArray[np.bool_]
    """Whether it keeps the in-context answer."""
    probabilities: Floats
    """[N, S]: that each strategy is right, from stage 1."""
    expected: Floats
    """[N, S]: what each would cost."""

    @classmethod
    def empty(cls, n: int, strategies: int) -> OutOfFoldDecisions:
        """Arrays for `n` cases, to be filled fold by fold."""

        def choices() -> NDArray[np.int64]:
            return np.zeros(n, dtype=np.int64)

        return cls(
            choices(), choices(), choices(), choices(), choices(), np.zeros(n), np.zeros(n), np.zeros(n),
            np.zeros(n, bool), np.zeros(n, bool), np.zeros((len(NAMES[1]), n)), choices(), np.zeros(n, bool),
            np.zeros(n), np.zeros(n), np.zeros(n, bool), np.zeros((n, strategies)), np.zeros((n, strategies)),
        )  # fmt: skip

    @property
    def served(self) -> RoutedCases:
        """What the policy does."""
        return RoutedCases(self.choice, self.measured, self.wasted_cost, self.kept)

    def take(self, chosen: NDArray[np.int64]) -> OutOfFoldDecisions:
        """What was decided for the cases at these indices."""
        columns = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "shuffled"}
        return OutOfFoldDecisions(**columns, shuffled=self.shuffled[:, chosen])


@dataclass(frozen=True)
class Rule:
    """Beyond a threshold of one feature another strategy, otherwise in-context."""

    feature: int
    threshold: float
    above: bool
    other: int

    @property
    def measures(self) -> bool:
        """Whether it needs stage 1."""
        return self.feature >= len(STAGE_0)

    def choose(self, cases: OutcomeTable) -> NDArray[np.int64]:
        column = cases.X[:, self.feature]
        return np.where((column > self.threshold) == self.above, self.other, 0)


def best_rule(cases: OutcomeTable, cost_weight: float) -> Rule:
    """The one-feature threshold that would have been worth most on these cases."""
    gains = cases.utilities(cost_weight)[:, 1:] - cases.correct[:, :1]  # the in-context answer is paid for either way
    best, found = -np.inf, Rule(0, np.inf, True, 1)
    for feature, column in enumerate(cases.X.T):
        measuring = cost_weight * cases.probe_cost.mean() if feature >= len(STAGE_0) else 0.0
        for threshold in np.unique(np.quantile(column, np.linspace(0, 1, 11))):
            for above in (True, False):
                worth = gains[(column > threshold) == above].sum(axis=0) / len(cases) - measuring
                if worth.max() > best:
                    best, found = worth.max(), Rule(feature, float(threshold), above, 1 + int(worth.argmax()))
    return found


def scorecard(
    cases: OutcomeTable, draws: Sequence[OutOfFoldDecisions], cost_weight: float, seed: int
) -> dict[str, Any]:
    """The numbers as plain JSON: what is decided and gained is the mean of all draws of the folds, what is estimated
    is of the first, and but for `difficulty_free` from all stages for every case. Shares and accuracies are 0 to 1,
    costs multiples of in-context."""
    index, first, nothing = np.arange(len(cases)), draws[0], np.zeros(len(cases))
    thumb = RoutedCases(first.by_thumb, first.thumb_measured, first.thumb_wasted_cost, first.by_thumb == 0)

    def fixed(choices: Sequence[NDArray[np.int64]]) -> Outcomes:
        right = np.stack([cases.correct[index, choice] for choice in choices])
        return right, np.stack([cases.costs[index, choice] for choice in choices])

    def after_measuring(served: Sequence[RoutedCases]) -> Outcomes:
        decided = [cases.score_routing(one) for one in served]
        return np.stack([right for right, _ in decided]), np.stack([costs for _, costs in decided])

    chosen = np.stack([draw.choice for draw in draws])
    shares = np.bincount(chosen.ravel(), minlength=len(cases.strategies)) / chosen.size
    arms = {
        "policy": after_measuring([d.served for d in draws]),
        **{name: (cases.correct[:, s], cases.costs[:, s]) for s, name in enumerate(cases.strategies)},
        "single_best": fixed([d.single for d in draws]),
        "best_of_each_task": fixed([cases.best_of_tasks(cost_weight)]),
        "best_of_each_query": fixed([cases.utilities(cost_weight).argmax(axis=1)]),
        "random_at_equal_share": (cases.correct @ shares, cases.costs @ shares),
        "one_feature": after_measuring(
            [RoutedCases(d.by_rule, d.rule_measured, nothing, d.by_rule == 0) for d in draws]
        ),
        "by_kind": fixed([d.by_kind for d in draws]),
        "rule_of_thumb": after_measuring([thumb]),
    }
    worth = {name: right - cost_weight * cost for name, (right, cost) in arms.items()}
    wrong = 1 - cases.correct[:, 0]
    best = max(cases.strategies, key=lambda name: float(worth[name].mean()))
    drawn = Bootstrap(cases.families, worth, seed)
    return {
        "families": len(set(cases.families)),
        "tasks": len(set(zip(cases.datasets, cases.groups, strict=True))),
        "queries": len(set(zip(cases.datasets, cases.tasks, strict=True))),
        "cases": len(cases),
        "over_long": cases.over_long,
        "digest": cases.digest,
        "price": cost_weight,
        "arms": {
            name: {
                "accuracy": float(right.mean()),
                "cost": float(cost.mean()),
                "utility": float(worth[name].mean()),
                "interval_90": drawn.level(name)["interval_90"],
            }
            for name, (right, cost) in arms.items()
        },
        "gain_over_single_best": drawn.gain("single_best"),
        "gain_over_first": {"strategy": best, **(drawn.gain(best) or {})},
        "gap_closed": drawn.gain("single_best", "best_of_each_task"),
        "gap_closed_queries": drawn.gain("single_best", "best_of_each_query"),
        "difficulty": _classifier(wrong, 1 - first.in_context_probability),
        "difficulty_free": _classifier(wrong, 1 - first.free_in_context_probability),
        "routing": routing(cases, first),
        "intervals_90": intervals(cases, first, cost_weight, seed),
        "heads": {
            name: _classifier(cases.correct[:, s], first.probabilities[:, s]) for s, name in enumerate(cases.strategies)
        },
        "prices": _prices(cases, first),
        "importance": _importance(wrong, first),
        "families_gained": _per_family(cases, arms["policy"][0].mean(axis=0) - cases.correct[:, 0]),
        "kept": _kept(cases, draws),
        "shares": dict(zip(cases.strategies, shares.tolist(), strict=True)),
        "measured_share": float(np.mean([d.measured for d in draws])),
        "harm_share": float(np.mean([cases.correct[index, choice] < cases.correct[:, 0] for choice in chosen])),
    }


def routing(cases: OutcomeTable, held_out: OutOfFoldDecisions) -> dict[str, Any] | None:
    """What is gained when ever more queries are sent from in-context to the other strategy, likeliest to gain first.

    The performance gap recovered, PGR, is the accuracy gained as a share of what sending all would gain (Ong et al.
    2024, "RouteLLM"); `apgr` is its mean over the share of queries sent, 0.5 for a random order, `apgr_cost` over the
    share of the cost, and `cpt_95` the least share with a PGR of 0.95. None where sending all gains nothing.
    """
    index = np.arange(len(cases))
    order = np.argsort(-held_out.uplift, kind="stable")
    gains = (cases.correct[index, held_out.other] - cases.correct[:, 0])[order]
    costs = cases.costs[index, held_out.other][order]
    if gains.sum() <= 0:
        return None
    recovered = np.concatenate([[0.0], gains.cumsum()]) / gains.sum()
    sent = np.arange(len(cases) + 1) / len(cases)
    spent = np.concatenate([[0.0], costs.cumsum()]) / costs.sum()
    shown = np.linspace(0, len(cases), 21).astype(int)
    return {
        "apgr": float(np.trapezoid(recovered, sent)),
        "apgr_cost": float(np.trapezoid(recovered, spent)),
        "cpt_95": float(sent[np.argmax(recovered >= 0.95)]),
        "curve": [[round(float(sent[i]), 3), round(float(recovered[i]), 3)] for i in shown],
    }


def leakage(
    cases: OutcomeTable, by_family: OutOfFoldDecisions, at_random: OutOfFoldDecisions, cost_weight: float
) -> dict[str, Any] | None:
    """The policy with families held out beside the same with cases held out at random: what knowing the family, which
    no new task has, would flatter it by. Of the cases whose family has others: nothing leaks of one that has none. None
    where no family has others."""
    count = Counter(cases.families)
    several = np.flatnonzero([count[family] > 1 for family in cases.families])
    if not len(several):
        return None
    some = cases.take(several)

    def of(held_out: OutOfFoldDecisions) -> dict[str, float | None]:
        right, costs = some.score_routing(held_out.served)
        found = _classifier(1 - some.correct[:, 0], 1 - held_out.in_context_probability)
        return {"utility": float((right - cost_weight * costs).mean()), "auroc": found["auroc"]}

    return {
        "families_held_out": of(by_family.take(several)),
        "cases_held_out": of(at_random.take(several)),
        "cases": len(some),
    }


def spread(cases: OutcomeTable, draws: Sequence[OutOfFoldDecisions], cost_weight: float) -> dict[str, Any]:
    """The main numbers when the folds are drawn again: mean, lowest and highest of the draws."""
    index = np.arange(len(cases))
    utilities = cases.utilities(cost_weight)
    best = utilities[index, cases.best_of_tasks(cost_weight)].mean()
    found: dict[str, list[float]] = {}
    for drawn in draws:
        right, cost = cases.score_routing(drawn.served)
        single = utilities[index, drawn.single].mean()
        possible = best - single
        gained = float((right - cost_weight * cost).mean() - single)
        sent = routing(cases, drawn)
        numbers = {
            "accuracy": float(right.mean()), "cost": float(cost.mean()), "gain_over_single_best": gained,
            "gap_closed": gained / possible if possible > 1e-9 else None, "apgr": sent and sent["apgr"],
            "cpt_95": sent and sent["cpt_95"],
            "auroc": _classifier(1 - cases.correct[:, 0], 1 - drawn.in_context_probability)["auroc"],
            "harm_share": float((right < cases.correct[:, 0]).mean()),
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None:
                found.setdefault(name, []).append(float(value))
    means = {name: {"mean": fmean(v), "range": [min(v), max(v)]} for name, v in found.items()}
    return {"draws": len(draws), **means}


def intervals(cases: OutcomeTable, drawn: OutOfFoldDecisions, cost_weight: float, seed: int) -> dict[str, list[float]]:
    """90% intervals of the main numbers of one draw of the folds, when families are drawn again. A number that cannot
    be told of too many of the draws is left out."""
    names, family = np.unique(np.array(cases.families), return_inverse=True)
    members = [np.flatnonzero(family == n) for n in range(len(names))]
    right, cost = cases.score_routing(drawn.served)
    truth = 1 - cases.correct[:, 0]
    rng, found = np.random.default_rng(seed), dict[str, list[float]]()
    for _ in range(INTERVALS):
        some = np.concatenate([members[n] for n in rng.integers(len(names), size=len(names))])
        sent = routing(cases.take(some), drawn.take(some))
        told = _classifier(truth[some], 1 - drawn.in_context_probability[some])
        numbers = {
            "accuracy": right[some].mean(), "cost": cost[some].mean(), "utility": (right - cost_weight * cost)[some].mean(),
            "harm_share": (right < cases.correct[:, 0])[some].mean(), "auroc": told["auroc"], "brier": told["brier"],
            **({k: sent[k] for k in ("apgr", "apgr_cost", "cpt_95")} if sent else {}),
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None:
                found.setdefault(name, []).append(float(value))
    return {name: _interval(np.array(values)) for name, values in found.items() if len(values) > 0.9 * INTERVALS}


def _prices(cases: OutcomeTable, drawn: OutOfFoldDecisions) -> list[list[float]]:
    """Price, share right and cost as the price of a cost goes from everything to nothing, by the held-out chances after
    measuring all: the policy's curve."""
    found = []
    dearest = drawn.expected.max(axis=1).mean()
    for top in (1.0, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.0):
        choice = (drawn.probabilities - top / dearest * drawn.expected).argmax(axis=1)
        right, cost = cases.score_routing(
            RoutedCases(choice, np.ones(len(cases), bool), np.zeros(len(cases)), choice == 0)
        )
        found.append([top / dearest, float(right.mean()), float(cost.mean())])
    return found


class Bootstrap:
    """Means of what arms are worth with their 90% intervals, when families are drawn again.

    Arms are worth [N], or [D, N] in D draws of the folds. A mean is that of the draws; each time that families are
    drawn again one of the draws is taken, so that the interval has the spread of both.
    """

    def __init__(self, families: Sequence[str], worth: Mapping[str, Floats], seed: int) -> None:
        self._worth = worth
        names, self._family = np.unique(np.array(families), return_inverse=True)
        self._drawn = np.random.default_rng(seed).multinomial(
            len(names), np.full(len(names), 1 / len(names)), RESAMPLES
        )
        self._counts = np.bincount(self._family, minlength=len(names))

    def level(self, arm: str) -> dict[str, Any]:
        """What an arm is worth."""
        value, again = self._means(self._worth[arm])
        return {"value": value, "interval_90": _interval(again)}

    def gain(self, over: str, to: str | None = None) -> dict[str, Any] | None:
        """What the policy is worth more than an arm, or the share of the way from there to another arm that it goes;
        None where there is no way."""
        value, again = self._means(self._worth["policy"] - self._worth[over])
        if to is not None:
            way, ways = self._means(self._worth[to] - self._worth[over])
            if way <= 1e-9:
                return None
            value, again = value / way, again[ways > 1e-9] / ways[ways > 1e-9]
        return {"value": value, "interval_90": _interval(again)}

    def _means(self, values: Floats) -> tuple[float, Floats]:
        """The mean, and those of families drawn again [RESAMPLES]."""
        rows = np.atleast_2d(values)
        sums = np.stack([np.bincount(self._family, weights=row, minlength=len(self._counts)) for row in rows])
        again = (self._drawn * sums[np.arange(RESAMPLES) % len(sums)]).sum(axis=1) / (self._drawn @ self._counts)
        return float(rows.mean()), again


def _interval(values: Floats) -> list[float]:
    return [float(x) for x in np.quantile(values, (0.05, 0.95))] if len(values) else []


def _kept(cases: OutcomeTable, draws: Sequence[OutOfFoldDecisions]) -> dict[str, float | None]:
    """The share of cases whose in-context answer is kept, and of those the share that is wrong."""
    kept = np.mean([draw.kept for draw in draws], axis=0)
    wrong = float(kept @ (1 - cases.correct[:, 0]) / kept.sum()) if kept.any() else None
    return {"share": float(kept.mean()), "wrong_share": wrong}


def _importance(wrong: Floats, held_out: OutOfFoldDecisions) -> dict[str, float]:
    """How much worse the chance of a right in-context answer gets without a feature (Brier score), the most first."""
    plain = brier_score_loss(wrong, 1 - held_out.in_context_probability, labels=[0, 1], pos_label=1)
    found = {
        name: float(brier_score_loss(wrong, 1 - chances, labels=[0, 1], pos_label=1) - plain)
        for name, chances in zip(NAMES[1], held_out.shuffled, strict=True)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _per_family(cases: OutcomeTable, gains: Floats) -> dict[str, list[float]]:
    """Of each family that anything changed in: the share of cases that became right, and of those that became wrong, as
    decided; the largest loss first."""
    of: dict[str, list[float]] = {}
    for family, gain in zip(cases.families, gains.tolist(), strict=True):
        of.setdefault(family, []).append(gain)
    found = {f: [fmean(max(v, 0.0) for v in vs), fmean(max(-v, 0.0) for v in vs)] for f, vs in of.items()}
    changed = {family: both for family, both in found.items() if any(both)}
    return dict(sorted(changed.items(), key=lambda item: item[1][0] - item[1][1]))


def _classifier(truth: Floats, chances: Floats) -> dict[str, Any]:
    bins = np.minimum((chances * 10).astype(int), 9)
    gaps = [abs((truth - chances)[bins == b].sum()) for b in range(10)]
    both = 0 < truth.sum() < len(truth)
    return {
        "auroc": float(roc_auc_score(truth, chances)) if both else None,
        "brier": float(brier_score_loss(truth, chances, labels=[0, 1], pos_label=1)),
        "ece": float(sum(gaps) / len(truth)),
        "reliability": [
            [float(chances[bins == b].mean()), float(truth[bins == b].mean()), int((bins == b).sum())]
            for b in range(10)
            if (bins == b).any()
        ],
    }
