"""The scorecard: a policy's utility on held-out families, compared with fixed strategies and other simple baselines.

Knows nothing about how the policy was trained. The cost of the probe is charged to the policy. Axes: N cases,
S strategies, F features, D draws of the folds.

SBS is the single best strategy of the training families, VBS the virtual best strategy, chosen in hindsight per query
or per task. The gap closed is (U - U_SBS) / (U_VBS - U_SBS), U being the mean utility.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import lazy
from .fast_inference import Floats
from .outcome_table import OutcomeTable, RoutedCases
from .outcomes import BASE

BOOTSTRAP_RESAMPLES = 2000
"""Resamples of the families, for utilities."""
INTERVAL_RESAMPLES = 300
"""Resamples of the families, for metrics that take longer."""
Arm = tuple[Floats, Floats]
"""Correctness and relative costs of a policy or baseline, [N] each, or [D, N]."""
COST_SHARES = (1.0, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.0)
"""Accuracy that the most expensive strategy has to gain, for the curve over cost weights."""


@dataclass(frozen=True, kw_only=True)
class OutOfFoldDecisions:
    """Decisions and estimates for each case by a policy that was trained on other families, beside those of baselines;
    strategies as indices [N]."""

    policy: RoutedCases
    one_feature: RoutedCases
    """By the best threshold on one feature in the training families."""
    heuristic: RoutedCases
    """By `HeuristicPolicy`, which is not trained."""
    sbs: NDArray[np.int64]
    """The single best strategy of the training families."""
    sbs_per_kind: NDArray[np.int64]
    """The single best strategy of the training families on tasks of the kind."""
    alternative: NDArray[np.int64]
    """The strategy, except in-context, with the highest accuracy on the training families: the routing curve sends
    queries to it."""
    uplift: Floats
    """[N], estimated probability that the alternative is right, minus that of in-context: the order of the routing
    curve."""
    free_in_context_probability: Floats
    """[N], that the in-context answer is right, from stage 0."""
    in_context_probability: Floats
    """[N], the same from all stages."""
    permuted: Floats
    """[F, N]: `in_context_probability` with each feature in turn permuted between held-out cases."""
    probabilities: Floats
    """[N, S]: that each strategy is right, from all stages."""
    expected: Floats
    """[N, S]: expected relative cost."""

    @classmethod
    def empty(cls, table: OutcomeTable) -> OutOfFoldDecisions:
        """Arrays for the cases of a table, to be filled fold by fold."""
        n, strategies = len(table), len(table.strategies)
        first, second, third = (np.zeros(n, dtype=np.int64) for _ in range(3))
        return cls(
            policy=RoutedCases.empty(n), one_feature=RoutedCases.empty(n), heuristic=RoutedCases.empty(n), sbs=first,
            sbs_per_kind=second, alternative=third, uplift=np.zeros(n), free_in_context_probability=np.zeros(n),
            in_context_probability=np.zeros(n), permuted=np.zeros((table.X.shape[1], n)),
            probabilities=np.zeros((n, strategies)), expected=np.zeros((n, strategies)),
        )  # fmt: skip

    def take(self, chosen: NDArray[np.int64]) -> OutOfFoldDecisions:
        """The cases at these indices."""
        return OutOfFoldDecisions(
            policy=self.policy.take(chosen), one_feature=self.one_feature.take(chosen),
            heuristic=self.heuristic.take(chosen), sbs=self.sbs[chosen], sbs_per_kind=self.sbs_per_kind[chosen],
            alternative=self.alternative[chosen], uplift=self.uplift[chosen],
            free_in_context_probability=self.free_in_context_probability[chosen],
            in_context_probability=self.in_context_probability[chosen], permuted=self.permuted[:, chosen],
            probabilities=self.probabilities[chosen], expected=self.expected[chosen],
        )  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Another strategy beyond a threshold on one feature, else in-context."""

    feature: int
    threshold: float
    above: bool
    other: int
    needs_probe: bool = False
    """Whether the feature is one of stage 1."""

    def route(self, table: OutcomeTable) -> RoutedCases:
        """What the rule does with each case."""
        column, routed = table.X[:, self.feature], RoutedCases.empty(len(table))
        choice = np.where((column > self.threshold) == self.above, self.other, 0)
        return routed._replace(choice=choice, measured=np.full(len(table), self.needs_probe), kept=choice == 0)


