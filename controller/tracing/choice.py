"""How the first decision was made: by how much the choice led, what lost by its cost alone, and what was not compared.
Knows nothing about pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...policies.outcomes import BASE
from ...policies.policy import was_forced
from ...policies.rounding import lead_text, told_apart
from ...strategies.registry import strategies as registered
from .candidates import CandidateRow, candidates_of
from .trace import Trace


def margin_sentences(trace: Trace) -> Iterator[str]:
    """By how much the chosen strategy led the second in expected utility, and whether a strategy that is likelier to be
    right lost by its cost; nothing where utilities were not estimated."""
    usable = [row for row in candidates_of(trace) if row.utility is not None and not unusable(trace, row.strategy)]
    chosen = next((row for row in usable if row.chosen), None)
    others = sorted((row for row in usable if not row.chosen), key=lambda row: -(row.utility or 0.0))
    if chosen is None or chosen.utility is None or not others:
        return
    second = others[0]
    first, other, lead = lead_text(chosen.utility, second.utility or 0.0, 3)
    if chosen.utility < (second.utility or 0.0):
        yield (
            f"{second.strategy} had a higher expected utility than {chosen.strategy} ({other} against {first}), but "
            "utility alone did not decide; see the reason"
        )
        return
    numbers = f"{first} against {other}"
    yield f"{chosen.strategy} led the second, {second.strategy}, by {lead} in expected utility ({numbers})"
    yield from _lost_by_cost(trace, chosen, others)


def shadow_sentences(trace: Trace) -> Iterator[str]:
    """What the shadow policy chose at each decision; nothing where none was asked."""
    for decision in trace.decisions:
        if not (choice := decision.get("shadow")):
            continue
        if choice.startswith("failed"):
            yield f"The shadow policy {choice}"
            continue
        same = "as well" if choice == (decision.get("policy_choice") or decision["strategy"]) else "instead"
        less = "" if decision.get("shadow_had_features", True) else ", without features that it would have measured"
        yield f"The shadow policy chose {choice} {same}{less}"


def threshold_sentences(trace: Trace) -> Iterator[str]:
    """The threshold from which the in-context answer may be kept, beside the estimate, and by what rule answers of
    adapters stand."""
    yield from _keep_threshold(trace)
    yield from _acceptance(trace)


def _acceptance(trace: Trace) -> Iterator[str]:
    """By what rule the answers of adapters stood or not, and what would have changed that."""
    base = trace.in_context
    forced = bool(trace.decisions) and was_forced(trace.decisions[0])
    for attempt in trace.attempts:
        held_out = attempt["cross_validation"]
        if not base or attempt["confidence"] is None or base["confidence"] is None:
            continue
        if not held_out:
            if attempt["training_record"] and attempt["value"] is not None and not forced:
                yield _certainties(attempt, base)
            continue
        before, after, count = sum(held_out["before"]), sum(held_out["after"]), len(held_out["before"])
        share, likely = told_apart(attempt["confidence"], base["confidence"], 2)
        yield (
            f"The answer of {attempt['strategy']} stands where more held-out demonstrations are right after training "
            f"than before ({after}/{count} against {before}/{count}), or else where its share of the votes is at least "
            f"the token sequence probability of the in-context answer ({share} against {likely}); that comparison is a "
            "rule of thumb, since the two measure different things"
        )


def _certainties(attempt: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """The rule by which the answer of an adapter without cross-validation stands."""
    own, likely = told_apart(attempt["confidence"], base["confidence"], 2)
    measure = "share of the votes" if attempt["candidates"] else "token sequence probability"
    return (
        f"The answer of {attempt['strategy']} stands where its {measure} is at least the token sequence probability of "
        f"the in-context answer ({own} against {likely})"
    )


def _keep_threshold(trace: Trace) -> Iterator[str]:
    """The threshold from which the in-context answer may be kept; or that nothing was compared."""
    first = trace.decisions[0] if trace.decisions else {}
    thresholds = trace.attributes.get("policy", {}).get("thresholds", {})
    estimate, threshold = first.get("scores", {}).get(BASE), thresholds.get("keep_threshold")
    if first.get("exclusive"):
        name = trace.attributes.get("policy", {}).get("name")
        yield f"The policy, {name}, is fixed: the first decision compared nothing and needed no threshold"
        return
    if estimate is None or threshold is None:
        return
    has, needs = told_apart(estimate, threshold, 3)
    if threshold > 0:
        below = "" if estimate >= threshold else ", which is below it"
        yield f"The in-context answer may be kept from an estimated probability of {needs} on; here it is {has}{below}"
    else:
        yield (
            f"No threshold of probability decides: the highest expected utility does, whatever the probability of the "
            f"in-context answer ({has} here)"
        )


def _lost_by_cost(trace: Trace, chosen: CandidateRow, others: Sequence[CandidateRow]) -> Iterator[str]:
    """Whether the strategy with the highest probability of a right answer was not chosen because of its cost."""
    likeliest = max(others, key=lambda row: row.probability or 0.0)
    weight = trace.attributes.get("policy", {}).get("thresholds", {}).get("cost_weight")
    known = (likeliest.probability, chosen.probability, likeliest.cost, chosen.cost, weight)
    lead = round(likeliest.probability or 0.0, 3) - round(chosen.probability or 0.0, 3)  # of the numbers as printed
    if None in known or lead <= 0:
        if None not in known:
            yield f"No candidate was likelier to be right than {chosen.strategy}"
        return
    cost = (likeliest.cost or 0.0) - (chosen.cost or 0.0)
    yield (
        f"{likeliest.strategy} was likelier to be right ({likeliest.probability:.3f} against {chosen.probability:.3f}) "
        f"and lost only because of its cost: its lead of {lead:.3f} in probability is worth less than the "
        f"{weight * cost:.3f} that its further cost takes ({cost:.0f}x at cost weight {weight:.3g})"
    )


def unusable(trace: Trace, strategy: str) -> str:
    """Why the task does not allow a strategy; empty where it does."""
    known = registered().get(strategy)
    count = trace.attributes.get("sizes", {}).get("demonstration_count")
    if known is None or count is None or (needs := known.min_demonstrations) <= count:
        return ""
    return f"needs at least {needs} demonstration{'' if needs == 1 else 's'}, and the task has {count}"


def not_compared(trace: Trace, names: Sequence[str]) -> Iterator[str]:
    """Which of the strategies `names` were no candidates, and why: one sentence for each reason."""
    if not trace.decisions:
        return
    first = trace.decisions[0]
    reasons: dict[str, list[str]] = {}
    for name in names:
        if why := unusable(trace, name):
            reasons.setdefault(f"not usable here: it {why}", []).append(name)
        elif name not in first["scores"] and name != first["strategy"]:
            reasons.setdefault(_why_not_estimated(trace), []).append(name)
    for reason, listed in reasons.items():
        yield f"Not candidates: {', '.join(listed)} ({reason})"


def _why_not_estimated(trace: Trace) -> str:
    first, policy = trace.decisions[0], trace.attributes.get("policy", {})
    if first.get("exclusive"):
        return f"the policy, {policy.get('name')}, compares no others"
    if not first["utilities"]:
        return f"the policy, {policy.get('name')}, decides by a rule and estimates no strategy but {BASE}"
    return "registered, but the policy was not trained on them, so it estimates and chooses none of them"
