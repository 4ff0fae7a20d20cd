"""Training: outcomes become a policy, judged on families that it has not seen. Knows nothing about files.

What a training chooses (the kind of each head, its calibration, the threshold, the single best strategy) it chooses
within the training side of every outer split. What it chooses from (`heads.CANDIDATES`: which estimators, how free,
from how many families on) was settled before, on generated tasks that the shipped scorecard is of as well: it flatters
the policy by what that was worth (see benchmarks/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from ..ttt_core.errors import PolicyError
from .classifiers import (
    CANDIDATES,
    BinaryTarget,
    CalibratedClassifier,
    CostRegressor,
    eligible_candidates,
    fit_classifiers,
    fit_cost_regressor,
    group_folds,
)
from .fast_inference import Floats
from .features import NAMES
from .outcome_table import MIN_FAMILIES, OutcomeTable, RoutedCases, build_outcome_table
from .outcomes import Outcome
from .policy import HeuristicPolicy, simulate
from .scorecard import OutOfFoldDecisions, best_rule, leakage, scorecard, spread
from .trained import NEVER, Change, TrainedPolicy, compose_probabilities

DEFAULT_ACCURACY_PER_MAX_COST = 0.1
"""Accuracy that the most expensive strategy costs at the default price."""
LOSS_ALLOWED = 0.005
"""Accuracy that not measuring stage 1 may cost."""
CONFIDENCE = 0.9
"""Of the promise about answers that are kept in context."""
LEAST_FOR_COSTS = 100
"""Families from which on costs are foretold for each query; with fewer they are means of kinds."""
REPEATS = 5
"""Draws of the folds that a scorecard is of."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a policy is fitted."""

    cost_weight: float
    seed: int
    fold_count: int
    candidates: tuple[str, ...]
    risk: float | None = None
    predict_costs: bool = True
    """Whether costs are foretold for each query; else they are means of kinds."""

    def for_families(self, count: int) -> TrainingSettings:
        """These settings without what takes more families. They are settled once, by the smallest part that anything
        is learned from, so that what is judged is what is shipped."""
        return replace(
            self, candidates=eligible_candidates(self.candidates, count), predict_costs=count >= LEAST_FOR_COSTS
        )


def trainable_table(outcomes: Iterable[Outcome]) -> OutcomeTable:
    """The outcome table that a policy is trained on. Raises `PolicyError` when it has too few families to hold out."""
    table = build_outcome_table(outcomes)
    families = len(set(table.complete().families))
    if families < MIN_FAMILIES:
        raise PolicyError(
            f"{families} families of tasks; holding families out takes at least {MIN_FAMILIES} "
            "(and some dozens to be worth something); collect more with `autottt collect`"
        )
    return table