def best_rule(table: OutcomeTable, cost_weight: float) -> Rule:
    """The one-feature threshold with the highest utility on these cases."""
    free = len(table.feature_names[0])
    gains = table.utilities(cost_weight)[:, 1:] - table.correct[:, :1]  # the in-context answer is paid for either way
    highest, best = -np.inf, Rule(0, np.inf, True, 1)
    for feature, column in enumerate(table.X.T):
        probing = cost_weight * table.probe_cost.mean() if feature >= free else 0.0
        for threshold in np.unique(np.quantile(column, np.linspace(0, 1, 11))):
            for above in (True, False):
                utility = gains[(column > threshold) == above].sum(axis=0) / len(table) - probing
                if utility.max() > highest:
                    highest = utility.max()
                    best = Rule(feature, float(threshold), above, 1 + int(utility.argmax()), feature >= free)
    return best


def scorecard(
    table: OutcomeTable, draws: Sequence[OutOfFoldDecisions], cost_weight: float, seed: int
) -> dict[str, Any]:
    """The evaluation as plain JSON. Accuracies and shares are 0 to 1, costs are relative costs.

    Decisions and utilities are means over all draws of the folds, estimates are those of the first draw. All estimates
    but `difficulty_stage_0` use all stages for every case.
    """
    arms = _arms(table, draws, cost_weight)
    return {**_counts(table, cost_weight), **_utilities(table, arms, cost_weight, seed)} | {
        **_estimates(table, draws[0], cost_weight, seed),
        "changes_per_family": _per_family(table, arms["policy"][0].mean(axis=0) - table.correct[:, 0]),
        "kept": _kept(table, draws),
        "shares": dict(zip(table.strategies, _shares(table, draws).tolist(), strict=True)),
        "probe_share": float(np.mean([draw.policy.measured for draw in draws])),
        "harm_share": _harm_share(table, draws),
        "partly_tried": partly_tried(table, arms["policy"], cost_weight, seed),
    }


def partly_tried(table: OutcomeTable, policy: Arm, cost_weight: float, seed: int) -> dict[str, Any]:
    """Each strategy that was tried on some of the cases only, which the policy does not choose, beside the policy and
    the in-context answer on these cases; the policy's gain in utility has a 90% interval over families."""
    right, cost = (np.atleast_2d(values) for values in policy)
    rows = {}
    for name in table.excluded_strategies:
        own_right, own_cost = table.excluded[name]
        cases = np.flatnonzero(~np.isnan(own_right))
        if not len(cases):
            continue
        some = table.take(cases)
        arms = {
            name: (own_right[cases], own_cost[cases]),
            BASE: (some.alone[:, 0], some.costs[:, 0]),
            "policy": (right[:, cases], cost[:, cases]),
        }
        utilities = {arm: right - cost_weight * cost for arm, (right, cost) in arms.items()}
        rows[name] = {
            "cases": len(some), "families": len(set(some.families)),
            "arms": {
                arm: {
                    "accuracy": float(right.mean()), "cost": float(cost.mean()),
                    "utility": float(utilities[arm].mean()),
                }
                for arm, (right, cost) in arms.items()
            },
            "gain_of_policy": Bootstrap(some.families, utilities, seed).gain(name),
        }  # fmt: skip
    return rows


