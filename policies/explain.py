"""Why a policy decided as it did: what pushed it, and what would have changed it. Knows nothing about models.

A feature's push is what is lost when the feature is as usual in training: the others stay, so pushes of features that
go together are each part of the truth. What kind a task is has no push: a task of no kind, or of two, says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .features import NAMES, Features
from .outcomes import BASE
from .policy import Decision, LearnedPolicy

By = Literal["chances", "average"]
"""What chose: the chance and cost of each strategy, or what was best on average, for a query unlike those in
training."""


@dataclass(frozen=True)
class Contribution:
    """What one feature did."""

    feature: str
    value: float
    median: float
    """Its median in training."""
    difficulty: float
    """By how much it raised the estimated chance that the in-context answer is wrong."""
    lead: float
    """By how much it raised what the choice was made by, of the chosen strategy over the runner-up; 0 without one."""
    instead: str
    """The strategy that would have been chosen, had it been as usual."""


@dataclass(frozen=True)
class Explanation:
    """A decision and what it rests on."""

    decision: Decision
    by: By
    preferences: tuple[tuple[str, float], ...]
    """Strategies that were to choose from and what the choice was made by, the highest first, in accuracy. Minus
    infinity for an in-context answer that may not be kept. Empty by average."""
    contributions: tuple[Contribution, ...]
    """The strongest on the lead first; without a lead, on the difficulty."""
    cost_weights: tuple[tuple[float, str], ...]
    """Prices of one in-context cost at which another strategy is chosen, with its name: the nearest below and above, as
    far as they are known."""
    cost_weight: float

    @property
    def runner_up(self) -> str:
        """What would have been chosen next; empty where there is none."""
        return next((n for n, worth in self.preferences[1:] if math.isfinite(worth)), "")


def explain(policy: LearnedPolicy, features: Features, allowed: Sequence[str]) -> Explanation:
    """The decision among the allowed strategies, taken apart."""
    trained, decision = policy.trained, policy.decide(features, allowed)
    known = [s for s in trained.strategies if s in allowed]
    by: By = "average" if policy.is_out_of_distribution(features) else "chances"
    ranked = sorted(policy.preferences(features, known).items(), key=lambda item: -item[1]) if by != "average" else []
    found = Explanation(decision, by, tuple(ranked), (), (), trained.cost_weight)
    prices = _prices(policy, found, known) if by == "chances" else ()
    return replace(found, contributions=_pushes(policy, features, allowed, known, found), cost_weights=prices)


def _pushes(
    policy: LearnedPolicy, features: Features, allowed: Sequence[str], known: Sequence[str], found: Explanation
) -> tuple[Contribution, ...]:
    usual = dict(zip(NAMES[1], policy.trained.feature_medians, strict=True))
    finite = LearnedPolicy(replace(policy.trained, keep_threshold=0.0))  # what may not be kept has a worth all the same
    decision = found.decision

    def lead(of: Features) -> float:
        if not found.runner_up:
            return 0.0
        worth = finite.preferences(of, known)
        return worth[decision.strategy] - worth[found.runner_up]

    now, pushes = lead(features), []
    for name in NAMES[features.stage]:
        if name.startswith("kind_"):
            continue
        other = replace(features, values={**features.values, name: usual[name]})
        decided = policy.decide(other, allowed)
        pushes.append(
            Contribution(
                name, features.values[name], usual[name],
                decision.difficulty - decided.difficulty, now - lead(other), decided.strategy,
            )
        )  # fmt: skip
    pushes.sort(key=lambda push: (-abs(push.lead), -abs(push.difficulty)))
    return tuple(pushes)


def _prices(policy: LearnedPolicy, found: Explanation, known: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """Where on the scale of prices the choice by chances would pass to another strategy, next to the price as it is."""
    decision, price = found.decision, policy.trained.cost_weight
    left = [s for s in known if decision.may_keep or s != BASE]
    scores, costs = decision.scores, decision.costs
    crossings = {(scores[a] - scores[b]) / (costs[a] - costs[b]) for a in left for b in left if costs[a] != costs[b]}
    prices = []
    for side in (
        sorted((c for c in crossings if 0 < c < price), reverse=True),
        sorted(c for c in crossings if c > price),
    ):
        for crossing in side:
            beyond = crossing * (1.0001 if crossing > price else 0.9999)
            best = max(left, key=lambda s: scores[s] - beyond * costs[s])
            if best != decision.strategy:
                prices.append((crossing, best))
                break
    return tuple(prices)


_NO_PRICE = {
    "average": "the query is unlike those in training, and no price changes what was best there on average",
    "chances": "no other price changes the choice",
}


def as_text(found: Explanation, most: int = 6) -> str:
    """The explanation in words."""
    decision, ranked = found.decision, dict(found.preferences)
    lines = [
        f"{decision.strategy}: {decision.reason}",
        "",
        "what it would be worth (chance of a right answer, cost, utility):",
    ]
    for name in [*ranked, *(n for n in decision.scores if n not in ranked)]:
        worth = decision.utilities[name]
        lines.append(f"  {name:<18} {decision.scores[name]:.2f}  {decision.costs[name]:6.0f}x  {worth:+.3f}")
    over = f", and {decision.strategy}'s lead over {found.runner_up}" if found.runner_up else ""
    lines += ["", f"what pushed the estimated difficulty{over} (value; usual in training; by how much):"]
    for push in found.contributions[:most]:
        leads = f"  {push.lead:+.3f}" if found.runner_up else ""
        instead = "" if push.instead == decision.strategy else f"  -> {push.instead}, had it been as usual"
        lines.append(
            f"  {push.feature:<18} {push.value:8.2f} {push.median:8.2f}  {push.difficulty:+.3f}{leads}{instead}"
        )
    lines += ["", f"the price of one in-context cost is {found.cost_weight:.2g} of accuracy;"]
    changes = [f"at {price:.2g} it would be {name}" for price, name in found.cost_weights]
    lines.append("  " + ("; ".join(changes) or _NO_PRICE[found.by]))
    return "\n".join(lines)
