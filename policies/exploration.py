"""Serving a policy: another that decides in its shadow, and a small share of exploration. Knows nothing about logs.

Both go into the decision, and with it into traces and results; see `traces` for what is made of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..ttt_core.errors import PolicyError
from .features import STAGE_0, Features
from .outcomes import BASE
from .policy import Decision, Policy, untried_strategies


@dataclass(frozen=True)
class ExploringPolicy:
    """A policy with a shadow, or that explores, or both.

    What it explores hangs on the query's free features and the seed alone, so that the same run does the same. A query
    that is explored is measured to the last stage: its outcome is then one to learn from. The policy's own choice is
    what it would have been without, and an in-context answer that a promise forbids to keep is not drawn.
    """

    policy: Policy
    shadow: Policy | None = None
    """Asked after every decision, for the record; whatever it says or raises changes nothing."""
    explore: float = 0.0
    """Share of the queries for which a strategy is drawn, each that the policy knows as likely as any other, 0 to 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.explore <= 1:
            raise PolicyError(f"explore: expected a share between 0 and 1; received {self.explore}")

    @property
    def name(self) -> str:
        return self.policy.name

    def needs_more(self, features: Features) -> bool:
        return (features.stage == 0 and self._draw(features) is not None) or self.policy.needs_more(features)

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        decision, chance = self.policy.decide(features, allowed, tried=tried), self._draw(features)
        without = decision if chance is None else self._unexplored(decision, features, allowed, tried)
        own, drawn = without.strategy, _drawable(without, untried_strategies(allowed, tried))
        chosen = own if chance is None else chance.choice(drawn)
        share = self.explore * (chosen in drawn) / len(drawn) + (1 - self.explore) * (chosen == own)
        if chance is not None:
            words = f"explored, drawn from {len(drawn)}; else it would be {own}: {without.reason}"
            decision = replace(decision, strategy=chosen, reason=words, policy_choice=own)
        return self._shadowed(replace(decision, propensity=share), features, allowed, tried)

    def _unexplored(
        self, decision: Decision, features: Features, allowed: Sequence[str], tried: Sequence[str]
    ) -> Decision:
        """What the policy would have decided on what it would have measured."""
        free = Features(0, {name: features.values[name] for name in STAGE_0})
        if features.stage == 0 or self.policy.needs_more(free):
            return decision
        return self.policy.decide(free, allowed, tried=tried)

    def card(self) -> Mapping[str, Any]:
        served = {"explore": self.explore, "shadow": None if self.shadow is None else self.shadow.name}
        return {**self.policy.card(), "served": served}

    def _draw(self, features: Features) -> random.Random | None:
        """What the strategy is drawn with, where this query is explored."""
        key = [features.values[name] for name in STAGE_0]
        chance = random.Random(f"explore-{self.seed}-{key}")
        return chance if chance.random() < self.explore else None

    def _shadowed(
        self, decision: Decision, features: Features, allowed: Sequence[str], tried: Sequence[str]
    ) -> Decision:
        if self.shadow is None:
            return decision
        try:
            choice = self.shadow.decide(features, allowed, tried=tried).strategy
            return replace(decision, shadow=choice, shadow_had_features=not self.shadow.needs_more(features))
        except Exception as error:  # a shadow is there to be tried out: its failure is a finding, not ours to raise
            return replace(decision, shadow=f"failed: {type(error).__name__}: {error}")


def _drawable(decision: Decision, left: Sequence[str]) -> Sequence[str]:
    """What is drawn from: of the strategies that are left those that the policy knows, where it knows several, without
    an in-context answer that may not be kept."""
    kept = [s for s in left if s != BASE or decision.may_keep] or left
    known = [s for s in kept if s in decision.costs]
    return known if len(known) > 1 else kept