def _counts(table: OutcomeTable, cost_weight: float) -> dict[str, Any]:
    """What the evaluation is of."""
    return {
        "families": len(set(table.families)),
        "tasks": len(set(zip(table.datasets, table.groups, strict=True))),
        "queries": len(set(zip(table.datasets, table.tasks, strict=True))),
        "cases": len(table),
        "over_long": table.over_long,
        "missing_features": list(table.missing_features),
        "ignored_features": list(table.ignored_features),
        "features_versions": list(table.features_versions),
        "digest": table.digest,
        "cost_weight": cost_weight,
    }


def _arms(table: OutcomeTable, draws: Sequence[OutOfFoldDecisions], cost_weight: float) -> dict[str, Arm]:
    """Correctness and cost of the policy, the fixed strategies and the baselines."""
    index, shares = np.arange(len(table)), _shares(table, draws)

    def fixed(choices: Sequence[NDArray[np.int64]]) -> Arm:
        right = np.stack([table.alone[index, choice] for choice in choices])
        return right, np.stack([table.costs[index, choice] for choice in choices])

    def routed(several: Sequence[RoutedCases]) -> Arm:
        scores = [table.score_routing(one) for one in several]
        return np.stack([right for right, _ in scores]), np.stack([costs for _, costs in scores])

    return {
        "policy": routed([draw.policy for draw in draws]),
        **{name: (table.alone[:, s], table.costs[:, s]) for s, name in enumerate(table.strategies)},
        "sbs": fixed([draw.sbs for draw in draws]),
        "vbs_per_task": fixed([table.best_of_tasks(cost_weight)]),
        "vbs_per_query": fixed([table.utilities_alone(cost_weight).argmax(axis=1)]),
        "random_at_equal_share": (table.correct @ shares, table.costs @ shares),
        "one_feature": routed([draw.one_feature for draw in draws]),
        "sbs_per_kind": fixed([draw.sbs_per_kind for draw in draws]),
        "rule_of_thumb": routed([draws[0].heuristic]),
    }


def _utilities(table: OutcomeTable, arms: Mapping[str, Arm], cost_weight: float, seed: int) -> dict[str, Any]:
    """Each arm's accuracy, cost and utility, and the policy's gains, with 90% intervals."""
    utilities = {name: right - cost_weight * cost for name, (right, cost) in arms.items()}
    best = max(table.strategies, key=lambda name: float(utilities[name].mean()))
    bootstrap = Bootstrap(table.families, utilities, seed)
    return {
        "arms": {
            name: {
                "accuracy": float(right.mean()),
                "cost": float(cost.mean()),
                "utility": float(utilities[name].mean()),
                "interval_90": bootstrap.level(name)["interval_90"],
            }
            for name, (right, cost) in arms.items()
        },
        "gain_over_sbs": bootstrap.gain("sbs"),
        "gain_over_best_fixed": {"strategy": best, **(bootstrap.gain(best) or {})},
        "gain_over_rule_of_thumb": bootstrap.gain("rule_of_thumb"),
        "gap_closed_per_task": bootstrap.gain("sbs", "vbs_per_task"),
        "gap_closed_per_query": bootstrap.gain("sbs", "vbs_per_query"),
    }


def _estimates(table: OutcomeTable, first: OutOfFoldDecisions, cost_weight: float, seed: int) -> dict[str, Any]:
    """How good the estimated probabilities of one draw are."""
    wrong = 1 - table.correct[:, 0]
    return {
        "difficulty": _classification(wrong, 1 - first.in_context_probability),
        "difficulty_stage_0": _classification(wrong, 1 - first.free_in_context_probability),
        "routing": routing(table, first),
        "intervals_90": intervals(table, first, cost_weight, seed),
        "classifiers": {
            name: _classification(table.correct[:, s], first.probabilities[:, s])
            for s, name in enumerate(table.strategies)
        },
        "cost_weight_curve": _cost_weight_curve(table, first),
        "permutation_importance": _importance(table, wrong, first),
    }


