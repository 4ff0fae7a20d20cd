"""What training makes and a bundle holds: the learned judgement, and the one rule by which it chooses.

Training judges itself with the same methods that answer a single query. Axes: N cases, S strategies, F features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heads import Floats, Head

Booleans = NDArray[np.bool_]

NEVER = 2.0
"""A chance that nothing has."""
MARGIN = 0.25
"""A feature is outside when it is further from the training range than this share of the range."""
OUTSIDE_SHARE = 0.1
"""A query is unlike the training tasks when more than this share of its free features are outside."""


@dataclass(frozen=True)
class Pair:
    """A judgement of which of two strategies is worth more, after Xu et al. 2012 ("SATzilla2012")."""

    first: int
    second: int
    """Places among the policy's strategies."""
    head: Head
    """The chance that the first is, each case counting by how much it mattered."""
    size: float
    """How much it mattered in training, on average."""

    def gains(self, rows: Floats) -> Floats:
        """By how much the first is expected to be worth more than the second, for each row [N, F] -> [N]."""
        expected: Floats = self.size * (2 * self.head.chances(rows) - 1)
        return expected


@dataclass(frozen=True)
class TrainedPolicy:
    """Everything that was learned, as plain data and fitted heads."""

    base_hash: str
    """Content hash of the model whose outcomes were learned from."""
    strategies: tuple[str, ...]
    """`in_context` first."""
    heads: Mapping[int, tuple[Head, ...]]
    """Stage -> for each strategy, the chance that its answer is right."""
    costs: Mapping[str, tuple[float, ...]]
    """Kind -> mean cost of each strategy as a multiple of in-context; the empty kind is the mean of all."""
    price: float
    """Accuracy that one in-context cost is worth."""
    enough: float
    """Chance of a right in-context answer from which stage 1 is not measured; 1 means that it always is."""
    ranking: tuple[str, ...]
    """Strategies by their mean utility in training, best first: what to do with a query unlike the training tasks."""
    lowest: tuple[float, ...]
    """Of each free feature in training."""
    highest: tuple[float, ...]
    deciles: tuple[tuple[float, ...], ...]
    """The nine of each feature of all stages in training."""
    below: tuple[tuple[float, ...], ...]
    """Share of the training cases with a value up to each of them: more than tenths, where many have the same."""
    families: tuple[str, ...]
    """That were trained on."""
    datasets: tuple[str, ...]
    seed: int
    pairs: tuple[Pair, ...] = ()
    """What decides after stage 1; where there are none, chances and costs do."""
    keep: float = 0.0
    """Chance of a right in-context answer without which it is not kept; `NEVER` keeps none."""
    risk: float | None = None
    """Share of wrong answers that was promised among those kept in context; None: nothing was promised."""
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

    def chances(self, stage: int, rows: Floats) -> Floats:
        """The chance that each strategy is right [N, S] from the features of a stage [N, F]."""
        return np.stack([head.chances(rows) for head in self.heads[stage]], axis=1)

    def expected_costs(self, kinds: Sequence[str]) -> Floats:
        """What each strategy would cost from here on [N, S]; the in-context answer is paid for already."""
        table = np.array([self.costs.get(kind, self.costs[""]) for kind in kinds])
        table[:, 0] = 0.0
        return table

    def utilities(self, chances: Floats, costs: Floats) -> Floats:
        """Chance of a right answer minus the price of the cost [N, S]."""
        return chances - self.price * costs

    @property
    def usual(self) -> tuple[float, ...]:
        """Median of each feature of all stages in training."""
        return tuple(nine[4] for nine in self.deciles)

    def gains(self, rows: Floats) -> Floats:
        """What the pairs expect [N, P] from the features of all stages [N, F]."""
        return np.stack([pair.gains(rows) for pair in self.pairs], axis=1) if self.pairs else np.zeros((len(rows), 0))

    def preferences(
        self, chances: Floats, costs: Floats, gains: Floats | None = None, among: Collection[int] | None = None
    ) -> Floats:
        """Utilities [N, S]; where `gains` [N, P] are given and there are pairs, by those `among` these strategies
        (None: all), relative to their mean. In-context answers that are not to be kept come last. Without `gains`,
        stage 1 has not been measured.
        """
        found = self.utilities(chances, costs)
        if gains is not None and self.pairs:
            found, among = np.zeros_like(found), range(len(self.strategies)) if among is None else among
            for pair, gain in zip(self.pairs, gains.T, strict=True):
                if pair.first in among and pair.second in among:
                    found[:, pair.first] += gain / len(among)
                    found[:, pair.second] -= gain / len(among)
        found[:, 0] = np.where(chances[:, 0] < self.keeps_from(gains is not None), -np.inf, found[:, 0])
        return found

    def keeps_from(self, measured: bool) -> float:
        """Chance of a right in-context answer without which it is not kept. Of those on which stage 1 was not measured,
        a promise was tested on such only that needed no more."""
        return self.keep if measured or self.keep <= 0 else max(self.keep, self.enough)

    def usually(self, among: Collection[str] | None = None) -> str:
        """What was best on average: for a query of which nothing else is known. Where a promise was made about answers
        that are kept, in-context comes last.
        """
        left = [s for s in self.ranking if among is None or s in among]
        return next((s for s in left if s != self.strategies[0] or self.keep <= 0), left[0])

    def settled(self, chances: Floats, costs: Floats) -> Booleans:
        """Whether stage 0 is enough [N]: the in-context answer is best and likely enough to be right."""
        best = self.preferences(chances, costs).argmax(axis=1) == 0
        settled: Booleans = best & (chances[:, 0] >= self.enough)
        return settled

    def strange(self, free: Floats, kinds: Sequence[str]) -> Booleans:
        """Whether queries are unlike the training tasks [N], from their free features [N, F] and kinds."""
        low, high = np.array(self.lowest), np.array(self.highest)
        slack = MARGIN * (high - low) + 1e-9
        outside = (free < low - slack) | (free > high + slack)
        unknown = np.array([not kind or kind not in self.costs for kind in kinds])
        strange: Booleans = (outside.mean(axis=1) > OUTSIDE_SHARE) | unknown
        return strange
