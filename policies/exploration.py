"""Exploration and shadow policies in serving. Knows nothing about logs.

Both are recorded in the decision, and with it in traces and results; `serving_logs` evaluates them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..ttt_core.arguments import as_number
from ..ttt_core.errors import PolicyError, described, is_interruption
from ..ttt_core.tasks.fields import as_utf8
from .calibration import Calibrates, Calibration
from .features import STAGE_0, Features
from .outcomes import BASE
from .policy import Decision, Policy, card_digest, untried_strategies


@dataclass(frozen=True)
class ExploringPolicy:
    """A policy that explores, or has a shadow policy, or both.

    Exploration depends on the query's free features and the seed alone, so that it is reproducible. An explored query
    is measured to the last stage, so that its outcome is training data. `policy_choice` is what the policy would have
    chosen without exploration. An in-context answer outside the risk guarantee is never drawn.
    """

    policy: Policy
    shadow: Policy | None = None
    """Decides after every decision, for the record; neither its choice nor its errors have an effect."""
    explore: float = 0.0
    """Share of the queries for which a strategy is drawn uniformly from those the policy was trained on, 0 to 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= as_number(self.explore) <= 1:
            raise PolicyError(f"explore: expected a share between 0 and 1; received {self.explore!r}")

    @property
    def name(self) -> str:
        return self.policy.name

    def snapshot(self) -> ExploringPolicy:
        """See `Calibrates`; the shadow policy calibrates itself as well."""
        policy = self.policy.snapshot() if isinstance(self.policy, Calibrates) else self.policy
        shadow = self.shadow.snapshot() if isinstance(self.shadow, Calibrates) else self.shadow
        return replace(self, policy=policy, shadow=shadow)

    def observe(self, features: Features) -> None:
        """See `Calibrates`."""
        if isinstance(self.policy, Calibrates):
            self.policy.observe(features)
        if isinstance(self.shadow, Calibrates):
            with suppress(Exception):  # it would fail at the decision as well, which records it
                self.shadow.observe(features)

    def observed(self) -> Calibration:
        """See `Calibrates`; of the policy alone."""
        return self.policy.observed() if isinstance(self.policy, Calibrates) else Calibration()

    def restore(self, calibration: Calibration) -> None:
        """See `Calibrates`."""
        if isinstance(self.policy, Calibrates):
            self.policy.restore(calibration)

    def needs_more(self, features: Features) -> bool:
        return (features.stage == 0 and self._draw(features) is not None) or self.policy.needs_more(features)

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        decision, draw = self.policy.decide(features, allowed, tried=tried), self._draw(features)
        without = decision if draw is None else self._unexplored(decision, features, allowed, tried)
        own, options = without.strategy, _options(without, untried_strategies(allowed, tried))
        chosen = own if draw is None else draw.choice(options)
        propensity = self.explore * (chosen in options) / len(options) + (1 - self.explore) * (chosen == own)
        if draw is not None:
            reason = f"explored: drawn from {len(options)} strategies instead of {own} ({without.reason})"
            decision = replace(decision, strategy=chosen, reason=reason, policy_choice=own, forced=False)
        return self._shadowed(replace(decision, propensity=propensity), features, allowed, tried)

    def _unexplored(
        self, decision: Decision, features: Features, allowed: Sequence[str], tried: Sequence[str]
    ) -> Decision:
        """What the policy would have decided from the features that it would have measured."""
        own = _measured_for(self.policy, features)
        return decision if own is features else self.policy.decide(own, allowed, tried=tried)

    def card(self) -> Mapping[str, Any]:
        return {**self.policy.card(), "served": self.served}

    @property
    def served(self) -> dict[str, Any]:
        """What is explored, and the shadow policy, as plain JSON."""
        shadow = None if self.shadow is None else f"{self.shadow.name} ({card_digest(self.shadow.card())[:12]})"
        return {"explore": self.explore, "seed": self.seed if self.explore else None, "shadow": shadow}

    def _draw(self, features: Features) -> random.Random | None:
        """The random generator to draw the strategy with, if this query is explored."""
        key = [features.values[name] for name in STAGE_0]
        generator = random.Random(f"explore-{self.seed}-{key}")
        return generator if generator.random() < self.explore else None

    def _shadowed(
        self, decision: Decision, features: Features, allowed: Sequence[str], tried: Sequence[str]
    ) -> Decision:
        if self.shadow is None:
            return decision
        try:
            choice = self.shadow.decide(_measured_for(self.shadow, features), allowed, tried=tried).strategy
            return replace(decision, shadow=choice, shadow_had_features=not self.shadow.needs_more(features))
        except BaseException as error:  # a shadow is on trial: its failure is recorded, not raised
            if is_interruption(error):
                raise
            return replace(decision, shadow=f"failed: {as_utf8(described(error))}")


def _measured_for(policy: Policy, features: Features) -> Features:
    """The features that a policy would have had measured, of those that were."""
    if features.stage == 0:
        return features
    free = replace(features, stage=0, values={name: features.values[name] for name in STAGE_0})
    return features if policy.needs_more(free) else free


def without_exploration(policy: Policy) -> Policy:
    """The policy that decides where nothing is explored."""
    return policy.policy if isinstance(policy, ExploringPolicy) else policy


def _options(decision: Decision, remaining: Sequence[str]) -> Sequence[str]:
    """The strategies to draw from: the remaining ones that the policy was trained on, if there are several, without an
    in-context answer outside the risk guarantee."""
    allowed = [s for s in remaining if s != BASE or decision.may_keep] or remaining
    known = [s for s in allowed if s in decision.costs]
    return known if len(known) > 1 else allowed
