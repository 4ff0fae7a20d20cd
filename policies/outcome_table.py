"""Cases: outcomes as a table, one row per query and seed, one column per strategy. Knows nothing about learning.

Axes: N cases, S strategies, F features.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ttt_core.errors import PolicyError
from ..ttt_core.lora.cross_validation import rejects_adapter
from .fast_inference import Floats
from .features import FEATURES_VERSION, NAMES
from .outcomes import BASE, Outcome

MIN_FAMILIES = 4
"""Families that a policy can be trained on at all."""


UNPARSED = ("unreadable", "failed")
"""Statuses of outcomes that have no answer."""
MAX_ATTEMPTS = 3
"""Strategies that are tried on a query, while none gives an answer that can be read."""
Booleans = NDArray[np.bool_]


class RoutedCases(NamedTuple):
    """What a policy does with each of N cases."""

    choice: NDArray[np.int64]
    """The strategy whose answer is given."""
    measured: Booleans
    """Whether stage 1 was measured."""
    wasted_cost: Floats
    """What was spent on strategies before it, whose answers could not be read."""
    kept: Booleans
    """Whether it is the in-context answer, which may be kept (`Decision.may_keep`)."""


@dataclass(frozen=True)
class OutcomeTable:
    """What happened, as arrays."""

    base_hash: str
    strategies: tuple[str, ...]
    """`in_context` first, then by mean cost."""
    families: tuple[str, ...]
    """[N]; a query without a family has its group's name, or its own."""
    datasets: tuple[str, ...]
    """[N]"""
    tasks: tuple[str, ...]
    """[N], the queries' names."""
    groups: tuple[str, ...]
    """[N], the tasks: queries of one share their demonstrations."""
    kinds: tuple[str, ...]
    """[N]"""
    X: Floats
    """[N, F], all stages."""
    correct: Floats
    """[N, S], 0 or 1; not a number, where a strategy was not tried. `in_context` always was."""
    costs: Floats
    """[N, S], multiples of in-context; likewise."""
    probe_cost: Floats
    """[N], what measuring stage 1 took, in the same unit."""
    applicable: Booleans
    """[N, S], false where a query has too few demonstrations for a strategy: it teaches nothing about that one, which
    is not chosen, and stands for the in-context answer that is served instead."""
    unparsed: Booleans
    """[N, S], whether there was no answer that can be read: then another strategy is tried."""
    prompt_format: str = ""
    """How the model was asked; empty where it is not known."""
    left_out: tuple[str, ...] = ()
    """Strategies that were tried on too few of the queries that others were."""
    recipes: Mapping[str, str] = field(default_factory=dict)
    """`strategy/kind` -> digest of the recipe, where it is known."""
    over_long: int = 0
    """Queries that are not among the cases, since they do not fit in the model's context."""
    unmeasured: int = 0
    """Others that are not, since answering in context or measuring failed, or was not done."""

    def __len__(self) -> int:
        return len(self.families)

    def stage(self, stage: int) -> Floats:
        """The features known after a stage."""
        return self.X[:, : len(NAMES[stage])]

    def utilities(self, cost_weight: float) -> Floats:
        """[N, S]: what each strategy would have been worth without a policy."""
        return self.correct - cost_weight * self.costs

    def score_routing(self, served: RoutedCases) -> tuple[Floats, Floats]:
        """Whether each case [N] was right, and all that was spent on it, the in-context answer first."""
        index, choice = np.arange(len(self)), served.choice
        costs = self.costs[index, choice] + (choice != 0) * self.costs[:, 0]
        return self.correct[index, choice], costs + served.measured * self.probe_cost + served.wasted_cost

    def run_attempts(
        self, case: int, first: int, following: Callable[[Sequence[int]], int | None]
    ) -> tuple[int, float]:
        """The strategy whose answer a case gets when `first` is tried first, and what those before it cost: as the
        graph's `judge`, while an answer cannot be read it goes on with what follows those tried, if anything, and at
        last with the in-context answer."""
        tried = [first]
        while self.unparsed[case, tried[-1]] and not (tried[-1] == 0 and len(tried) > 1):
            after = following(tried) if len(tried) < MAX_ATTEMPTS else None
            if after is None and (self.unparsed[case, 0] or 0 in tried):
                break
            tried.append(after or 0)
        return tried[-1], float(sum(self.costs[case, n] for n in tried[:-1] if n))

    @property
    def digest(self) -> str:
        """Names the cases by their content: the same outcomes give the same."""
        names = (self.base_hash, self.strategies, self.datasets, self.tasks)
        found = hashlib.sha256(json.dumps(names).encode())
        for numbers in (self.X, self.correct, self.costs, self.probe_cost):
            found.update(np.ascontiguousarray(numbers).tobytes())
        return found.hexdigest()[:16]

    @property
    def fully_observed(self) -> Booleans:
        """Whether every strategy was tried [N]."""
        return np.asarray(~np.isnan(self.correct).any(axis=1), dtype=np.bool_)

    def complete(self) -> OutcomeTable:
        """Those on which every strategy was tried: only they can be judged by."""
        return self.take(np.flatnonzero(self.fully_observed))

    def take(self, chosen: NDArray[np.int64]) -> OutcomeTable:
        """The cases at these indices."""
        families, datasets, tasks, groups, kinds = (
            tuple(column[i] for i in chosen)
            for column in (self.families, self.datasets, self.tasks, self.groups, self.kinds)
        )
        return replace(
            self, families=families, datasets=datasets, tasks=tasks, groups=groups, kinds=kinds, X=self.X[chosen],
            correct=self.correct[chosen], costs=self.costs[chosen], probe_cost=self.probe_cost[chosen], applicable=self.applicable[chosen],
            unparsed=self.unparsed[chosen],
        )  # fmt: skip

    def best_of_tasks(self, cost_weight: float) -> NDArray[np.int64]:
        """For each case [N] the strategy that was worth most over all queries and seeds of its task."""
        _, task = np.unique(np.array(list(zip(self.datasets, self.groups, strict=True))), axis=0, return_inverse=True)
        worth = self.utilities(cost_weight)
        sums = np.stack([np.bincount(task, weights=worth[:, s]) for s in range(worth.shape[1])], axis=1)
        return np.asarray(sums.argmax(axis=1)[task], dtype=np.int64)


