"""The outcome table: outcomes as arrays, one row per query and seed, one column per strategy. Knows nothing about
learning.

Axes: N cases, S strategies, F features.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ttt_core.errors import PolicyError
from .adapter_acceptance import rejects_adapter
from .fast_inference import Floats
from .features import NAMES, REQUIRED, STAGE_0
from .outcomes import BASE, Key, Outcome, judged_differently

MIN_FAMILIES = 4
"""Families below which no policy can be trained."""
UNPARSED = ("unreadable", "failed")
"""Statuses of outcomes without an answer."""
Booleans = NDArray[np.bool_]


class RoutedCases(NamedTuple):
    """What a policy does with each of N cases."""

    choice: NDArray[np.int64]
    """Index of the strategy whose answer is given."""
    measured: Booleans
    """Whether the probe (stage 1) was run."""
    wasted_cost: Floats
    """Relative cost of the strategies tried before, whose answers could not be parsed."""
    kept: Booleans
    """Whether the answer is the in-context one and within the risk guarantee (`Decision.may_keep`)."""

    @classmethod
    def empty(cls, count: int) -> RoutedCases:
        """Arrays for `count` cases, to be filled."""
        return cls(np.zeros(count, np.int64), np.zeros(count, bool), np.zeros(count), np.zeros(count, bool))

    def take(self, chosen: NDArray[np.int64]) -> RoutedCases:
        """The cases at these indices."""
        return RoutedCases(self.choice[chosen], self.measured[chosen], self.wasted_cost[chosen], self.kept[chosen])

    def assign(self, chosen: NDArray[np.int64], other: RoutedCases) -> None:
        """Overwrites the cases at these indices."""
        for column, values in zip(self, other, strict=True):
            column[chosen] = values


@dataclass(frozen=True)
class OutcomeTable:
    """Outcomes as arrays."""

    base_hash: str
    strategies: tuple[str, ...]
    """`in_context` first, then by mean cost."""
    families: tuple[str, ...]
    """[N]; for a query without a family the name of its group, or its own."""
    datasets: tuple[str, ...]
    """[N]"""
    tasks: tuple[str, ...]
    """[N], names of the queries."""
    groups: tuple[str, ...]
    """[N], the tasks: queries of one task share their demonstrations."""
    kinds: tuple[str, ...]
    """[N]"""
    X: Floats
    """[N, F], all stages."""
    correct: Floats
    """[N, S], 0 or 1, as the controller would serve it: where it rejects an adapter (`rejects_adapter`), the
    in-context answer counts; NaN where a strategy was not tried. `in_context` always was."""
    alone: Floats
    """[N, S], the same of each strategy by itself, without a controller."""
    costs: Floats
    """[N, S], relative costs; NaN likewise."""
    probe_cost: Floats
    """[N], relative cost of the probe (stage 1)."""
    applicable: Booleans
    """[N, S], false where a query has too few demonstrations for a strategy. Such a case is no training data for the
    strategy, the strategy is not chosen, and the in-context answer counts in its place."""
    unparsed: Booleans
    """[N, S], whether there is no answer that can be parsed: then another strategy is tried."""
    prompt_format: str = ""
    """Format of the prompts; empty if unknown."""
    starting_adapter: str = ""
    """Digest of the adapter that training started from; empty if it started from zero."""
    excluded: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)
    """Strategy that was tried on too few of the queries that others were tried on -> whether it is right by itself and
    its relative cost, [N] each, NaN where it was not tried."""
    recipes: Mapping[str, str] = field(default_factory=dict)
    """`strategy/kind` -> digest of the recipe, where known."""
    over_long: int = 0
    """Queries that are excluded because they exceed the model's context window."""
    unmeasured: int = 0
    """Other queries that are excluded because the in-context answer or the features are missing."""
    feature_names: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: dict(NAMES))
    """Stage -> names of the columns of `X` that are available after it; those of stage 0 first."""
    missing_features: tuple[str, ...] = ()
    """Features of this package that some outcomes lack: the table goes without them."""
    ignored_features: tuple[str, ...] = ()
    """Features of outcomes that this package does not measure."""
    features_versions: tuple[int, ...] = ()
    """Versions of the features of the outcomes; several are used together by their names."""

    def __len__(self) -> int:
        return len(self.families)

    def stage(self, stage: int) -> Floats:
        """The features that are available after a stage [N, F]."""
        return self.X[:, : len(self.feature_names[stage])]

    def utilities(self, cost_weight: float) -> Floats:
        """[N, S]: accuracy minus weighted cost of each strategy, as the controller would serve it."""
        return self.correct - cost_weight * self.costs

    def utilities_alone(self, cost_weight: float) -> Floats:
        """[N, S]: the same of each strategy by itself."""
        return self.alone - cost_weight * self.costs

    def score_routing(self, routed: RoutedCases) -> tuple[Floats, Floats]:
        """Whether each case [N] was answered right, and its total relative cost, including the in-context answer."""
        index, choice = np.arange(len(self)), routed.choice
        costs = self.costs[index, choice] + (choice != 0) * self.costs[:, 0]
        return self.correct[index, choice], costs + routed.measured * self.probe_cost + routed.wasted_cost

    @property
    def digest(self) -> str:
        """Content digest: equal for equal outcomes."""
        names = (self.base_hash, self.strategies, self.datasets, self.tasks)
        sha = hashlib.sha256(json.dumps(names).encode())
        for numbers in (self.X, self.correct, self.costs, self.probe_cost):
            sha.update(np.ascontiguousarray(numbers).tobytes())
        return sha.hexdigest()[:16]

    @property
    def fully_observed(self) -> Booleans:
        """Whether every strategy was tried [N]."""
        return np.asarray(~np.isnan(self.correct).any(axis=1), dtype=np.bool_)

    @property
    def excluded_strategies(self) -> tuple[str, ...]:
        """Names of the excluded strategies, sorted."""
        return tuple(sorted(self.excluded))

    def complete(self) -> OutcomeTable:
        """The cases on which every strategy was tried; only they can be evaluated on."""
        return self.take(np.flatnonzero(self.fully_observed))

    def take(self, chosen: NDArray[np.int64]) -> OutcomeTable:
        """The cases at these indices."""
        families, datasets, tasks, groups, kinds = (
            tuple(column[i] for i in chosen)
            for column in (self.families, self.datasets, self.tasks, self.groups, self.kinds)
        )
        return replace(
            self, families=families, datasets=datasets, tasks=tasks, groups=groups, kinds=kinds, X=self.X[chosen],
            correct=self.correct[chosen], alone=self.alone[chosen], costs=self.costs[chosen],
            probe_cost=self.probe_cost[chosen],
            applicable=self.applicable[chosen], unparsed=self.unparsed[chosen],
            excluded={name: (right[chosen], costs[chosen]) for name, (right, costs) in self.excluded.items()},
        )  # fmt: skip

    def best_of_tasks(self, cost_weight: float) -> NDArray[np.int64]:
        """For each case [N] the strategy with the highest utility, by itself, over all queries and seeds of its task
        (VBS per task)."""
        _, task = np.unique(np.array(list(zip(self.datasets, self.groups, strict=True))), axis=0, return_inverse=True)
        utilities = self.utilities_alone(cost_weight)
        sums = np.stack([np.bincount(task, weights=utilities[:, s]) for s in range(utilities.shape[1])], axis=1)
        return np.asarray(sums.argmax(axis=1)[task], dtype=np.int64)