def _shares(table: OutcomeTable, draws: Sequence[OutOfFoldDecisions]) -> Floats:
    """Share of the cases on which the policy uses each strategy [S], over all draws."""
    chosen = np.stack([draw.policy.choice for draw in draws])
    shares: Floats = np.bincount(chosen.ravel(), minlength=len(table.strategies)) / chosen.size
    return shares


def _harm_share(table: OutcomeTable, draws: Sequence[OutOfFoldDecisions]) -> float:
    """Share of the cases that are right in context and wrong as decided."""
    index = np.arange(len(table))
    return float(np.mean([table.correct[index, draw.policy.choice] < table.correct[:, 0] for draw in draws]))


def routing(table: OutcomeTable, held_out: OutOfFoldDecisions) -> dict[str, Any] | None:
    """The routing curve: accuracy gained as a growing share of the queries gets the alternative strategy, by decreasing
    estimated uplift. None if the alternative gains nothing on all queries.

    The performance gap recovered (PGR, Ong et al. 2024, "RouteLLM") is the gain as a share of the gain on all queries.
    `apgr` is its mean over the share of queries, 0.5 for a random order; `apgr_cost` its mean over the share of the
    cost; `cpt_95` the smallest share of queries with a PGR of 0.95.
    """
    index = np.arange(len(table))
    order = np.argsort(-held_out.uplift, kind="stable")
    gains = (table.correct[index, held_out.alternative] - table.correct[:, 0])[order]
    costs = table.costs[index, held_out.alternative][order]
    if gains.sum() <= 0:
        return None
    recovered = np.concatenate([[0.0], gains.cumsum()]) / gains.sum()
    sent = np.arange(len(table) + 1) / len(table)
    spent = np.concatenate([[0.0], costs.cumsum()]) / costs.sum()
    shown = np.linspace(0, len(table), 21).astype(int)
    return {
        "apgr": float(np.trapezoid(recovered, sent)),
        "apgr_cost": float(np.trapezoid(recovered, spent)),
        "cpt_95": float(sent[np.argmax(recovered >= 0.95)]),
        "curve": [[round(float(sent[i]), 3), round(float(recovered[i]), 3)] for i in shown],
    }


def leakage(
    table: OutcomeTable, by_family: OutOfFoldDecisions, at_random: OutOfFoldDecisions, cost_weight: float
) -> dict[str, Any] | None:
    """The policy cross-validated by family, compared with cross-validation by case, which leaks the family.

    Only cases whose family has other cases count, since the others leak nothing. None if there are none.
    """
    count = Counter(table.families)
    several = np.flatnonzero([count[family] > 1 for family in table.families])
    if not len(several):
        return None
    some = table.take(several)

    def score(held_out: OutOfFoldDecisions) -> dict[str, float | None]:
        right, costs = some.score_routing(held_out.policy)
        difficulty = _classification(1 - some.correct[:, 0], 1 - held_out.in_context_probability)
        return {"utility": float((right - cost_weight * costs).mean()), "auroc": difficulty["auroc"]}

    return {
        "families_held_out": score(by_family.take(several)),
        "cases_held_out": score(at_random.take(several)),
        "cases": len(some),
    }


