"""What training makes and a bundle holds: the learned judgement, and the one rule by which it chooses.

Training judges itself with the same methods that answer a single query. Axes: N cases, S strategies, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .classifiers import CalibratedClassifier, CostRegressor, batched_probabilities, cost_predictor
from .fast_inference import Floats

Booleans = NDArray[np.bool_]

NEVER = 2.0
"""A chance that nothing has."""
MARGIN = 0.25
"""A feature is outside when it is further from the training range than this share of the range."""
OUTSIDE_SHARE = 0.1
"""A query is unlike the training tasks when more than this share of its free features are outside."""


@dataclass(frozen=True)
class Change:
    """What a strategy does to the in-context answer: the pairwise judgement of the two. It is learned better than how
    likely the strategy is right, most of which is how easy the query is."""

    fixes: CalibratedClassifier
    """The chance that the strategy is right, if in-context is wrong."""
    breaks: CalibratedClassifier
    """The chance that it is wrong, if in-context is right."""


@dataclass(frozen=True)
class TrainedPolicy:
    """Everything that was learned, as plain data and fitted heads."""

    base_hash: str
    """Content hash of the model whose outcomes were learned from."""
    strategies: tuple[str, ...]
    """`in_context` first."""
    difficulty: Mapping[int, CalibratedClassifier]
    """Stage -> the chance that the in-context answer is right."""
    changes: Mapping[int, tuple[Change, ...]]
    """Stage -> what each other strategy changes about it."""
    mean_costs: Mapping[str, tuple[float, ...]]
    """Kind -> mean cost of each strategy as a multiple of in-context; the empty kind is the mean of all."""
    cost_weight: float
    """Accuracy that one in-context cost is worth."""
    skip_probe_threshold: float
    """Chance of a right in-context answer from which stage 1 is not measured; 1 means that it always is."""
    ranking: tuple[str, ...]
    """Strategies by their mean utility in training, best first: what to do with a query unlike the training tasks."""
    feature_min: tuple[float, ...]
    """Of each free feature in training."""
    feature_max: tuple[float, ...]
    deciles: tuple[tuple[float, ...], ...]
    """The nine of each feature of all stages in training."""
    cdf: tuple[tuple[float, ...], ...]
    """Share of the training cases with a value up to each of them: more than tenths, where many have the same."""
    families: tuple[str, ...]
    """That were trained on."""
    datasets: tuple[str, ...]
    seed: int
    keep_threshold: float = 0.0
    """Chance of a right in-context answer without which it is not kept; `NEVER` keeps none."""
    risk: float | None = None
    """Share of wrong answers that was promised among those kept in context; None: nothing was promised."""
    cost_models: tuple[CostRegressor, ...] = ()
    """What each other strategy costs, from the free features; where there are none, the mean of its kind stands."""
    prompt_format: str = ""
    """How the model was asked that was learned from; empty where it is not known."""
    recipes: Mapping[str, str] = field(default_factory=dict)
    """`strategy/kind` -> digest of the recipe whose outcomes were learned from, where it was known."""
    scorecard: Mapping[str, Any] = field(default_factory=dict)
    """How it did on families held out; plain JSON."""

    @property
    def released(self) -> bool:
        """Whether it beats the single best strategy for sure: the lower bounds of its gain over the one that was best
        on the training families of each fold, and over the one that proved best on all, are above 0."""
        gains = [self.scorecard.get(name) or {} for name in ("gain_over_single_best", "gain_over_first")]
        return all(gain.get("interval_90") and gain["interval_90"][0] > 0 for gain in gains)

    def probabilities(self, stage: int, rows: Floats) -> Floats:
        """The chance that each strategy is right [N, S] from the features of a stage [N, F]."""
        found = self._stage_classifiers[stage](rows)
        return compose_probabilities(found[:, 0], found[:, 1::2], found[:, 2::2])

    @cached_property
    def _stage_classifiers(self) -> Mapping[int, Callable[[Floats], Floats]]:
        """What gives for each stage the chances of difficulty, then of what each strategy mends and spoils."""
        changes = {
            stage: [head for c in found for head in (c.fixes, c.breaks)] for stage, found in self.changes.items()
        }
        return {stage: batched_probabilities([head, *changes[stage]]) for stage, head in self.difficulty.items()}

    def expected_costs(self, kinds: Sequence[str], free: Floats) -> Floats:
        """What each strategy would cost from here on [N, S], from the kinds and the free features [N, F]; the
        in-context answer is paid for already."""
        table = np.array([self.mean_costs.get(kind, self.mean_costs[""]) for kind in kinds])
        if self.cost_models:
            table[:, 1:] = self._cost_predictor(free)
        table[:, 0] = 0.0
        return table

    @cached_property
    def _cost_predictor(self) -> Callable[[Floats], Floats]:
        return cost_predictor(self.cost_models)

    def utilities(self, chances: Floats, costs: Floats) -> Floats:
        """Chance of a right answer minus the price of the cost [N, S]."""
        return chances - self.cost_weight * costs

    @property
    def feature_medians(self) -> tuple[float, ...]:
        """Median of each feature of all stages in training."""
        return tuple(nine[4] for nine in self.deciles)

    def preferences(self, chances: Floats, costs: Floats, measured: bool) -> Floats:
        """Utilities [N, S], but in-context answers that are not to be kept come last. `measured` says whether stage 1
        was."""
        found = self.utilities(chances, costs)
        found[:, 0] = np.where(chances[:, 0] < self.effective_keep_threshold(measured), -np.inf, found[:, 0])
        return found

    def effective_keep_threshold(self, measured: bool) -> float:
        """Chance of a right in-context answer without which it is not kept. Of those on which stage 1 was not measured,
        a promise was tested on such only that needed no more."""
        return (
            self.keep_threshold
            if measured or self.risk is None
            else max(self.keep_threshold, self.skip_probe_threshold)
        )

    def fallback(self, among: Collection[str] | None = None) -> str:
        """What was best on average: for a query of which nothing else is known. Where a promise was made about answers
        that are kept, in-context comes last.
        """
        left = [s for s in self.ranking if among is None or s in among]
        return next((s for s in left if s != self.strategies[0] or self.risk is None), left[0])

    def can_skip_probe(self, chances: Floats, costs: Floats) -> Booleans:
        """Whether stage 0 is enough [N]: the in-context answer is best and likely enough to be right."""
        best = self.preferences(chances, costs, measured=False).argmax(axis=1) == 0
        settled: Booleans = best & (chances[:, 0] >= self.skip_probe_threshold)
        return settled

    def is_out_of_distribution(self, free: Floats, kinds: Sequence[str]) -> Booleans:
        """Whether queries are unlike the training tasks [N], from their free features [N, F] and kinds."""
        low, high = np.array(self.feature_min), np.array(self.feature_max)
        slack = MARGIN * (high - low) + 1e-9
        outside = (free < low - slack) | (free > high + slack)
        unknown = np.array([not kind or kind not in self.mean_costs for kind in kinds])
        strange: Booleans = (outside.mean(axis=1) > OUTSIDE_SHARE) | unknown
        return strange


def compose_probabilities(base: Floats, mends: Floats, spoils: Floats) -> Floats:
    """The chance that each strategy is right [N, S], from that of in-context [N] and the chances that the others mend
    and spoil its answer [N, S - 1]."""
    right = base[:, None]
    return np.column_stack([base, (1 - right) * mends + right * (1 - spoils)])