def build_outcome_table(outcomes: Iterable[Outcome]) -> OutcomeTable:
    """The table of all queries on which `in_context` was tried and the features were measured.

    Its features are those that this package measures and all outcomes have. Over-long queries are counted and excluded.
    Of an outcome that occurs again the first counts. Raises `PolicyError` if the outcomes are of several models, prompt
    formats or recipes, or of two tasks under one name, lack `REQUIRED` features, or are too few to train on.
    """
    rows = list(outcomes)
    _refuse_contradictions(rows)
    base_hash, prompt_format = _common_model(rows), _common_prompt_format(rows)
    recipes = _common_recipes(rows)
    by_query: dict[tuple[str, str, int], dict[str, Outcome]] = {}
    for outcome in sorted(rows, key=lambda o: o.key):
        query = by_query.setdefault((outcome.dataset, outcome.task_id, outcome.seed), {})
        query.setdefault(outcome.strategy, outcome)
    measured = [_as_run(by) for by in by_query.values() if BASE in by and by[BASE].features]
    strategies = _comparable_strategies({o.strategy for o in rows}, measured)
    _check(rows, measured, strategies)
    long = over_long(rows)
    return replace(
        _table(base_hash, measured, strategies),
        recipes={place: digest for place, digest in recipes.items() if place.split("/")[0] in strategies},
        over_long=len(long),
        prompt_format=prompt_format,
        starting_adapter=_common_starting_adapter(rows),
        unmeasured=len(by_query) - len(measured) - len(long),
        excluded={name: _alone(name, measured) for name in {o.strategy for o in rows} - strategies},
    )