def spread(table: OutcomeTable, draws: Sequence[OutOfFoldDecisions], cost_weight: float) -> dict[str, Any]:
    """Mean, minimum and maximum of the main metrics over the draws of the folds."""
    index = np.arange(len(table))
    utilities = table.utilities_alone(cost_weight)
    best = utilities[index, table.best_of_tasks(cost_weight)].mean()
    values: dict[str, list[float]] = {}
    for draw in draws:
        right, cost = table.score_routing(draw.policy)
        sbs = utilities[index, draw.sbs].mean()
        gap = best - sbs
        gain = float((right - cost_weight * cost).mean() - sbs)
        curve = routing(table, draw)
        numbers = {
            "accuracy": float(right.mean()), "cost": float(cost.mean()), "gain_over_sbs": gain,
            "gap_closed_per_task": gain / gap if gap > 1e-9 else None, "apgr": curve and curve["apgr"],
            "cpt_95": curve and curve["cpt_95"],
            "auroc": _classification(1 - table.correct[:, 0], 1 - draw.in_context_probability)["auroc"],
            "harm_share": float((right < table.correct[:, 0]).mean()),
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None:
                values.setdefault(name, []).append(float(value))
    means = {name: {"mean": fmean(v), "range": [min(v), max(v)]} for name, v in values.items()}
    return {"draws": len(draws), **means}


def intervals(table: OutcomeTable, draw: OutOfFoldDecisions, cost_weight: float, seed: int) -> dict[str, list[float]]:
    """90% bootstrap intervals over families of the main metrics, for one draw of the folds. A metric that is undefined
    in more than a tenth of the resamples is left out."""
    names, family = np.unique(np.array(table.families), return_inverse=True)
    members = [np.flatnonzero(family == n) for n in range(len(names))]
    right, cost = table.score_routing(draw.policy)
    truth = 1 - table.correct[:, 0]
    rng, samples = np.random.default_rng(seed), dict[str, list[float]]()
    for _ in range(INTERVAL_RESAMPLES):
        some = np.concatenate([members[n] for n in rng.integers(len(names), size=len(names))])
        curve = routing(table.take(some), draw.take(some))
        estimates = _classification(truth[some], 1 - draw.in_context_probability[some])
        numbers = {
            "accuracy": right[some].mean(), "cost": cost[some].mean(),
            "utility": (right - cost_weight * cost)[some].mean(),
            "harm_share": (right < table.correct[:, 0])[some].mean(), "auroc": estimates["auroc"],
            "brier": estimates["brier"], **({k: curve[k] for k in ("apgr", "apgr_cost", "cpt_95")} if curve else {}),
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None:
                samples.setdefault(name, []).append(float(value))
    enough = {name: values for name, values in samples.items() if len(values) > 0.9 * INTERVAL_RESAMPLES}
    return {name: _interval(np.array(values)) for name, values in enough.items()}


def _cost_weight_curve(table: OutcomeTable, draw: OutOfFoldDecisions) -> list[list[float]]:
    """Cost weight, accuracy and relative cost, for decreasing cost weights: the policy's accuracy-cost curve, from the
    out-of-fold estimates of all stages."""
    curve = []
    highest = draw.expected.max(axis=1).mean()
    for share in COST_SHARES:
        choice = (draw.probabilities - share / highest * draw.expected).argmax(axis=1)
        measured = np.ones(len(table), bool)
        right, cost = table.score_routing(RoutedCases(choice, measured, np.zeros(len(table)), choice == 0))
        curve.append([share / highest, float(right.mean()), float(cost.mean())])
    return curve


class Bootstrap:
    """Mean utilities of arms with 90% bootstrap intervals over families.

    Utilities are [N], or [D, N] for D draws of the folds. A mean is over all draws; each resample of the families uses
    one of the draws, so that the interval covers both sources of variation.
    """

    def __init__(
        self, families: Sequence[str], utilities: Mapping[str, Floats], seed: int, weights: Floats | None = None
    ) -> None:  # fmt: skip
        """`weights` [N] are those of the cases in every mean; without them all count alike."""
        self._utilities = utilities
        self._weights = np.ones(len(families)) if weights is None else weights
        names, self._family = np.unique(np.array(families), return_inverse=True)
        self._resamples = np.random.default_rng(seed).multinomial(
            len(names), np.full(len(names), 1 / len(names)), BOOTSTRAP_RESAMPLES
        )
        self._counts = np.bincount(self._family, weights=self._weights, minlength=len(names))

    def level(self, arm: str) -> dict[str, Any]:
        """The mean utility of an arm."""
        value, samples = self._means(self._utilities[arm])
        return {"value": value, "interval_90": _interval(samples)}

    def gain(self, over: str, to: str | None = None) -> dict[str, Any] | None:
        """The policy's utility minus that of the arm `over`; with `to`, as a share of the gap from `over` to `to`. None
        if there is no gap."""
        value, samples = self._means(self._utilities["policy"] - self._utilities[over])
        if to is not None:
            gap, gaps = self._means(self._utilities[to] - self._utilities[over])
            if gap <= 1e-9:
                return None
            value, samples = value / gap, samples[gaps > 1e-9] / gaps[gaps > 1e-9]
        return {"value": value, "interval_90": _interval(samples)}

    def _means(self, values: Floats) -> tuple[float, Floats]:
        """The mean, and the means of the resamples [BOOTSTRAP_RESAMPLES]."""
        rows = np.atleast_2d(values) * self._weights
        sums = np.stack([np.bincount(self._family, weights=row, minlength=len(self._counts)) for row in rows])
        draw = np.arange(BOOTSTRAP_RESAMPLES) % len(sums)
        samples = (self._resamples * sums[draw]).sum(axis=1) / (self._resamples @ self._counts)
        return float(rows.mean() / self._weights.mean()), samples


def _interval(values: Floats) -> list[float]:
    return [float(x) for x in np.quantile(values, (0.05, 0.95))] if len(values) else []


def _kept(table: OutcomeTable, draws: Sequence[OutOfFoldDecisions]) -> dict[str, float | None]:
    """The share of cases whose in-context answer is kept, and the share of wrong answers among them."""
    kept = np.mean([draw.policy.kept for draw in draws], axis=0)
    wrong = float(kept @ (1 - table.correct[:, 0]) / kept.sum()) if kept.any() else None
    return {"share": float(kept.mean()), "wrong_share": wrong}


def _importance(table: OutcomeTable, wrong: Floats, held_out: OutOfFoldDecisions) -> dict[str, float]:
    """Permutation importance of each feature for whether the in-context answer is right: the increase of the Brier
    score, largest first."""
    plain = lazy.metrics.brier_score_loss(wrong, 1 - held_out.in_context_probability, labels=[0, 1], pos_label=1)
    increases = {
        name: float(lazy.metrics.brier_score_loss(wrong, 1 - probabilities, labels=[0, 1], pos_label=1) - plain)
        for name, probabilities in zip(table.feature_names[1], held_out.permuted, strict=True)
    }
    return dict(sorted(increases.items(), key=lambda item: -item[1]))


def _per_family(table: OutcomeTable, gains: Floats) -> dict[str, list[float]]:
    """For each family with a change: the shares of its cases that became right and that became wrong by the policy's
    decisions; the largest loss first."""
    by_family: dict[str, list[float]] = {}
    for family, gain in zip(table.families, gains.tolist(), strict=True):
        by_family.setdefault(family, []).append(gain)
    shares = {f: [fmean(max(v, 0.0) for v in vs), fmean(max(-v, 0.0) for v in vs)] for f, vs in by_family.items()}
    changed = {family: both for family, both in shares.items() if any(both)}
    return dict(sorted(changed.items(), key=lambda item: item[1][0] - item[1][1]))


def _classification(truth: Floats, probabilities: Floats) -> dict[str, Any]:
    """AUROC (None if all labels are equal), Brier score, expected calibration error, and the reliability diagram as
    [mean probability, share of ones, count] of up to ten bins."""
    bins = np.minimum((probabilities * 10).astype(int), 9)
    gaps = [abs((truth - probabilities)[bins == b].sum()) for b in range(10)]
    both = 0 < truth.sum() < len(truth)
    return {
        "auroc": float(lazy.metrics.roc_auc_score(truth, probabilities)) if both else None,
        "brier": float(lazy.metrics.brier_score_loss(truth, probabilities, labels=[0, 1], pos_label=1)),
        "ece": float(sum(gaps) / len(truth)),
        "reliability": [
            [float(probabilities[bins == b].mean()), float(truth[bins == b].mean()), int((bins == b).sum())]
            for b in range(10)
            if (bins == b).any()
        ],
    }
