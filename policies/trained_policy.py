"""Trained policies: what training fits and a bundle stores, and the one rule by which a strategy is chosen.

Knows nothing about files or about how the parts are fitted. Training evaluates itself with the methods that serve a
single query. Axes: N cases, S strategies, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .classifiers import CalibratedClassifier, CostRegressor, batched_probabilities, cost_predictor
from .fast_inference import Floats
from .features import NAMES

Booleans = NDArray[np.bool_]
MarginsFor = Literal["all", "dearer", "cheaper"]
"""Values of `TrainedPolicy.margins_for`."""

NEVER = 2.0
"""A threshold above every probability."""
NEVER_SURE = (NEVER, NEVER)
"""No in-context answer is sure, with the probe or without it."""
MARGIN = 0.25
"""A feature is out of range if it is further from the training range than this share of the range."""
MAX_DEVIATIONS = 4.0
"""Standard deviations that one feature counts at most in the distance from the training set."""
LAST_RESORT = 1e9
"""Utility that an in-context answer outside the risk guarantee lacks, so that every other strategy precedes it."""
NO_MARGINS = (0.0, 0.0)
NOT_WORSE = 0.01
"""Utility, as a share of right answers, by which a policy that costs less may be below fixed strategies at the lower
bounds of its gains: a margin of non-inferiority."""
Release = Literal["better", "cheaper"]
"""The strategy with the highest utility is chosen, however small its lead."""
OUTSIDE_SHARE = 0.1
"""A query is out of distribution if more than this share of its free features is out of range."""


@dataclass(frozen=True)
class Change:
    """How a strategy changes the correctness of the in-context answer, as two classifiers.

    The pairwise comparison is easier to learn than whether the strategy is right, which mostly depends on how easy the
    query is.
    """

    fixes: CalibratedClassifier
    """Probability that the strategy is right, given that the in-context answer is wrong."""
    breaks: CalibratedClassifier
    """Probability that the strategy is wrong, given that the in-context answer is right."""


@dataclass(frozen=True)
class Familiarity:
    """How far the free features of a query are from those of training: the squared Mahalanobis distance."""

    names: tuple[str, ...]
    """The free features that it reads."""
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    """Standard deviations."""
    precision: tuple[tuple[float, ...], ...]
    """[F, F], inverse of the correlation matrix, with a ridge."""
    threshold: float
    """Distance above which a query is unfamiliar."""

    def scores(self, rows: Floats) -> Floats:
        """The distance of each query [N, F], each standardised feature limited to `MAX_DEVIATIONS`."""
        deviations = (rows - self._mean) / self._scale
        Z = np.clip(deviations, -MAX_DEVIATIONS, MAX_DEVIATIONS)
        distances: Floats = np.einsum("ij,jk,ik->i", Z, self._precision, Z)
        return distances

    @cached_property
    def _mean(self) -> Floats:
        return np.array(self.mean)

    @cached_property
    def _scale(self) -> Floats:
        return np.array(self.scale)

    @cached_property
    def _precision(self) -> Floats:
        return np.array(self.precision)


@dataclass(frozen=True)
class Evidence:
    """What a task's own demonstrations say: a linear model that holds on families unlike those of training."""

    names: tuple[str, ...]
    """Features of all stages that it reads."""
    weights: tuple[float, ...]
    """Of the features, in log-odds."""
    intercept: float
    fixes: tuple[float, ...]
    """Share of wrong in-context answers in training that each other strategy made right [S - 1]."""
    breaks: tuple[float, ...]
    """Share of right in-context answers in training that each other strategy made wrong [S - 1]."""
    sure: float = 1.0
    """Probability from which an in-context answer was as accurate as the best fixed strategy, on kinds held out."""

    def probabilities(self, rows: Floats) -> Floats:
        """Probability of a right in-context answer, from rows of `names` [N, F] -> [N]."""
        odds: Floats = np.clip(rows @ np.array(self.weights) + self.intercept, -30, 30)
        return np.asarray(1 / (1 + np.exp(-odds)), dtype=np.float64)


class ProbePlan(NamedTuple):
    """When the probe is worth its cost, where it has this cost."""

    cost: float
    """Mean relative cost of the probe, in percent of the most expensive strategy's."""
    margin: float | None
    """As `TrainedPolicy.probe_margin`."""
    unfamiliar: bool
    """As `TrainedPolicy.probes_unfamiliar`."""