def _refuse_contradictions(outcomes: Sequence[Outcome]) -> None:
    """Raises `PolicyError` for outcomes of different tasks under one name, as several stores may hold them, and for an
    outcome that was judged in two ways."""
    digests: dict[tuple[str, str], str] = {}
    judged: dict[Key, Outcome] = {}
    for outcome in outcomes:
        task = outcome.dataset, outcome.task_id
        if outcome.digest and digests.setdefault(task, outcome.digest) != outcome.digest:
            raise PolicyError(
                f"two tasks have the name {outcome.task_id} in the data set {outcome.dataset!r} (digests "
                f"{digests[task]} and {outcome.digest}): outcomes are known by these names. Collect one of them under "
                "another id, or from a file of another name, or train on their stores apart"
            )
        if judged_differently(judged.setdefault(outcome.key, outcome), outcome):
            raise PolicyError(
                f"{outcome.task_id}: {outcome.strategy} with seed {outcome.seed} is right in one of the outcomes and "
                "wrong in another one, with the same answer: leave out the store that was judged wrongly"
            )


def over_long(outcomes: Iterable[Outcome]) -> set[tuple[str, str, int]]:
    """Queries that exceed the model's context window, by data set, name and seed. They have no features, and no
    in-context cost that other costs could be multiples of."""
    return {(o.dataset, o.task_id, o.seed) for o in outcomes if o.strategy == BASE and o.status == "too_long"}


def _common_model(outcomes: Sequence[Outcome]) -> str:
    """The content hash of the one model that answered; empty without outcomes."""
    hashes = sorted({o.base_hash for o in outcomes})
    if len(hashes) > 1:
        raise PolicyError(
            f"outcomes of {len(hashes)} models ({', '.join(h[:12] for h in hashes)}); a policy is for one model: "
            "choose it with `train-policy --model-hash HASH`"
        )
    return "".join(hashes)


def _common_prompt_format(outcomes: Sequence[Outcome]) -> str:
    """The one prompt format of the outcomes, as far as it is known."""
    formats = sorted({o.prompt_format for o in outcomes} - {""})
    if len(formats) > 1:
        raise PolicyError(f"outcomes of {len(formats)} prompt formats ({', '.join(formats)}); keep a store for each")
    return "".join(formats)


def _common_starting_adapter(outcomes: Sequence[Outcome]) -> str:
    """The one adapter that training started from; empty if it started from zero."""
    adapters = sorted({o.starting_adapter for o in outcomes})
    if len(adapters) > 1:
        names = ", ".join(adapter[:12] or "none" for adapter in adapters)
        raise PolicyError(f"outcomes of {len(adapters)} starting adapters ({names}); keep a store for each")
    return "".join(adapters)


