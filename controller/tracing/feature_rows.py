"""The features that a policy saw, each with its meaning and, where the policy is here, what it contributed.

Knows nothing about pages. A trace has the digest of its policy; the policy is looked for among the installed and the
shipped ones, and one that is not here leaves the features without contributions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ...policies.bundle import load_bundle
from ...policies.bundle_card import bundles
from ...policies.calibration import Calibration
from ...policies.explain import Contribution, Explanation, explain
from ...policies.exploration import without_exploration
from ...policies.feature_glossary import GLOSSARY
from ...policies.features import Features
from ...policies.policy import AnyModelPolicy, LearnedPolicy, Policy
from ...policies.rounding import told_apart
from ...ttt_core.errors import AutotttError
from ..run_facts import policy_digest
from .choice import unusable
from .trace import Trace


@dataclass(frozen=True)
class FeatureRow:
    """One feature of a run."""

    name: str
    value: float | None
    meaning: str
    median: float | None = None
    """Its median in the policy's training set."""
    difficulty: float | None = None
    """Its contribution to the probability that the in-context answer is wrong; None where it is not known."""
    lead: float | None = None
    """Its contribution to the lead of the chosen strategy over the second, in utility."""
    instead: str = ""
    """The strategy that would be chosen with the median, where that is another one."""
    low: float | None = None
    """The value that 10% of the training set is below."""
    high: float | None = None
    """The value that 10% of the training set is above."""
    unused: str = ""
    """Why a feature has no contribution where others have one."""
    shown: bool = True
    """Whether it is among the features that are shown first."""


MOST_LEADING = 6
"""Features with the largest contributions to the lead that are shown first."""
MOST_ON_A_SIDE = 3
"""Features that spoke most for a wrong in-context answer, and against it, that are shown first or named."""


def feature_rows(trace: Trace, explained: Explanation | None) -> list[FeatureRow]:
    """The features in the order of their contributions, else in that of the policy."""
    contributions = {one.feature: one for one in explained.contributions} if explained else {}
    first = _shown_first(explained) if explained else set(list(trace.features)[: MOST_LEADING + 2])
    rows = []
    for name, value in trace.features.items():
        meaning = GLOSSARY[name].meaning.replace("`", "") if name in GLOSSARY else ""
        if (one := contributions.get(name)) is None:
            unused = _unused(name) if explained else ""
            rows.append(FeatureRow(name, value, meaning, unused=unused, shown=name in first))
            continue
        instead = "" if explained is None or one.instead == explained.decision.strategy else one.instead
        rows.append(
            FeatureRow(
                name, value, meaning, one.median, one.difficulty, one.lead, instead, one.low, one.high,
                shown=name in first,
            )
        )  # fmt: skip
    order = list(contributions)
    return sorted(rows, key=lambda row: order.index(row.name) if row.name in contributions else len(order))


def _unused(name: str) -> str:
    if name.startswith("kind_"):
        return "no contribution: the kinds are one setting"
    return "not used by this policy"


def _shown_first(explained: Explanation) -> set[str]:
    """The features that led, those that spoke most on either side, and those without which the choice would differ."""
    by_lead = explained.contributions[:MOST_LEADING]
    sides = [one for side in _sides(explained.contributions, "difficulty") for one in side]
    decisive = [one for one in explained.contributions if one.instead != explained.decision.strategy]
    return {one.feature for one in (*by_lead, *sides, *decisive)}


def _sides(contributions: Sequence[Contribution], what: str) -> tuple[list[Contribution], list[Contribution]]:
    """The contributions that were largest above 0, and those furthest below 0, as they are printed."""
    ranked = sorted(contributions, key=lambda one: float(getattr(one, what)))
    above = [one for one in reversed(ranked) if getattr(one, what) >= 0.0005][:MOST_ON_A_SIDE]
    below = [one for one in ranked if getattr(one, what) <= -0.0005][:MOST_ON_A_SIDE]
    return above, below