@dataclass(frozen=True)
class TrainedPolicy:
    """Everything that training fits: plain data and fitted classifiers."""

    base_hash: str
    """Content hash of the model whose outcomes the policy was trained on."""
    strategies: tuple[str, ...]
    """`in_context` first."""
    difficulty: Mapping[int, CalibratedClassifier]
    """Stage -> classifier of whether the in-context answer is right."""
    changes: Mapping[int, tuple[Change, ...]]
    """Stage -> how each other strategy changes that."""
    mean_costs: Mapping[str, tuple[float, ...]]
    """Kind -> mean relative cost of each strategy; the empty kind holds the means over all kinds."""
    cost_weight: float
    """Accuracy per one in-context cost."""
    skip_probe_threshold: float
    """Probability of a right in-context answer from which the probe (stage 1) is skipped; 1 never skips it."""
    ranking: tuple[str, ...]
    """Strategies by mean utility in training, best first; the fallback for queries out of distribution."""
    feature_min: tuple[float, ...]
    """Minimum of each free feature in training."""
    feature_max: tuple[float, ...]
    """Maximum of each free feature in training."""
    deciles: tuple[tuple[float, ...], ...]
    """The nine deciles of each feature of all stages in training."""
    cdf: tuple[tuple[float, ...], ...]
    """Share of the training cases at or below each decile: not multiples of 0.1 if values are tied."""
    families: tuple[str, ...]
    """Families that the policy was trained on."""
    datasets: tuple[str, ...]
    seed: int
    keep_threshold: float = 0.0
    """Probability of a right in-context answer below which it is not kept; `NEVER` keeps none."""
    risk: float | None = None
    """Guaranteed upper bound on the share of wrong answers among kept in-context answers; None without a guarantee."""
    cost_models: tuple[CostRegressor, ...] = ()
    """Relative cost of each other strategy from the free features; empty if the means of the kind are used."""
    prompt_format: str = ""
    """Prompt format of the outcomes; empty if unknown."""
    starting_adapter: str = ""
    """Digest of the adapter that training started from in the outcomes; empty if it started from zero."""
    recipes: Mapping[str, str] = field(default_factory=dict)
    """`strategy/kind` -> digest of the recipe of the outcomes, where known."""
    familiarity: Familiarity | None = None
    """Recognises queries unlike the training set; None: only their ranges and kinds do."""
    evidence: Evidence | None = None
    """Decides for those where `by_evidence`; None: they get the fallback."""
    probes_unfamiliar: bool = True
    """Whether the probe, which measures the evidence, pays for those."""
    accurate: str = ""
    """The fixed strategy with the highest accuracy in training; empty if unknown."""
    accuracy_margin: float = 0.0
    """Lead in probability over `accurate` that another strategy needs where the cost weight is 0."""
    utility_margins: tuple[float, float] = NO_MARGINS
    """Lead in utility over the SBS, the first of `ranking`, that another strategy needs, without the probe and with it:
    smaller ones are not certain enough."""
    margins_for: MarginsFor = "all"
    """Which strategies need that lead: all others; at a higher cost weight than that of training those that cost more
    than the SBS, at a lower one those that cost less."""
    sure_thresholds: tuple[float, float] = NEVER_SURE
    """Probability of a right in-context answer, without the probe and with it, from which `in_context` needs no such
    lead."""
    probe_margin: float | None = None
    """Lead in utility, estimated from the free features (`leads`), from which a strategy is chosen without the probe;
    None where only `skip_probe_threshold` skips it."""
    probe_cost: float = 0.0
    """Mean relative cost of the probe in training."""
    probe_plans: tuple[ProbePlan, ...] = ()
    """For a policy for any model: when the probe pays at several costs of it (`with_probe_cost`)."""
    probe_answers: float = 0.0
    """For a policy for any model: mean cost of the probe in training, in multiples of the in-context answer's."""
    models: tuple[str, ...] = ()
    """Content hashes of the models of the outcomes, for a policy for any model; empty for a policy of one model. Its
    costs are percentages of the mean cost of the most expensive strategy."""
    scorecard: Mapping[str, Any] = field(default_factory=dict)
    """Evaluation on held-out families; plain JSON."""
    feature_names: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: dict(NAMES))
    """Stage -> names of the features that the policy reads, in the order of the columns; those of stage 0 first."""

    @property
    def released(self) -> bool:
        """Whether the policy may be a default: it is significantly better than fixed strategies, or as good and cheaper
        (`release`)."""
        return self.release is not None

    @property
    def release(self) -> Release | None:
        """Why the policy is released; None if it is not.

        `better`: the 90% intervals of its gains in utility over the SBS, and over the fixed strategy that is best on
        all families, are above 0. `cheaper`: they are above `-NOT_WORSE`, and it costs less than both. For a policy for
        any model, `better` is that its gain over the rule of thumb is above 0, on models and families that it was not
        trained on.
        """
        card = self.scorecard
        names = ("gain_over_rule_of_thumb",) if self.models else ("gain_over_sbs", "gain_over_best_fixed")
        intervals = [(card.get(name) or {}).get("interval_90") for name in names]
        lowest = min((interval[0] if interval else -math.inf) for interval in intervals)
        if lowest > 0:
            return "better"
        return "cheaper" if not self.models and lowest > -NOT_WORSE and self._is_cheaper else None

    @property
    def _is_cheaper(self) -> bool:
        """Whether the policy costs less on held-out families than the fixed strategies that it is compared with."""
        arms = self.scorecard.get("arms") or {}
        others = [arms.get(name) for name in ("sbs", self.scorecard["gain_over_best_fixed"]["strategy"])]
        return all(other is not None and arms["policy"]["cost"] < other["cost"] for other in others)

    def probabilities(self, stage: int, rows: Floats, shift: float | Floats = 0.0) -> Floats:
        """Probability that each strategy is right [N, S] from the features of a stage [N, F]. `shift`, a number or one
        for each row, is added to the log-odds of a right in-context answer."""
        estimates = self._stage_classifiers[stage](rows)
        if np.any(shift):
            estimates = np.column_stack([shifted(estimates[:, 0], shift), estimates[:, 1:]])
        return composed(estimates)

    def __getstate__(self) -> dict[str, Any]:
        """Without the functions that are made of the estimators at the first decision."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def _stage_classifiers(self) -> Mapping[int, Callable[[Floats], Floats]]:
        """Stage -> function from features [N, F] to the estimates of `composed`."""
        return {stage: batched_stage(first, self.changes[stage]) for stage, first in self.difficulty.items()}

    def expected_costs(self, kinds: Sequence[str], free: Floats) -> Floats:
        """Expected relative cost of each strategy from here on [N, S], from kinds and free features [N, F]. The
        in-context answer costs 0: it has been paid for."""
        table = np.array([self.mean_costs.get(kind, self.mean_costs[""]) for kind in kinds])
        if self.cost_models:
            table[:, 1:] = self._cost_predictor(free)
        table[:, 0] = 0.0
        return table

    @cached_property
    def _cost_predictor(self) -> Callable[[Floats], Floats]:
        return cost_predictor(self.cost_models)

    def utilities(self, probabilities: Floats, costs: Floats) -> Floats:
        """Probability of a right answer minus the weighted cost [N, S]."""
        return probabilities - self.cost_weight * costs

    def with_margin(self, probabilities: Floats, costs: Floats, measured: bool) -> Floats:
        """Utilities [N, S] with the margin of strategies that need no lead over the SBS (`margins_for`): of the SBS,
        and of an in-context answer that is sure and better. `measured` says whether the probe was run."""
        utilities, sbs = self.utilities(probabilities, costs), self.strategies.index(self.ranking[0])
        is_sure = (probabilities[:, 0] >= self.sure_thresholds[measured]) & (utilities[:, 0] > utilities[:, sbs])
        margins = (~self._needs_lead(costs, sbs)).astype(np.float64)
        # Where cheaper strategies need no lead over the SBS, those that cost more than a sure answer need one over it.
        margins[is_sure, 0] = 2.0 if self.margins_for == "dearer" else 1.0
        return utilities + self.utility_margins[measured] * margins

    def _needs_lead(self, costs: Floats, sbs: int) -> Booleans:
        """Which strategies need a lead over the SBS [N, S]."""
        if self.margins_for == "all":
            return np.broadcast_to(np.arange(costs.shape[1]) != sbs, costs.shape).copy()
        return costs > costs[:, [sbs]] if self.margins_for == "dearer" else costs < costs[:, [sbs]]

    @property
    def feature_medians(self) -> tuple[float, ...]:
        """Median of each feature of all stages in training."""
        return tuple(nine[4] for nine in self.deciles)

    def preferences(self, probabilities: Floats, costs: Floats, measured: bool) -> Floats:
        """Utilities [N, S] with the margin of the SBS, minus infinity for in-context answers below the keep threshold.
        `measured` says whether the probe was run."""
        utilities = self.with_margin(probabilities, costs, measured)
        if self.cost_weight == 0 and self.accurate in self.strategies:
            utilities[:, self.strategies.index(self.accurate)] += self.accuracy_margin
        rejected = probabilities[:, 0] < self.effective_keep_threshold(measured)
        utilities[:, 0] = np.where(rejected, -np.inf, utilities[:, 0])
        return utilities

    def effective_keep_threshold(self, measured: bool) -> float:
        """Probability below which an in-context answer is not kept. Without the probe, the risk guarantee was tested
        only on queries above the skip-probe threshold, so both thresholds apply."""
        return (
            self.keep_threshold
            if measured or self.risk is None
            else max(self.keep_threshold, self.skip_probe_threshold)
        )

    def fallback(self, among: Collection[str] | None = None) -> str:
        """The best strategy on average in training, for queries out of distribution. With a risk guarantee `in_context`
        comes last."""
        remaining = [s for s in self.ranking if among is None or s in among]
        return next((s for s in remaining if s != self.strategies[0] or self.risk is None), remaining[0])

    def can_skip_probe(self, probabilities: Floats, costs: Floats) -> Booleans:
        """Whether stage 0 suffices [N]: the in-context answer is preferred and above the skip-probe threshold, or the
        preferred strategy leads by the probe margin."""
        best = self.preferences(probabilities, costs, measured=False).argmax(axis=1)
        skipped: Booleans = (best == 0) & (probabilities[:, 0] >= self.skip_probe_threshold)
        if self.probe_margin is not None:
            skipped |= self.leads(probabilities, costs) >= self.probe_margin
        return skipped

    def leads(self, probabilities: Floats, costs: Floats) -> Floats:
        """By how much the utility of the strategy that is preferred without the probe exceeds that of the best one on
        the other side [N]; the sides are strategies that cost more than the probe, and the others. Which of a side is
        chosen matters less than a probe costs. Negative where the risk guarantee rules the best strategy out."""
        preferences = self.preferences(probabilities, costs, measured=False)
        utilities = self.with_margin(probabilities, costs, measured=False)
        best = preferences.argmax(axis=1)
        index, is_dear = np.arange(len(best)), costs > self.probe_cost
        is_rival = (is_dear != is_dear[index, best][:, None]) | (preferences == -np.inf)
        others = np.where(is_rival, utilities, -np.inf)
        leads: Floats = utilities[index, best] - others.max(axis=1)
        return leads

    def with_probe_cost(self, percent: float) -> TrainedPolicy:
        """The policy for a model on which the probe costs this share of the most expensive strategy, in percent: the
        plan of the nearest cost, by ratio. The policy itself where it has no plans."""
        if not self.probe_plans:
            return self
        plan = min(self.probe_plans, key=lambda one: abs(math.log(one.cost / max(percent, 1e-9))))
        return replace(self, probe_cost=percent, probe_margin=plan.margin, probes_unfamiliar=plan.unfamiliar)

    def with_costs_of(self, dearest: float) -> TrainedPolicy:
        """The policy for any model with the costs of one model: `dearest` is the relative cost of its most expensive
        strategy by its recipe (`nominal_cost`), of which the costs here are percents."""
        scale = dearest / 100
        costs = {kind: tuple(scale * cost for cost in means) for kind, means in self.mean_costs.items()}
        priced = self.with_probe_cost(self.probe_answers / scale)
        return replace(
            priced, mean_costs=costs, cost_models=(), cost_weight=self.cost_weight / scale,
            probe_cost=scale * priced.probe_cost,
        )  # fmt: skip

    def dearest_of(self, kind: str, costs: Mapping[str, float]) -> float | None:
        """The argument of `with_costs_of` by which a decision on a task of a kind expected these costs, by strategy;
        None where it expected none. It is a whole number, as nominal costs are, so that rounding removes the error."""
        percents = dict(zip(self.strategies, self.mean_costs.get(kind, self.mean_costs[""]), strict=True))
        known = [name for name in self.strategies[1:] if costs.get(name) and percents[name] > 0]
        if not known:
            return None
        most = max(known, key=percents.__getitem__)
        return float(round(100 * costs[most] / percents[most])) or None

    @property
    def by_evidence(self) -> bool:
        """Whether evidence of the task is measured and decides for queries out of distribution; otherwise they get the
        fallback."""
        return self.evidence is not None and self.probes_unfamiliar

    def is_out_of_distribution(self, free: Floats, kinds: Sequence[str]) -> Booleans:
        """Whether queries [N] are unlike the training tasks, from their free features [N, F] and kinds."""
        low, high = np.array(self.feature_min), np.array(self.feature_max)
        slack = MARGIN * (high - low) + 1e-9
        strange = np.zeros(len(free), dtype=bool)
        if self.familiarity is not None:
            strange = self.familiarity.scores(free[:, self._familiar_columns]) > self.familiarity.threshold
        outside = (free < low - slack) | (free > high + slack)
        unknown = np.array([not kind or kind not in self.mean_costs for kind in kinds])
        result: Booleans = (outside.mean(axis=1) > OUTSIDE_SHARE) | unknown | strange
        return result

    @cached_property
    def _familiar_columns(self) -> list[int]:
        return [self.feature_names[0].index(name) for name in self.familiarity.names] if self.familiarity else []

    @cached_property
    def _evidence_columns(self) -> list[int]:
        return [self.feature_names[1].index(name) for name in self.evidence.names] if self.evidence else []

    def evidence_probabilities(self, rows: Floats, shift: float | Floats = 0.0) -> Floats:
        """Probability that each strategy is right [N, S] by the evidence of the tasks alone, from the features of all
        stages [N, F]. `shift` is as in `probabilities`. Raises `ValueError` for a policy without evidence."""
        if self.evidence is None:
            raise ValueError("this policy has no estimates from evidence")
        right = shifted(self.evidence.probabilities(rows[:, self._evidence_columns]), shift)
        fixes, breaks = (np.tile(shares, (len(rows), 1)) for shares in (self.evidence.fixes, self.evidence.breaks))
        return compose_probabilities(right, fixes, breaks)

    def evidence_preferences(self, probabilities: Floats, costs: Floats) -> Floats:
        """What the choice for unfamiliar queries maximises [N, S]: utilities by the evidence. Where accuracy comes
        first (cost weight 0), an in-context answer has to be sure, and `accurate` takes its place. With a risk
        guarantee, which does not cover these queries, in-context answers are the last resort."""
        if self.evidence is None:
            raise ValueError("this policy has no estimates from evidence")
        preferences = self.utilities(probabilities, costs)
        if self.cost_weight == 0 and self.accurate in self.strategies:
            preferences[:, self.strategies.index(self.accurate)] += 1.0
            preferences[:, 0] = np.where(probabilities[:, 0] >= self.evidence.sure, 3.0, preferences[:, 0])
        if self.risk is not None:
            preferences[:, 0] = -LAST_RESORT
        return preferences


def shifted(probabilities: Floats, shift: float | Floats) -> Floats:
    """Probabilities with a number, or one for each, added to their log-odds."""
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    result: Floats = 1 / (1 + (1 - clipped) / clipped * np.exp(-shift))
    return result


def batched_stage(difficulty: CalibratedClassifier, changes: Sequence[Change]) -> Callable[[Floats], Floats]:
    """Function from features [N, F] to the estimates of `composed`."""
    return batched_probabilities([difficulty, *(one for c in changes for one in (c.fixes, c.breaks))])


def composed(estimates: Floats) -> Floats:
    """Probability that each strategy is right [N, S], from estimates [N, 1 + 2 (S - 1)]: in-context right, then fixes
    and breaks of each other strategy."""
    return compose_probabilities(estimates[:, 0], estimates[:, 1::2], estimates[:, 2::2])


def compose_probabilities(base: Floats, fixes: Floats, breaks: Floats) -> Floats:
    """Probability that each strategy is right [N, S], from that of in-context [N] and the conditional probabilities
    that each other strategy fixes or breaks its answer [N, S - 1]."""
    right = base[:, None]
    return np.column_stack([base, (1 - right) * fixes + right * (1 - breaks)])