def _common_recipes(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """`strategy/kind` -> digest of its one recipe, where known."""
    recipes: dict[str, str] = {}
    for outcome in outcomes:
        place = f"{outcome.strategy}/{outcome.kind}"
        if outcome.recipe and recipes.setdefault(place, outcome.recipe) != outcome.recipe:
            raise PolicyError(
                f"outcomes of {outcome.strategy} on {outcome.kind} tasks are of several recipes, {recipes[place]} and "
                f"{outcome.recipe}, which differ in accuracy and cost; keep a store for each"
            )
    return recipes


def _family(outcome: Outcome) -> str:
    return outcome.family or outcome.group or outcome.task_id


def _as_run(by: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """The outcomes of a query by strategies that are run by themselves: the in-context answer replaces that of a
    strategy with too few demonstrations, and that of adapters which cross-validation rejects (`rejects_adapter`)."""
    base = by[BASE]

    def run(outcome: Outcome) -> Outcome:
        if outcome.status == "too_few":  # the status distinguishes it from strategies that were tried
            return replace(outcome, correct=base.correct, relative_cost=base.relative_cost)
        answered = outcome.answer and base.answer
        if answered and rejects_adapter(outcome.held_out_gain, outcome.confidence, base.confidence):
            return replace(outcome, correct=base.correct)
        return outcome

    return {name: run(outcome) for name, outcome in by.items()}


def _as_served(outcome: Outcome, base: Outcome) -> float:
    """Whether a query is answered right where the controller runs a strategy: the in-context answer replaces that of an
    adapter if it is more certain. Cross-validated adapters were compared before (`_as_run`); they alone have a gain
    that is not 1."""
    trained = outcome.backward_tokens > 0 and outcome.held_out_gain == 1
    known = outcome.answer and base.answer and outcome.confidence > 0
    rejected = trained and known and rejects_adapter(None, outcome.confidence, base.confidence)
    return base.correct if rejected else outcome.correct


def merged_families(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The family of each outcome; for a query without one the name of its group, or its own. Families that share a
    task are merged (`merged_by_content`)."""
    return merged_by_content([_family(outcome) for outcome in outcomes], [outcome.digest for outcome in outcomes])


def merged_by_content(families: Sequence[str], digests: Sequence[str]) -> tuple[str, ...]:
    """The families of queries with these digests of their content, empty where it is unknown. Families that share a
    query are merged under the first name: else a query with two names could be on both sides of a split."""
    parent = {name: name for name in families}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first_family: dict[str, str] = {}
    for family, digest in zip(families, digests, strict=True):
        if digest:
            first, second = sorted((root(first_family.setdefault(digest, family)), root(family)))
            parent[second] = first
    return tuple(map(root, families))


def _comparable_strategies(strategies: set[str], measured: Sequence[dict[str, Outcome]]) -> set[str]:
    """The strategies without those that were tried too rarely to be compared: those for which the number of strategies
    times that of the families on which all of them were tried is largest. Queries of one family tell much the same, so
    families are counted, and queries where these are equal. A strategy that was tried on a few tasks, or only explored
    in serving, must not leave only these to judge the others on."""
    several = [by for by in measured if len(by) > 2]  # not of serving, where in_context and one other are tried

    def families(names: set[str], queries: Sequence[dict[str, Outcome]]) -> int:
        return len({_family(by[BASE]) for by in queries if by.keys() >= names})

    def compared(names: set[str]) -> tuple[int, int]:
        queries = sum(by.keys() >= names for by in several)
        return (len(names) - 1) * families(names, several), (len(names) - 1) * queries

    def coverage(strategy: str) -> tuple[int, int, int, str]:
        tried = sum(strategy in by for by in several)
        return families({BASE, strategy}, several), tried, families({BASE, strategy}, measured), strategy

    rarest_first = sorted(strategies - {BASE}, key=coverage)
    sets = [strategies - set(rarest_first[:n]) for n in range(max(1, len(rarest_first)))]
    enough = [names for names in sets if families(names, measured) >= MIN_FAMILIES]
    return max(enough, key=compared, default=strategies)


def _alone(strategy: str, measured: Sequence[dict[str, Outcome]]) -> tuple[Floats, Floats]:
    """Whether a strategy is right by itself on each query, and its relative cost; NaN where it was not tried, or could
    not be."""
    outcomes = [by.get(strategy) for by in measured]
    tried = [outcome if outcome and outcome.status != "too_few" else None for outcome in outcomes]
    right = [outcome.correct if outcome else np.nan for outcome in tried]
    return np.array(right), np.array([outcome.relative_cost if outcome else np.nan for outcome in tried])


def _check(outcomes: Sequence[Outcome], measured: Sequence[dict[str, Outcome]], strategies: set[str]) -> None:
    """Raises `PolicyError` if no policy can be trained on the outcomes."""
    collect = "collect more with `autottt collect`"
    if not outcomes:
        raise PolicyError(
            "there are no outcomes to train on: measure some with `autottt collect`. Served queries yield outcomes if "
            "their right answer is known (--answers) and all features were measured"
        )
    if len(strategies) < 2 or BASE not in strategies:
        raise PolicyError(
            f"a policy chooses between {BASE} and other strategies; these outcomes are of {sorted(strategies)}; "
            + collect
        )
    if not any(outcome.features for outcome in outcomes):
        raise PolicyError(
            "these outcomes have no features (imported, or of over-long tasks only?); a policy needs the features that "
            "`autottt collect` measures. `autottt outcomes show` summarises outcomes"
        )
    if not any(by.keys() >= strategies for by in measured):
        raise PolicyError(f"no query has an outcome for each of {', '.join(sorted(strategies))}; {collect}")
    others = strategies - {BASE}
    if not any(by.keys() >= strategies and any(by[s].status != "too_few" for s in others) for by in measured):
        raise PolicyError(
            f"every query has too few demonstrations for {', '.join(sorted(others))}, so there is nothing to choose; "
            "collect on tasks with more demonstrations"
        )
    for outcome in (outcome for by in measured for outcome in by.values()):
        if outcome.correct not in (0, 1):
            raise PolicyError(
                f"{outcome.task_id}: expected outcomes that are right (correct = 1) or wrong (0) to train a policy on; "
                f"received correct = {outcome.correct:g} of {outcome.strategy}"
            )
    for by in measured:
        missing = [name for name in REQUIRED if name not in by[BASE].features]
        if missing:
            raise PolicyError(
                f"{by[BASE].task_id}: its outcome lacks features that every policy needs: {', '.join(missing)}; "
                "collect again into a new store with `autottt collect TASKS --store NEW`"
            )


def _table(base_hash: str, measured: Sequence[dict[str, Outcome]], strategies: set[str]) -> OutcomeTable:
    """The arrays of `build_outcome_table`."""
    applicable = {s: [s not in by or by[s].status != "too_few" for by in measured] for s in strategies}
    mean_cost = {
        s: np.mean(
            [by[s].relative_cost for by, usable in zip(measured, applicable[s], strict=True) if usable and s in by]
            or [math.inf]
        )
        for s in strategies
    }
    names = (BASE, *sorted(strategies - {BASE}, key=lambda s: (mean_cost[s], s)))
    bases = [by[BASE] for by in measured]
    common = set.intersection(*(set(b.features) for b in bases))
    columns = [name for name in NAMES[1] if name in common]
    return OutcomeTable(
        base_hash,
        names,
        families=merged_families(bases),
        datasets=tuple(b.dataset for b in bases),
        tasks=tuple(b.task_id for b in bases),
        groups=tuple(b.group or b.task_id for b in bases),
        kinds=tuple(b.kind for b in bases),
        X=np.array([[b.features[name] for name in columns] for b in bases]),
        correct=np.array([[_as_served(by[s], by[BASE]) if s in by else np.nan for s in names] for by in measured]),
        alone=np.array([[by[s].correct if s in by else np.nan for s in names] for by in measured]),
        costs=np.array([[by[s].relative_cost if s in by else np.nan for s in names] for by in measured]),
        probe_cost=np.array([b.probe_cost for b in bases]),
        applicable=np.array([applicable[s] for s in names]).T,
        unparsed=np.array([[s in by and by[s].status in UNPARSED for s in names] for by in measured]),
        feature_names={0: tuple(name for name in columns if name in STAGE_0), 1: tuple(columns)},
        missing_features=tuple(name for name in NAMES[1] if name not in common),
        ignored_features=tuple(sorted(set().union(*(b.features for b in bases)) - set(NAMES[1]))),
        features_versions=tuple(sorted({b.features_version for b in bases})),
    )
