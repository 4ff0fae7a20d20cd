"""Why a policy decided as it did: what pushed it, and what would have changed it. Knows nothing about models.

A feature's push is what the estimated difficulty loses when the feature is as usual in training: the others stay, so
pushes of features that go together are each part of the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .cases import BASE
from .features import NAMES, Features
from .policy import Decision, LearnedPolicy


@dataclass(frozen=True)
class Push:
    """What one feature did."""

    feature: str
    value: float
    usual: float
    """Its median in training."""
    difficulty: float
    """By how much it raised the estimated chance that the in-context answer is wrong."""
    instead: str
    """The strategy that would have been chosen, had it been as usual."""


@dataclass(frozen=True)
class Explanation:
    """A decision and what it rests on."""

    decision: Decision
    pushes: tuple[Push, ...]
    """The strongest first."""
    prices: tuple[tuple[float, str], ...]
    """Prices of one in-context cost at which another strategy is chosen, with its name: the nearest below and above, as
    far as they are known."""
    price: float


def explain(policy: LearnedPolicy, features: Features, allowed: Sequence[str]) -> Explanation:
    """The decision among the allowed strategies, taken apart."""
    decision = policy.decide(features, allowed)
    usual = dict(zip(NAMES[1], policy.trained.usual, strict=True))
    pushes = []
    for name in NAMES[features.stage]:
        other = policy.decide(replace(features, values={**features.values, name: usual[name]}), allowed)
        pushes.append(
            Push(name, features.values[name], usual[name], decision.difficulty - other.difficulty, other.strategy)
        )
    pushes.sort(key=lambda push: -abs(push.difficulty))
    return Explanation(decision, tuple(pushes), _prices(policy, features, decision, allowed), policy.trained.price)


def _prices(
    policy: LearnedPolicy, features: Features, decision: Decision, allowed: Sequence[str]
) -> tuple[tuple[float, str], ...]:
    """Where on the scale of prices the choice would pass to another strategy, next to the price as it is. Nowhere that
    is known, where pairs decide, which learned at one price, or where the query is unlike those in training."""
    if policy.strange(features) or (policy.trained.pairs and decision.stage == max(NAMES)):
        return ()
    kept = decision.scores[BASE] >= policy.trained.keep
    price, known = policy.trained.price, [s for s in policy.trained.strategies if s in allowed and (kept or s != BASE)]
    scores, costs = decision.scores, decision.costs
    crossings = {(scores[a] - scores[b]) / (costs[a] - costs[b]) for a in known for b in known if costs[a] != costs[b]}
    found = []
    for side in (
        sorted((c for c in crossings if 0 < c < price), reverse=True),
        sorted(c for c in crossings if c > price),
    ):
        for crossing in side:
            beyond = crossing * (1.0001 if crossing > price else 0.9999)
            best = max(known, key=lambda s: scores[s] - beyond * costs[s])
            if best != decision.strategy:
                found.append((crossing, best))
                break
    return tuple(found)


def as_text(found: Explanation, most: int = 6) -> str:
    """The explanation in words."""
    decision = found.decision
    lines = [
        f"{decision.strategy}: {decision.reason}",
        "",
        "what it would be worth (chance of a right answer, cost, utility):",
    ]
    for name, score in sorted(decision.scores.items(), key=lambda item: -decision.utilities.get(item[0], 0.0)):
        lines.append(
            f"  {name:<18} {score:.2f}  {_of(decision.costs, name):6.0f}x  {_of(decision.utilities, name):+.3f}"
        )
    lines += ["", "what pushed the estimated difficulty (value; usual in training; by how much):"]
    for push in found.pushes[:most]:
        instead = "" if push.instead == decision.strategy else f"  -> {push.instead}, had it been as usual"
        lines.append(f"  {push.feature:<18} {push.value:8.2f} {push.usual:8.2f}  {push.difficulty:+.3f}{instead}")
    lines += ["", f"the price of one in-context cost is {found.price:.2g} of accuracy;"]
    changes = [f"at {price:.2g} it would be {name}" for price, name in found.prices]
    lines.append("  " + ("; ".join(changes) if changes else "no other price is known to change the choice"))
    return "\n".join(lines)


def _of(numbers: Mapping[str, float], name: str) -> float:
    return numbers.get(name, 0.0)
