"""Explanations of a learned policy's decisions: contributions of features, and cost weights that change the choice.

Knows nothing about models. Contribution of a feature: the score with its value minus that with its training median,
the others fixed. Correlated features share credit. The kind of a task has no contribution, since its indicator features
are meaningless one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .cost_weights import CostWeightRange, cost_weight_ranges
from .features import Features
from .outcomes import BASE
from .policy import Basis, Decision, LearnedPolicy


@dataclass(frozen=True)
class Contribution:
    """What one feature contributes to a decision."""

    feature: str
    value: float
    median: float
    """Its median in training."""
    difficulty: float
    """Increase of the estimated probability that the in-context answer is wrong."""
    lead: float
    """Increase of the preference of the chosen strategy over the runner-up; 0 without a runner-up."""
    instead: str
    """The strategy that would be chosen with the median."""
    low: float
    """The value that 10% of the training set is below."""
    high: float
    """The value that 10% of the training set is above."""


@dataclass(frozen=True)
class Explanation:
    """A decision and what determined it."""

    decision: Decision
    by: Basis
    preferences: tuple[tuple[str, float], ...]
    """The available strategies and their preferences, highest first, in accuracy; minus infinity for an in-context
    answer below the keep threshold. Empty for a fallback."""
    contributions: tuple[Contribution, ...]
    """Sorted by the size of `lead`, then of `difficulty`."""
    cost_weights: tuple[CostWeightRange, ...]
    """The nearest ranges of cost weights below and above in which another strategy is chosen."""
    cost_weight: float
    difficulty_at_medians: float
    """Estimated probability that the in-context answer is wrong with all features at their medians in training, the
    kind of the task excepted."""

    @property
    def runner_up(self) -> str:
        """The second choice; empty if there is none."""
        return next((n for n, preference in self.preferences[1:] if math.isfinite(preference)), "")


def explain(policy: LearnedPolicy, features: Features, allowed: Sequence[str]) -> Explanation:
    """Explains the decision among the allowed strategies."""
    trained, decision = policy.trained, policy.decide(features, allowed)
    known = [s for s in trained.strategies if s in allowed]
    by = policy.basis(features)
    preferences = policy.preferences(features, known) if by != "fallback" else {}
    ranked = tuple(sorted(preferences.items(), key=lambda item: -item[1]))
    explanation = Explanation(
        decision, by, ranked, (), (), trained.cost_weight, _difficulty_at_medians(policy, features, allowed)
    )
    contributions = _contributions(policy, features, allowed, known, explanation)
    cost_weights = _cost_weights(policy, explanation, known) if by != "fallback" else ()
    return replace(explanation, contributions=contributions, cost_weights=cost_weights)


def _difficulty_at_medians(policy: LearnedPolicy, features: Features, allowed: Sequence[str]) -> float:
    medians = zip(policy.trained.feature_names[1], policy.trained.feature_medians, strict=True)
    usual = {name: median for name, median in medians if name in features.values and not name.startswith("kind_")}
    return policy.decide(replace(features, values={**features.values, **usual}), allowed).difficulty


def _contributions(
    policy: LearnedPolicy, features: Features, allowed: Sequence[str], known: Sequence[str], explanation: Explanation
) -> tuple[Contribution, ...]:
    names = policy.trained.feature_names
    medians = dict(zip(names[1], policy.trained.feature_medians, strict=True))
    deciles = dict(zip(names[1], policy.trained.deciles, strict=True))
    trained = replace(policy.trained, keep_threshold=0.0, risk=None)  # without minus infinity below the threshold
    finite = replace(policy, trained=trained)
    decision = explanation.decision

    def lead(of: Features) -> float:
        if not explanation.runner_up:
            return 0.0
        preferences = finite.preferences(of, known)
        return preferences[decision.strategy] - preferences[explanation.runner_up]

    actual, contributions = lead(features), []
    for name in names[features.stage]:
        if name.startswith("kind_"):
            continue
        other = replace(features, values={**features.values, name: medians[name]})
        other_decision = policy.decide(other, allowed)
        contributions.append(
            Contribution(
                name, features.values[name], medians[name], decision.difficulty - other_decision.difficulty,
                actual - lead(other), other_decision.strategy, deciles[name][0], deciles[name][-1],
            )
        )  # fmt: skip
    return tuple(sorted(contributions, key=lambda one: (-abs(one.lead), -abs(one.difficulty))))


def _cost_weights(policy: LearnedPolicy, explanation: Explanation, known: Sequence[str]) -> tuple[CostWeightRange, ...]:
    """The nearest ranges of cost weights in which another strategy has the highest utility."""
    decision, current = explanation.decision, policy.trained.cost_weight
    options = [s for s in known if decision.may_keep or s != BASE]
    scores = {name: decision.scores[name] for name in options}
    return cost_weight_ranges(scores, decision.costs, decision.strategy, current)


_NO_CHANGE = {
    "fallback": "the query is out of distribution, and no cost weight changes the fallback",
    "estimates": "no other cost weight changes the choice",
    "evidence": "no other cost weight changes the choice",
}


def as_text(explanation: Explanation, most: int = 6) -> str:
    """The explanation as text, with the `most` largest contributions."""
    decision, preferences = explanation.decision, dict(explanation.preferences)
    lines = [
        f"{decision.strategy}: {decision.reason}",
        "",
        "estimates per strategy (probability of a right answer, cost, utility):",
    ]
    for name in [*preferences, *(n for n in decision.scores if n not in preferences)]:
        utility = decision.utilities[name]
        lines.append(f"  {name:<18} {decision.scores[name]:.2f}  {decision.costs[name]:6.0f}x  {utility:+.3f}")
    columns = "value, training median, contribution to the difficulty"
    if explanation.runner_up:
        columns += f" and to the lead of {decision.strategy} over {explanation.runner_up}"
    lines += ["", f"contributions of features ({columns}):"]
    for one in explanation.contributions[:most]:
        lead = f"  {one.lead:+.3f}" if explanation.runner_up else ""
        instead = "" if one.instead == decision.strategy else f"  -> {one.instead} with the median"
        lines.append(f"  {one.feature:<18} {one.value:8.2f} {one.median:8.2f}  {one.difficulty:+.3f}{lead}{instead}")
    lines += ["", f"cost weight (accuracy per one in-context cost): {explanation.cost_weight:.3g}"]
    changes = [one.text(explanation.cost_weight) for one in explanation.cost_weights]
    lines.append("  " + ("; ".join(changes) or _NO_CHANGE[explanation.by]))
    return "\n".join(lines)