def train_policy(
    outcomes: Iterable[Outcome],
    *,
    cost_weight: float | None = None,
    seed: int = 0,
    fold_count: int = 5,
    candidates: Sequence[str] = tuple(CANDIDATES),
    risk: float | None = None,
    repeats: int = REPEATS,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrainedPolicy:
    """A policy for the model that the outcomes are of, with its scorecard.

    `price` is the accuracy that one in-context cost is worth; by default the most expensive strategy costs 0.1 on
    average. `risk` is a promise: with `CONFIDENCE`, at most this share of the answers that are kept in context is wrong
    (see `_kept_from`). The scorecard is of `repeats` draws of the folds; its details are of the first. They are made by
    `workers` processes, and `on_progress` is told how many of how many are done. The same outcomes and seed give the
    same policy. Raises `PolicyError` when there is too little to learn from.
    """
    if cost_weight is not None and not 0 <= cost_weight < math.inf:
        raise PolicyError(
            f"price: expected the accuracy that one in-context cost is worth, 0 or more; received {cost_weight}"
        )
    if risk is not None and not 0 < risk < 1:
        raise PolicyError(f"risk: expected a share between 0 and 1; received {risk}")
    if fold_count < 2 or repeats < 1:
        raise PolicyError(f"expected 2 folds or more, drawn once or more; received {fold_count} and {repeats}")
    if not candidates or set(candidates) - set(CANDIDATES):
        raise PolicyError(
            f"candidates: expected some of {', '.join(CANDIDATES)}; received {', '.join(candidates) or 'none'}"
        )
    cases = trainable_table(outcomes)
    whole = cases.complete()
    worth = DEFAULT_ACCURACY_PER_MAX_COST / max(_mean_costs(cases)[""]) if cost_weight is None else cost_weight
    groups = len(set(whole.families))
    fewest = len(set(cases.families)) - math.ceil(groups / min(fold_count, groups))
    settings = TrainingSettings(worth, seed, fold_count, tuple(candidates), risk).for_families(fewest)
    wanted = [(cases, replace(settings, seed=seed + n), True) for n in range(repeats)]
    *draws, at_random = _drawn([*wanted, (cases, settings, False)], workers, on_progress)
    judged = scorecard(whole, draws, worth, seed)
    judged |= {"leakage": leakage(whole, draws[0], at_random, worth), "repeats": spread(whole, draws, worth)}
    judged |= {"learned_from": len(cases), "left_out": list(cases.left_out), "unmeasured": cases.unmeasured}
    return replace(fit(cases, settings), scorecard=judged)


def _drawn(
    wanted: Sequence[tuple[OutcomeTable, TrainingSettings, bool]],
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[OutOfFoldDecisions]:
    """What `_held_out` gives for each, in order."""
    found = []
    columns = zip(*wanted, strict=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else nullcontext() as pool:
        for one in map(_held_out, *columns) if pool is None else pool.map(_held_out, *columns):
            found.append(one)
            if on_progress is not None:
                on_progress(len(found), len(wanted) + 1)
    return found


def _held_out(cases: OutcomeTable, settings: TrainingSettings, by_family: bool) -> OutOfFoldDecisions:
    """What a policy that was trained on cases of other families, or on other cases, does with each that can be judged.

    The folds are of the cases that can be judged; all others teach in every one that does not hold their family out.
    """
    whole = cases.complete()
    everywhere, families = np.flatnonzero(~cases.fully_observed), np.array(cases.families)
    groups = whole.families if by_family else [str(n) for n in range(len(whole))]
    found = OutOfFoldDecisions.empty(len(whole), len(whole.strategies))
    found.by_thumb[:], found.thumb_measured[:], found.thumb_wasted_cost[:], _ = simulate(HeuristicPolicy(), whole)
    place = np.flatnonzero(cases.fully_observed)
    for learn, held in group_folds(groups, settings.fold_count, settings.seed):
        unseen = whole.take(held)
        others = everywhere[~np.isin(families[everywhere], unseen.families)]
        policy = fit(cases.take(np.concatenate([place[learn], others])), settings)
        chances = {stage: policy.probabilities(stage, unseen.stage(stage)) for stage in NAMES}
        costs = policy.expected_costs(unseen.kinds, unseen.stage(0))
        served = _choose(policy, unseen, chances, costs)
        found.choice[held], found.measured[held], found.wasted_cost[held], found.kept[held] = served
        found.free_in_context_probability[held], found.in_context_probability[held] = chances[0][:, 0], chances[1][:, 0]
        found.probabilities[held], found.expected[held] = chances[1], costs
        found.shuffled[:, held] = _shuffled(policy, unseen, settings.seed)
        known = whole.take(learn)
        found.single[held] = known.utilities(settings.cost_weight).mean(axis=0).argmax()
        found.by_kind[held] = _best_of_kinds(known, unseen.kinds, settings.cost_weight)
        found.other[held] = other = 1 + known.correct[:, 1:].mean(axis=0).argmax()
        found.uplift[held] = chances[1][:, other] - chances[1][:, 0]
        rule = best_rule(known, settings.cost_weight)
        found.by_rule[held], found.rule_measured[held] = rule.choose(unseen), rule.measures
    return found


def _shuffled(policy: TrainedPolicy, cases: OutcomeTable, seed: int) -> Floats:
    """The chance of a right in-context answer [F, N], each feature in turn taken from another case."""
    order = np.random.default_rng(seed).permutation(len(cases))
    found = []
    for feature in range(cases.X.shape[1]):
        rows = cases.X.copy()
        rows[:, feature] = rows[order, feature]
        found.append(policy.difficulty[1].probabilities(rows))
    return np.array(found)


def _best_of_kinds(known: OutcomeTable, kinds: Sequence[str], price: float) -> NDArray[np.int64]:
    """The strategy that was worth most on known cases of each of the kinds; on all, where a kind is not known."""
    worth, of = known.utilities(price), np.array(known.kinds)
    best = {kind: int(worth[of == kind].mean(axis=0).argmax()) for kind in set(known.kinds)}
    return np.array([best.get(kind, int(worth.mean(axis=0).argmax())) for kind in kinds], dtype=np.int64)


def fit(cases: OutcomeTable, settings: TrainingSettings) -> TrainedPolicy:
    """A policy without a scorecard."""
    fitted = {stage: _fit_stage(cases, cases.stage(stage), settings) for stage in NAMES}
    spending, foretold = _fit_costs(cases, settings)
    whole = cases.complete()
    worth = whole.utilities(settings.cost_weight).mean(axis=0)
    free = cases.stage(0)
    deciles = np.quantile(cases.X, np.arange(1, 10) / 10, axis=0).T
    policy = TrainedPolicy(
        base_hash=cases.base_hash,
        strategies=cases.strategies,
        difficulty={stage: head for stage, (head, _, _) in fitted.items()},
        changes={stage: changes for stage, (_, changes, _) in fitted.items()},
        mean_costs=_mean_costs(cases),
        cost_weight=settings.cost_weight,
        skip_probe_threshold=1.0,
        ranking=tuple(cases.strategies[i] for i in np.argsort(-worth, kind="stable")),
        feature_min=tuple(free.min(axis=0).tolist()),
        feature_max=tuple(free.max(axis=0).tolist()),
        deciles=tuple(map(tuple, deciles.tolist())),
        cdf=tuple(map(tuple, (cases.X[:, :, None] <= deciles).mean(axis=0).tolist())),
        families=tuple(sorted(set(cases.families))),
        datasets=tuple(sorted(set(cases.datasets))),
        seed=settings.seed,
        cost_models=spending,
        prompt_format=cases.prompt_format,
        recipes=dict(cases.recipes),
    )
    judged = cases.fully_observed
    chances = {stage: held_out[judged] for stage, (_, _, held_out) in fitted.items()}
    costs = policy.expected_costs(whole.kinds, whole.stage(0)) if foretold is None else foretold[judged]
    policy = replace(policy, skip_probe_threshold=_enough(policy, whole, chances, costs))
    if settings.risk is None:
        return policy
    return replace(policy, keep_threshold=_kept_from(policy, whole, chances, costs, settings.risk), risk=settings.risk)


def _fit_stage(
    cases: OutcomeTable, rows: Floats, settings: TrainingSettings
) -> tuple[CalibratedClassifier, tuple[Change, ...], Floats]:
    """What is learned from the features of a stage, and the held-out chance of each strategy [N, S]. A strategy teaches
    where it was tried: what it mends where in-context was wrong, what it spoils where that was right."""
    base, families = cases.correct[:, 0], np.array(cases.families)
    asked = [BinaryTarget(rows, base, families)]
    for right in np.where(cases.applicable, cases.correct, np.nan)[:, 1:].T:
        mended, spoiled = np.where(base == 0, right, np.nan), np.where(base == 1, 1 - right, np.nan)
        asked += [BinaryTarget(rows, mended, families, prior=0), BinaryTarget(rows, spoiled, families, prior=0)]
    (head, chance), *others = fit_classifiers(asked, settings.fold_count, settings.seed, settings.candidates)
    mends, spoils = others[::2], others[1::2]
    changes = tuple(Change(better, worse) for (better, _), (worse, _) in zip(mends, spoils, strict=True))
    of_mends, of_spoils = (np.stack([c for _, c in some], axis=1) for some in (mends, spoils))
    return head, changes, compose_probabilities(chance, of_mends, of_spoils)


def _fit_costs(cases: OutcomeTable, settings: TrainingSettings) -> tuple[tuple[CostRegressor, ...], Floats | None]:
    """What foretells the cost of each strategy but in-context, and what it foretold of each case with its family held
    out [N, S]; nothing, where settings say so."""
    if not settings.predict_costs:
        return (), None
    fitted = [
        fit_cost_regressor(cases.stage(0), costs, cases.families, settings.fold_count, settings.seed)
        for costs in _known_costs(cases)[:, 1:].T
    ]
    foretold = np.stack([np.zeros(len(cases)), *(held_out for _, held_out in fitted)], axis=1)
    return tuple(amount for amount, _ in fitted), foretold


def _known_costs(cases: OutcomeTable) -> Floats:
    """What each strategy cost where it could be used [N, S], not a number elsewhere; 0 for one that never could."""
    costs = np.where(cases.applicable, cases.costs, np.nan)
    return np.where(np.isnan(costs).all(axis=0), 0.0, costs)


def _mean_costs(cases: OutcomeTable) -> dict[str, tuple[float, ...]]:
    """Of each kind on which every strategy was tried, and of all."""
    whole = cases.complete()
    kinds, costs = np.array(whole.kinds), np.where(whole.applicable, whole.costs, np.nan)
    usual = _means(costs, [0.0] * costs.shape[1])
    return {"": tuple(usual), **{k: tuple(_means(costs[kinds == k], usual)) for k in sorted(set(whole.kinds))}}


def _means(costs: Floats, otherwise: Sequence[float]) -> list[float]:
    """Mean of the numbers in each column [S], or else something, where there are none."""
    known = ~np.isnan(costs)
    sums, counts = np.where(known, costs, 0.0).sum(axis=0), known.sum(axis=0)
    return [float(s / n) if n else o for s, n, o in zip(sums, counts, otherwise, strict=True)]


def _choose(policy: TrainedPolicy, cases: OutcomeTable, chances: Mapping[int, Floats], costs: Floats) -> RoutedCases:
    """What is done with each case, as `LearnedPolicy` and the graph do it."""
    settled, strange = (
        policy.can_skip_probe(chances[0], costs),
        policy.is_out_of_distribution(cases.stage(0), cases.kinds),
    )
    measured = ~settled & ~strange
    utilities = policy.utilities(np.where(measured[:, None], chances[1], chances[0]), costs)
    preferences = np.where(
        measured[:, None],
        policy.preferences(chances[1], costs, measured=True),
        policy.preferences(chances[0], costs, measured=False),
    )
    kept, preferences = preferences[:, 0] > -np.inf, np.where(cases.applicable, preferences, -np.inf)

    def best(case: int, tried: Sequence[int]) -> int | None:
        """What is tried on a case after others, if anything is worth its price."""
        left = [n for n in range(len(policy.strategies)) if cases.applicable[case, n] and n not in tried]
        if not left:
            return None
        usual = (
            policy.strategies.index(policy.fallback([policy.strategies[n] for n in left])) if strange[case] else None
        )
        found = max(left, key=lambda n: float(preferences[case, n])) if usual is None else usual
        return found if not tried or utilities[case, found] > 0 else None

    choice, before = np.where(settled, 0, preferences.argmax(axis=1)), np.zeros(len(cases))
    choice[strange] = [best(case, []) for case in np.flatnonzero(strange).tolist()]
    for case in np.flatnonzero(cases.unparsed[np.arange(len(cases)), choice]).tolist():
        choice[case], before[case] = cases.run_attempts(case, int(choice[case]), partial(best, case))
    return RoutedCases(choice, measured, before, kept & (choice == 0) & ~strange & ~cases.unparsed[:, 0])


def _enough(policy: TrainedPolicy, cases: OutcomeTable, chances: Mapping[int, Floats], costs: Floats) -> float:
    """The lowest threshold down to which skipping stage 1 loses at most `LOSS_ALLOWED` accuracy on held-out chances."""
    index = np.arange(len(cases))

    def accuracy(enough: float) -> float:
        choice = _choose(replace(policy, skip_probe_threshold=enough), cases, chances, costs).choice
        return float(cases.correct[index, choice].mean())

    lowest, needed = 1.0, accuracy(1.0) - LOSS_ALLOWED
    for threshold in np.linspace(0.99, 0.0, 100).round(2).tolist():
        if accuracy(threshold) < needed:
            break
        lowest = threshold
    return lowest


def _kept_from(
    policy: TrainedPolicy, cases: OutcomeTable, chances: Mapping[int, Floats], costs: Floats, risk: float
) -> float:
    """The lowest threshold, going down from 1, through which every one keeps the promise on held-out chances.

    Each is tested in turn (fixed sequence: Angelopoulos et al. 2021, "Learn then Test") by the probability of so few
    wrong answers among those that it keeps, were the risk as large as allowed. The first keeps four times as many as
    would pass without a single wrong one, so that a few wrong ones do not end it. `NEVER`, where none passes. Each
    family counts once, by one of its cases, since several would not be drawn one by one; the promise is for queries of
    other families like these.
    """
    order = np.random.default_rng(policy.seed).permutation(len(cases))
    _, firsts = np.unique(np.array(cases.families)[order], return_index=True)
    one_each = np.zeros(len(cases), dtype=bool)
    one_each[order[firsts]] = True
    least = 4 * math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - risk))
    found = NEVER
    for threshold in np.linspace(1.0, 0.0, 101).round(2).tolist():
        kept = _choose(replace(policy, keep_threshold=threshold, risk=risk), cases, chances, costs).kept & one_each
        if kept.sum() < least:
            continue
        wrong = int((1 - cases.correct[kept, 0]).sum())
        if float(binom.cdf(wrong, int(kept.sum()), risk)) > 1 - CONFIDENCE:
            break
        found = threshold
    return found
