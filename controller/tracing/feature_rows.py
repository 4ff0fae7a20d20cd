"""The features that a policy saw, each with its meaning and, where the policy is here, what it contributed.

Knows nothing about pages. A trace has the digest of its policy; the policy is looked for among the installed and the
shipped ones, and one that is not here leaves the features without contributions.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...policies.bundle import load_bundle
from ...policies.explain import Explanation, explain
from ...policies.feature_glossary import GLOSSARY
from ...policies.features import Features
from ...policies.installed import bundles
from ...policies.policy import LearnedPolicy, Policy
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


def feature_rows(trace: Trace, explained: Explanation | None) -> list[FeatureRow]:
    """The features in the order of their contributions, else in that of the policy."""
    contributions = {one.feature: one for one in explained.contributions} if explained else {}
    rows = []
    for name, value in trace.features.items():
        meaning = GLOSSARY[name].meaning.replace("`", "") if name in GLOSSARY else ""
        if (one := contributions.get(name)) is None:
            rows.append(FeatureRow(name, value, meaning))
            continue
        instead = "" if explained is None or one.instead == explained.decision.strategy else one.instead
        rows.append(FeatureRow(name, value, meaning, one.median, one.difficulty, one.lead, instead))
    order = list(contributions)
    return sorted(rows, key=lambda row: order.index(row.name) if row.name in contributions else len(order))


def features_note(explained: Explanation | None, trace: Trace) -> str:
    """What the contributions mean, or why there are none."""
    policy = trace.attributes.get("policy", {})
    if trace.decisions and trace.decisions[0].get("exclusive"):
        return f"No feature had a part in the decision: the policy, {policy.get('name')}, is fixed."
    if explained is None:
        return (
            f"Contributions of features are not known: the policy of the run, {policy.get('name')} "
            f"({policy.get('digest')}), is not a learned policy that is installed here."
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
        "share credit, so contributions do not add up."
    )


def explained_decision(trace: Trace, policy: Policy | None = None) -> Explanation | None:
    """The first decision explained by its policy: `policy`, where it is that of the run, else one that is installed.
    None where it is not here, or is no learned one."""
    facts = trace.attributes.get("policy", {})
    node = next((n["attributes"]["features"] for n in trace.nodes if "features" in n["attributes"]), None)
    if node is None or not trace.decisions or None in node["values"].values():
        return None
    found = _policy_of(str(facts.get("digest")), facts.get("thresholds", {}).get("cost_weight"), policy)
    if found is None:
        return None
    first = trace.decisions[0]
    allowed = [name for name in first["scores"] if not unusable(trace, name)]
    explained = explain(found, Features(node["stage"], node["values"]), allowed)
    return explained if explained.decision.strategy == first["strategy"] else None


def _policy_of(digest: str, cost_weight: float | None, policy: Policy | None) -> LearnedPolicy | None:
    """The learned policy with a digest, at the cost weight of the run."""
    if policy is not None and policy_digest(policy) == digest:
        return policy if isinstance(policy, LearnedPolicy) else None
    for _, folder in bundles():
        try:
            known = LearnedPolicy(load_bundle(folder))
        except AutotttError:  # one of another version, say
            continue
        others = [] if cost_weight is None else [known.with_cost_weight(cost_weight)]
        for one in (known, *others):
            if policy_digest(one) == digest:
                return one
    return None
