"""Judges policies on kinds of family that they never saw: each data set, and each kind of task in it, held out whole.

Families within a domain resemble each other, so that holding out families alone says little about the tasks of another
user. Knows nothing about files. Axes: N cases, S strategies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .outcome_table import OutcomeTable
from .policy import LearnedPolicy
from .scorecard import Bootstrap
from .simulation import simulate
from .training import TrainingSettings, fit

FEWEST_CASES = 20
"""Cases below which a domain is not judged."""


def domains_of(table: OutcomeTable) -> list[str]:
    """The domain of each case: its data set, and its kind where a data set has several."""
    kinds: dict[str, set[str]] = {}
    for dataset, kind in zip(table.datasets, table.kinds, strict=True):
        kinds.setdefault(dataset, set()).add(kind)
    return [d if len(kinds[d]) == 1 else f"{d}/{k}" for d, k in zip(table.datasets, table.kinds, strict=True)]


def domains_held_out(table: OutcomeTable, settings: TrainingSettings) -> dict[str, Any] | None:
    """Accuracy and cost on each domain of policies that were trained on the others, beside the fixed strategy that is
    best on the domain in hindsight; also at cost weight 0. None for fewer than two domains.

    `all` is the mean over the cases of all domains, with a 90% interval over families of the difference in accuracy.
    """
    whole = table.complete()
    of_case, every = np.array(domains_of(whole)), np.array(domains_of(table))
    names = [name for name in sorted(set(of_case.tolist())) if (of_case == name).sum() >= FEWEST_CASES]
    if len(names) < 2:
        return None
    results, parts = dict[str, Any](), list[dict[str, Any]]()
    for name in names:
        unseen = whole.take(np.flatnonzero(of_case == name))
        others = np.flatnonzero((every != name) & ~np.isin(np.array(table.families), unseen.families))
        training = table.take(others)
        own = settings.for_families(len(set(training.families)) * 4 // 5)
        part = _judged(LearnedPolicy(fit(training, own)), unseen)
        parts.append(part)
        results[name] = _summary([part])
    return {"domains": results, "all": _summary(parts)}


def _judged(policy: LearnedPolicy, unseen: OutcomeTable) -> dict[str, Any]:
    """Correctness and costs [N] of a policy, of the same at cost weight 0, and of the best fixed strategy."""
    best = int(unseen.alone.mean(axis=0).argmax())
    arms = {
        "policy": unseen.score_routing(simulate(policy, unseen)),
        "accuracy_first": unseen.score_routing(simulate(policy.with_cost_weight(0), unseen)),
        "best_fixed": (unseen.alone[:, best], unseen.costs[:, best]),
    }
    unfamiliar = policy.trained.is_out_of_distribution(unseen.stage(0), unseen.kinds)
    return {"families": unseen.families, "arms": arms, "best": unseen.strategies[best], "unfamiliar": unfamiliar}


def _summary(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def joined(arm: str, what: int) -> Any:
        return np.concatenate([part["arms"][arm][what] for part in parts])

    families = [family for part in parts for family in part["families"]]
    fixed, cost = joined("best_fixed", 0), float(joined("best_fixed", 1).mean())
    summary: dict[str, Any] = {
        "cases": len(families), "best_fixed": sorted({part["best"] for part in parts}),
        "accuracy_of_best_fixed": float(fixed.mean()), "cost_of_best_fixed": cost,
        "unfamiliar_share": float(np.concatenate([part["unfamiliar"] for part in parts]).mean()),
    }  # fmt: skip
    for arm in ("policy", "accuracy_first"):
        gain = Bootstrap(families, {"policy": joined(arm, 0), "fixed": fixed}, 0).gain("fixed")
        summary[arm] = {"accuracy_difference": gain, "cost_share": float(joined(arm, 1).mean()) / cost}
    return summary


def at_cost_weights(table: OutcomeTable, settings: TrainingSettings, shares: Sequence[float]) -> dict[str, Any]:
    """`all` of `domains_held_out` at several cost weights, each given as the accuracy that the most expensive strategy
    costs: the curve of accuracy against cost on domains that were held out."""
    highest = float(np.nanmean(table.costs, axis=0).max())
    curve = {}
    for share in shares:
        held_out = domains_held_out(table, replace(settings, cost_weight=share / highest))
        if held_out is not None:
            curve[f"{share:g}"] = held_out["all"]["policy"]
    return curve
