"""Offline simulation: what a policy would do with each case of an outcome table, and at what cost.

Mirrors the controller's graph without running a model; knows nothing about how policies are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .adapter_acceptance import MAX_ATTEMPTS
from .features import Features
from .outcome_table import OutcomeTable, RoutedCases
from .outcomes import BASE
from .policy import Policy


def run_attempts(
    table: OutcomeTable, case: int, first: int, next_best: Callable[[Sequence[int]], int | None]
) -> tuple[int, float]:
    """The strategy whose answer a case gets if `first` is tried first, and the cost of the attempts before it.

    As in the graph's `judge` node: while an answer cannot be parsed, `next_best` of the strategies tried so far is
    attempted, and finally the in-context answer stands.
    """
    tried = [first]
    while table.unparsed[case, tried[-1]] and not (tried[-1] == 0 and len(tried) > 1):
        following = next_best(tried) if len(tried) < MAX_ATTEMPTS else None
        if following is None and (table.unparsed[case, 0] or 0 in tried):
            break
        tried.append(following or 0)
    return tried[-1], float(sum(table.costs[case, n] for n in tried[:-1] if n))


def simulate(policy: Policy, table: OutcomeTable) -> RoutedCases:
    """Routes every case as the controller would with this policy."""
    routed = RoutedCases.empty(len(table))
    for case in range(len(table)):
        features = _features(table, case, 0)
        routed.measured[case] = policy.needs_more(features)
        if routed.measured[case]:
            features = _features(table, case, 1)

        def next_best(tried: Sequence[int], features: Features = features, case: int = case) -> int | None:
            return _next_best(policy, table, case, features, tried)

        first = next_best([])
        first = 0 if first is None else first
        routed.choice[case], routed.wasted_cost[case] = run_attempts(table, case, first, next_best)
        if routed.choice[case] == 0 and not table.unparsed[case, 0]:
            routed.kept[case] = policy.decide(features, [BASE]).may_keep
    return routed


def _features(table: OutcomeTable, case: int, stage: int) -> Features:
    return Features(stage, dict(zip(table.feature_names[stage], table.stage(stage)[case].tolist(), strict=True)))


def _next_best(policy: Policy, table: OutcomeTable, case: int, features: Features, tried: Sequence[int]) -> int | None:
    """The strategy that the policy tries after others, or None if none is left or worthwhile."""
    names = [table.strategies[n] for n in tried]
    applicable = zip(table.strategies, table.applicable[case], strict=True)
    allowed = [name for name, usable in applicable if usable and name not in names]
    if not allowed:
        return None
    decision = policy.decide(features, allowed, tried=names)
    return table.strategies.index(decision.strategy) if not names or decision.worthwhile else None