def feature_sentences(explained: Explanation | None) -> Iterator[str]:
    """What spoke for and against, what a usual task would give, and what was unusual; empty if unexplained."""
    if explained is None:
        return
    decision = explained.decision
    usual, here = told_apart(explained.difficulty_at_medians, decision.difficulty, 2)
    yield (
        f"With every feature at its median in the training set the estimated probability that the in-context answer is "
        f"wrong (difficulty) would be {usual}; with those of this task it is {here}"
    )
    yield _for_and_against("the in-context answer being wrong", explained.contributions, "difficulty")
    if explained.runner_up:
        lead = f"the lead of {decision.strategy} over {explained.runner_up} in utility"
        yield _for_and_against(lead, explained.contributions, "lead")
    others = [one for one in explained.contributions if one.instead != decision.strategy]
    decisive = ", ".join(f"{one.feature} ({one.instead})" for one in others)
    yield (
        f"With the median of one of these features alone another strategy would be chosen: {decisive}"
        if decisive
        else "The median of no single feature would change the choice"
    )
    odd = [
        f"{one.feature} {one.value:.3g} (usual {one.low:.3g} to {one.high:.3g})"
        for one in explained.contributions
        if not one.low <= one.value <= one.high
    ]
    unlike = {"estimates": "was not called out of distribution"}.get(explained.by, "was called out of distribution")
    yield (
        f"Unusual on this task, beyond the middle 80% of the training set: {', '.join(odd) or 'no feature'}. As a "
        f"whole the query {unlike}"
    )


def _for_and_against(what: str, contributions: Sequence[Contribution], field: str) -> str:
    above, below = (
        ", ".join(f"{one.feature} {getattr(one, field):+.3f}" for one in side) or "no feature"
        for side in _sides(contributions, field)
    )
    return f"Most for {what}: {above}; most against it: {below}"


def features_note(explained: Explanation | None, trace: Trace) -> str:
    """What the contributions mean, or why there are none."""
    policy = trace.attributes.get("policy", {})
    if trace.decisions and trace.decisions[0].get("exclusive"):
        return (
            f"No feature had a part in the decision: the policy, {policy.get('name')}, is fixed. Whether this task is "
            "unusual was not assessed: only a learned policy knows what is usual."
        )
    if explained is None:
        return (
            f"Contributions of features are not known: the policy of the run, {policy.get('name')} "
            f"({policy.get('digest')}), is not a learned policy that is installed here, or did not choose alone: a "
            "budget excluded its choice, the strategy was drawn (--explore), or a second policy was asked (--shadow)."
        )
    second = explained.runner_up
    lead = (
        f", and of the lead of {explained.decision.strategy} over {second} in utility (+ speaks for it)"
        if second
        else ""
    )
    return (
        "A contribution is the estimate with the feature's value minus the estimate with its median in the policy's "
        "training set, all other features as they are: of the probability that the in-context answer is wrong (+ "
        f"speaks for wrong, − for right){lead}. The largest contributions to "
        f"{'the lead' if second else 'that probability'} come first. Correlated features "
        "share credit, so contributions do not add up. The choice with the median is that among all candidates."
    )


def explained_decision(trace: Trace, policy: Policy | None = None) -> Explanation | None:
    """The first decision explained by its policy: `policy`, where it is that of the run, else one that is installed.
    None where it is not here, or is no learned one."""
    if not trace.measured or not trace.decisions or None in trace.features.values():
        return None
    first, features = trace.decisions[0], Features(**trace.measured)
    found = _policy_of(trace, features, policy)
    if found is None:
        return None
    if calibration := first.get("calibration"):
        found = replace(found, shift=Calibration.from_plain(calibration).shift)
    allowed = [name for name in first["scores"] if not unusable(trace, name)]
    explained = explain(found, features, allowed)
    return explained if explained.decision.strategy == first["strategy"] else None


def _policy_of(trace: Trace, features: Features, policy: Policy | None) -> LearnedPolicy | None:
    """The learned policy with the digest of a run, at the costs of its model and the cost weight of the run."""
    facts = trace.attributes.get("policy", {})
    digest, cost_weight = str(facts.get("digest")), facts.get("thresholds", {}).get("cost_weight")
    if policy is not None and policy_digest(policy) == digest:
        policy = without_exploration(policy)
        learned = policy.learned if isinstance(policy, AnyModelPolicy) else policy
        return learned if isinstance(learned, LearnedPolicy) else None
    for _, folder in bundles():
        try:
            trained = load_bundle(folder)
        except AutotttError:  # one of another version, say
            continue
        if trained.models:  # a policy for any model
            paid = trace.decisions[0].get("costs", {})
            alone = {name: features.cost_alone(name, cost) for name, cost in paid.items() if cost is not None}
            expected = {name: cost for name, cost in alone.items() if cost is not None}
            dearest = trained.dearest_of(features.kind, expected)
            trained = trained if dearest is None else trained.with_costs_of(dearest)
        known = LearnedPolicy(trained)
        others = [] if cost_weight is None else [known.with_cost_weight(cost_weight)]
        for one in (known, *others):
            if policy_digest(one) == digest:
                return one
    return None