def build_outcome_table(outcomes: Iterable[Outcome]) -> OutcomeTable:
    """The table of all queries that `in_context` was tried on and features were measured on; some of them need every
    strategy. Over-long queries are counted and left out.

    Raises `PolicyError` when the outcomes are of several models or another feature version, or too few to learn from.
    """
    found = list(outcomes)
    hashes = sorted({o.base_hash for o in found})
    if len(hashes) > 1:
        raise PolicyError(
            f"outcomes of {len(hashes)} models ({', '.join(h[:12] for h in hashes)}); train on one's only: "
            "`train-policy --model-hash HASH`"
        )
    formats = sorted({o.prompt_format for o in found} - {""})
    if len(formats) > 1:
        raise PolicyError(f"outcomes of {len(formats)} prompt formats ({', '.join(formats)}); keep a store for each")
    recipes: dict[str, str] = {}
    for outcome in found:
        place = f"{outcome.strategy}/{outcome.kind}"
        if outcome.recipe and recipes.setdefault(place, outcome.recipe) != outcome.recipe:
            raise PolicyError(
                f"outcomes of {outcome.strategy} on {outcome.kind} tasks are of several recipes, {recipes[place]} and "
                f"{outcome.recipe}, which achieve and cost different things; keep a store for each"
            )
    grouped: dict[tuple[str, str, int], dict[str, Outcome]] = {}
    for outcome in sorted(found, key=lambda o: o.key):
        grouped.setdefault((outcome.dataset, outcome.task_id, outcome.seed), {})[outcome.strategy] = outcome
    known = [_served(by) for by in grouped.values() if BASE in by and by[BASE].features]
    strategies = _compared({o.strategy for o in found}, known)
    _check(found, known, strategies)
    compared = {place: digest for place, digest in recipes.items() if place.split("/")[0] in strategies}
    table = _table(hashes[0], known, strategies)
    return replace(
        table, recipes=compared, over_long=len(long := over_long(found)), prompt_format="".join(formats),
        unmeasured=len(grouped) - len(known) - len(long),
        left_out=tuple(sorted({o.strategy for o in found} - strategies)),
    )  # fmt: skip


def over_long(outcomes: Iterable[Outcome]) -> set[tuple[str, str, int]]:
    """Queries that do not fit in the model's context, by data set, name and seed. Nothing is known of them, nor what
    the other strategies cost there as multiples of in-context."""
    return {(o.dataset, o.task_id, o.seed) for o in outcomes if o.strategy == BASE and o.status == "too_long"}


def _family(outcome: Outcome) -> str:
    return outcome.family or outcome.group or outcome.task_id


def _served(by: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """What a query's strategies amount to as the graph serves them: the in-context answer stands for a strategy that
    the query has too few demonstrations for, and for one whose cross-fitted training is not borne out (`judge`)."""
    base = by[BASE]

    def judged(outcome: Outcome) -> Outcome:
        if outcome.status == "too_few":
            return replace(outcome, correct=base.correct, cost=base.cost)  # the status tells it from what was tried
        answered = outcome.answer and base.answer
        if answered and rejects_adapter(outcome.gain, outcome.confidence, base.confidence):
            return replace(outcome, correct=base.correct)
        return outcome

    return {name: judged(outcome) for name, outcome in by.items()}


def _joined(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The family of each; those in which the same is asked, by its content, are one, named by the first of them: a
    query that came under two names would otherwise stand on both sides of a split."""
    parent = {name: name for name in map(_family, outcomes)}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    asked: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.digest:
            first, second = sorted((root(asked.setdefault(outcome.digest, _family(outcome))), root(_family(outcome))))
            parent[second] = first
    return tuple(root(_family(outcome)) for outcome in outcomes)


def _compared(strategies: set[str], known: Sequence[dict[str, Outcome]]) -> set[str]:
    """The strategies, without those that keep queries of enough families from having been tried with all: one that was
    served now and then, and never collected, must not make everything else incomparable."""

    def judged(names: set[str]) -> int:
        return len({_family(by[BASE]) for by in known if by.keys() >= names})

    left = strategies
    while len(left) > 2 and judged(left) < MIN_FAMILIES:
        left = left - {min(sorted(left - {BASE}), key=lambda s: judged({BASE, s}))}
    return left if judged(left) >= MIN_FAMILIES else strategies


def _check(found: Sequence[Outcome], known: Sequence[dict[str, Outcome]], strategies: set[str]) -> None:
    collect = "collect more with `autottt collect`"
    if not found:
        raise PolicyError(
            "there are no outcomes to learn from. `autottt collect` measures some; of what was served, those queries "
            "give some whose right answer is known (--answers) and on which everything was measured"
        )
    if len(strategies) < 2 or BASE not in strategies:
        raise PolicyError(
            f"a policy chooses between {BASE} and others; the outcomes are of {sorted(strategies)}; {collect}"
        )
    if not any(outcome.features for outcome in found):
        raise PolicyError(
            "these outcomes have no features (imported, or of over-long tasks only?); a policy needs those that "
            "`autottt collect` measures. `autottt outcomes show` summarises them"
        )
    if not any(by.keys() >= strategies for by in known):
        raise PolicyError(f"no query has an outcome for each of {', '.join(sorted(strategies))}; {collect}")
    for by in known:
        base = by[BASE]
        if base.features_version != FEATURES_VERSION or set(base.features) != set(NAMES[1]):
            odd = sorted(set(base.features) ^ set(NAMES[1]))
            names = f" ({len(odd)} names differ: {', '.join(odd[:3])}{' ...' if odd[3:] else ''})" if odd else ""
            raise PolicyError(
                f"{base.task_id}: features of version {base.features_version}{names}; this package measures "
                f"version {FEATURES_VERSION}; collect again into a new store"
            )


def _table(base_hash: str, known: Sequence[dict[str, Outcome]], strategies: set[str]) -> OutcomeTable:
    able = {s: [s not in by or by[s].status != "too_few" for by in known] for s in strategies}
    mean_cost = {
        s: np.mean([by[s].cost for by, can in zip(known, able[s], strict=True) if can and s in by] or [math.inf])
        for s in strategies
    }
    names = (BASE, *sorted(strategies - {BASE}, key=lambda s: (mean_cost[s], s)))
    bases = [by[BASE] for by in known]
    return OutcomeTable(
        base_hash,
        names,
        families=_joined(bases),
        datasets=tuple(b.dataset for b in bases),
        tasks=tuple(b.task_id for b in bases),
        groups=tuple(b.group or b.task_id for b in bases),
        kinds=tuple(b.kind for b in bases),
        X=np.array([[b.features[name] for name in NAMES[1]] for b in bases]),
        correct=np.array([[by[s].correct if s in by else np.nan for s in names] for by in known]),
        costs=np.array([[by[s].cost if s in by else np.nan for s in names] for by in known]),
        probe_cost=np.array([b.probe_cost for b in bases]),
        applicable=np.array([able[s] for s in names]).T,
        unparsed=np.array([[s in by and by[s].status in UNPARSED for s in names] for by in known]),
    )
