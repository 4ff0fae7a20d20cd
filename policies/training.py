"""Training: fits a policy to outcomes and evaluates it on families that it was not trained on. Knows nothing about
files.

What training selects (the kind of classifier, its calibration, the thresholds, the SBS) it selects within the training
side of every outer split. The candidates (`classifiers.CANDIDATES`) and the families they need were selected earlier,
on generated tasks that the shipped scorecard evaluates as well, which makes that scorecard slightly optimistic (see
benchmarks/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..ttt_core.errors import PolicyError
from . import lazy
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
from .outcome_table import MIN_FAMILIES, Booleans, OutcomeTable, RoutedCases, build_outcome_table
from .outcomes import Outcome
from .policy import HeuristicPolicy
from .scorecard import OutOfFoldDecisions, best_rule, leakage, scorecard, spread
from .simulation import run_attempts, simulate
from .trained_policy import NEVER, Change, ProbePlan, TrainedPolicy, batched_stage, compose_probabilities, composed
from .unfamiliar import accuracy_margin, evidence_pays, fit_evidence, fit_familiarity, most_accurate
from .worker_processes import worker_pool

DEFAULT_ACCURACY_PER_MAX_COST = 0.1
"""Accuracy that the most expensive strategy costs with the default cost weight."""
PROBE_ACCURACY_TOLERANCE = 0.005
"""Accuracy that skipping the probe may lose where the in-context answer is kept."""
PROBE_MARGINS = np.linspace(0, 0.95, 20)
"""Quantiles of the leads by free features, the probe margins to choose from."""
UTILITY_MARGINS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0)
"""Leads in utility over the SBS to choose from; the last one is out of reach."""
SURE_THRESHOLDS = (NEVER, *np.linspace(0.99, 0.5, 50).round(2).tolist())
"""Probabilities to choose from, from which an in-context answer needs no such lead."""
CONFIDENCE = 0.9
"""Confidence of the risk guarantee."""
MIN_FAMILIES_FOR_COST_MODELS = 100
"""Families from which costs are predicted per query; below, the means of the kind are used."""
REPEATS = 5
"""Draws of the folds for a scorecard."""
SEEDS = 1 << 32
"""Seeds that scikit-learn has; others count modulo this number."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a policy is fitted."""

    cost_weight: float
    seed: int
    fold_count: int
    candidates: tuple[str, ...]
    risk: float | None = None
    predict_costs: bool = True
    """Whether costs are predicted per query; else the means of the kind are used."""
    by_free_features: bool = True
    """Whether any strategy may be chosen without the probe (`TrainedPolicy.probe_margin`)."""

    probe_costs: tuple[float, ...] = ()
    """Mean costs of the probe for each of which it is found when the probe pays (`TrainedPolicy.probe_plans`)."""

    def for_families(self, count: int) -> TrainingSettings:
        """These settings without the parts that need more families. Determined once, from the smallest training split,
        so that the evaluated and the final policy have the same settings."""
        return replace(
            self,
            candidates=eligible_candidates(self.candidates, count),
            predict_costs=count >= MIN_FAMILIES_FOR_COST_MODELS,
        )


def trainable_table(outcomes: Iterable[Outcome]) -> OutcomeTable:
    """The outcome table that a policy is trained on. Raises `PolicyError` if it has too few families to hold out."""
    table = build_outcome_table(outcomes)
    families = len(set(table.complete().families))
    if families < MIN_FAMILIES:
        raise PolicyError(
            f"{families} families of tasks; holding out families needs at least {MIN_FAMILIES} (and some dozens for a "
            "useful policy); collect more with `autottt collect`"
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
    """Trains a policy for the model of the outcomes, with its scorecard.

    `cost_weight` is the accuracy per one in-context cost; by default the most expensive strategy costs an accuracy of
    0.1 on average. `risk` adds a guarantee: with confidence `CONFIDENCE`, at most this share of the kept in-context
    answers is wrong (see `_select_keep_threshold`). The scorecard averages over `repeats` draws of the folds, evaluated
    by `workers` processes; `on_progress` gets the number of draws done and the total. Equal outcomes and seeds, modulo
    `SEEDS`, give equal policies. Raises `PolicyError` for invalid settings or too few outcomes.
    """
    _check_settings(cost_weight, risk, fold_count, repeats, candidates)
    seed %= SEEDS
    table = trainable_table(outcomes)
    whole = table.complete()
    groups = len(set(whole.families))
    weight = DEFAULT_ACCURACY_PER_MAX_COST / max(_mean_costs(table)[""]) if cost_weight is None else cost_weight
    smallest = len(set(table.families)) - math.ceil(groups / min(fold_count, groups))
    settings = TrainingSettings(weight, seed, fold_count, tuple(candidates), risk).for_families(smallest)
    jobs = [(table, replace(settings, seed=(seed + n) % SEEDS), True) for n in range(repeats)]
    *draws, at_random = _cross_validate_all([*jobs, (table, settings, False)], workers, on_progress)
    card = scorecard(whole, draws, weight, seed)
    card |= {"leakage": leakage(whole, draws[0], at_random, weight), "repeats": spread(whole, draws, weight)}
    card |= {
        "training_cases": len(table),
        "training_digest": table.digest,
        "excluded_strategies": list(table.excluded_strategies),
    }
    return replace(fit(table, settings), scorecard=card | {"unmeasured": table.unmeasured})


def _check_settings(
    cost_weight: float | None, risk: float | None, fold_count: int, repeats: int, candidates: Sequence[str]
) -> None:
    """Raises `PolicyError` for invalid settings."""
    if cost_weight is not None and not 0 <= cost_weight < math.inf:
        raise PolicyError(f"cost weight: expected accuracy per one in-context cost, 0 or more; received {cost_weight}")
    if risk is not None and not 0 < risk < 1:
        raise PolicyError(f"risk: expected a share above 0 and below 1; received {risk}")
    if fold_count < 2 or repeats < 1:
        raise PolicyError(f"expected at least 2 folds and 1 repeat; received {fold_count} and {repeats}")
    if not candidates or set(candidates) - set(CANDIDATES):
        raise PolicyError(
            f"candidates: expected some of {', '.join(CANDIDATES)}; received {', '.join(candidates) or 'none'}"
        )


def _cross_validate_all(
    jobs: Sequence[tuple[OutcomeTable, TrainingSettings, bool]],
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[OutOfFoldDecisions]:
    """The results of `_cross_validate` for each job, in order."""
    results = []
    columns = zip(*jobs, strict=True)
    with worker_pool(workers) if workers > 1 else nullcontext() as pool:
        for one in map(_cross_validate, *columns) if pool is None else pool.map(_cross_validate, *columns):
            results.append(one)
            if on_progress is not None:
                on_progress(len(results), len(jobs) + 1)
    return results


def _cross_validate(table: OutcomeTable, settings: TrainingSettings, by_family: bool) -> OutOfFoldDecisions:
    """Out-of-fold decisions for each fully observed case, by policies that were trained on other families (`by_family`)
    or on other cases.

    The folds divide the fully observed cases. All other cases are training data in every fold that does not hold out
    their family.
    """
    whole = table.complete()
    partial_cases, families = np.flatnonzero(~table.fully_observed), np.array(table.families)
    groups = whole.families if by_family else [str(n) for n in range(len(whole))]
    results = OutOfFoldDecisions.empty(whole)
    results.heuristic.assign(np.arange(len(whole)), simulate(HeuristicPolicy(), whole))
    place = np.flatnonzero(table.fully_observed)
    for train, held_out in group_folds(groups, settings.fold_count, settings.seed):
        unseen = whole.take(held_out)
        others = partial_cases[~np.isin(families[partial_cases], unseen.families)]
        policy = fit(table.take(np.concatenate([place[train], others])), settings)
        record_policy(results, held_out, policy, unseen, settings.seed)
        record_baselines(results, held_out, whole.take(train), unseen, settings.cost_weight)
    return results


def record_policy(
    results: OutOfFoldDecisions, held_out: NDArray[np.int64], policy: TrainedPolicy, unseen: OutcomeTable, seed: int,
    shifts: float | Floats = 0.0,
) -> None:  # fmt: skip
    """Decisions and estimates of a policy on held-out cases. `shifts`, a number or one for each, are added to the
    log-odds of a right in-context answer."""
    probabilities = _probabilities(policy, unseen, shifts)
    costs = policy.expected_costs(unseen.kinds, unseen.stage(0))
    results.policy.assign(held_out, _choose(policy, unseen, probabilities, costs, shifts))
    results.free_in_context_probability[held_out] = probabilities[0][:, 0]
    results.in_context_probability[held_out] = probabilities[1][:, 0]
    results.probabilities[held_out], results.expected[held_out] = probabilities[1], costs
    results.permuted[:, held_out] = _permuted(policy, unseen, seed)


def record_baselines(
    results: OutOfFoldDecisions, held_out: NDArray[np.int64], train: OutcomeTable, unseen: OutcomeTable, weight: float
) -> None:
    """Decisions of the baselines, selected on the training cases, on held-out cases."""
    results.sbs[held_out] = train.utilities_alone(weight).mean(axis=0).argmax()
    results.sbs_per_kind[held_out] = _best_per_kind(train, unseen.kinds, weight)
    results.alternative[held_out] = alternative = 1 + train.correct[:, 1:].mean(axis=0).argmax()
    in_context = results.probabilities[held_out, 0]
    results.uplift[held_out] = results.probabilities[held_out, alternative] - in_context
    results.one_feature.assign(held_out, best_rule(train, weight).route(unseen))


def _probabilities(policy: TrainedPolicy, table: OutcomeTable, shifts: float | Floats = 0.0) -> dict[int, Floats]:
    return {stage: policy.probabilities(stage, table.stage(stage), shifts) for stage in policy.feature_names}


def _permuted(policy: TrainedPolicy, table: OutcomeTable, seed: int) -> Floats:
    """Probability of a right in-context answer [F, N], with each feature in turn permuted between the cases."""
    order = np.random.default_rng(seed).permutation(len(table))
    probabilities = []
    for feature in range(table.X.shape[1]):
        X = table.X.copy()
        X[:, feature] = X[order, feature]
        probabilities.append(policy.difficulty[1].probabilities(X))
    return np.array(probabilities)


def _best_per_kind(train: OutcomeTable, kinds: Sequence[str], cost_weight: float) -> NDArray[np.int64]:
    """The strategy with the highest utility on training cases of each of the kinds; on all cases for an unseen kind."""
    utilities, kind_of = train.utilities_alone(cost_weight), np.array(train.kinds)
    best = {kind: int(utilities[kind_of == kind].mean(axis=0).argmax()) for kind in set(train.kinds)}
    return np.array([best.get(kind, int(utilities.mean(axis=0).argmax())) for kind in kinds], dtype=np.int64)


@dataclass(frozen=True)
class AcrossModels:
    """What a policy of several models takes in place of means over cases and of estimates for families held out. N are
    the cases on which every strategy was tried."""

    weights: Floats
    """Weight of each case [N] in the choice of the margins; their sum is 1."""
    probabilities: Mapping[int, Floats]
    """Stage -> probability of each strategy [N, S], estimated without the case's model and family."""
    ranking: tuple[str, ...]
    """Strategies, best first."""


def fit(table: OutcomeTable, settings: TrainingSettings, models: AcrossModels | None = None) -> TrainedPolicy:
    """A policy without a scorecard, of one model or of several."""
    fitted = {stage: _fit_stage(table, table.stage(stage), settings) for stage in table.feature_names}
    cost_models, held_out_costs = _fit_costs(table, settings)
    whole = table.complete()
    utilities = whole.utilities(settings.cost_weight).mean(axis=0)
    free = table.stage(0)
    deciles = np.quantile(table.X, np.arange(1, 10) / 10, axis=0).T
    evidence, sure = fit_evidence(table, settings.fold_count, settings.seed)
    policy = TrainedPolicy(
        base_hash=table.base_hash,
        strategies=table.strategies,
        difficulty={stage: classifier for stage, (classifier, _, _) in fitted.items()},
        changes={stage: changes for stage, (_, changes, _) in fitted.items()},
        mean_costs=_mean_costs(table),
        cost_weight=settings.cost_weight,
        skip_probe_threshold=1.0,
        probe_cost=float(table.probe_cost.mean()),
        ranking=models.ranking if models else ranked(table, utilities),
        feature_min=tuple(free.min(axis=0).tolist()),
        feature_max=tuple(free.max(axis=0).tolist()),
        deciles=tuple(map(tuple, deciles.tolist())),
        cdf=tuple(map(tuple, (table.X[:, :, None] <= deciles).mean(axis=0).tolist())),
        families=tuple(sorted(set(table.families))),
        datasets=tuple(sorted(set(table.datasets))),
        seed=settings.seed,
        cost_models=cost_models,
        prompt_format=table.prompt_format,
        starting_adapter=table.starting_adapter,
        recipes=dict(table.recipes),
        feature_names=dict(table.feature_names),
        familiarity=fit_familiarity(table, settings.fold_count, settings.seed),
        evidence=evidence,
        probes_unfamiliar=evidence_pays(evidence, sure, whole, settings.cost_weight),
    )
    observed = table.fully_observed
    probabilities = {stage: held_out[observed] for stage, (_, _, held_out) in fitted.items()}
    if held_out_costs is None:
        costs = policy.expected_costs(whole.kinds, whole.stage(0))
    else:
        costs = held_out_costs[observed]
    estimates, weights = (models.probabilities, models.weights) if models else (probabilities, None)
    without, measured = (_select_margin(policy, whole, estimates[stage], costs, weights) for stage in sorted(estimates))
    thresholds, margins = zip(without, measured, strict=True)
    policy = replace(policy, sure_thresholds=thresholds, utility_margins=margins)  # first, as they decide preferences
    policy = replace(policy, skip_probe_threshold=_select_skip_probe_threshold(policy, whole, probabilities, costs))
    if settings.by_free_features:
        policy = replace(policy, probe_margin=_select_probe_margin(policy, whole, probabilities, costs))
    if settings.probe_costs:
        policy = _with_probe_plans(policy, whole, probabilities, costs, sure, settings.probe_costs)
    policy = replace(
        policy, accurate=table.strategies[most_accurate(whole)],
        accuracy_margin=accuracy_margin(probabilities[max(probabilities)], whole),
    )  # fmt: skip
    if settings.risk is None:
        return policy
    threshold = _select_keep_threshold(policy, whole, probabilities, costs, settings.risk)
    return replace(policy, keep_threshold=threshold, risk=settings.risk)


def ranked(table: OutcomeTable, utilities: Floats) -> tuple[str, ...]:
    """The strategies of a table by mean utility [S], best first."""
    return tuple(table.strategies[i] for i in np.argsort(-utilities, kind="stable"))


def estimated_elsewhere(table: OutcomeTable, unseen: OutcomeTable, settings: TrainingSettings) -> dict[int, Floats]:
    """Stage -> probability of each strategy on the cases of one table [N, S], by classifiers trained on another one."""
    estimates = {}
    for stage in table.feature_names:
        classifier, changes, _ = _fit_stage(table, table.stage(stage), settings)
        estimates[stage] = composed(batched_stage(classifier, changes)(unseen.stage(stage)))
    return estimates


def _fit_stage(
    table: OutcomeTable, X: Floats, settings: TrainingSettings
) -> tuple[CalibratedClassifier, tuple[Change, ...], Floats]:
    """The classifiers for the features of a stage, and the held-out probability of each strategy [N, S].

    A strategy is trained on where it was tried: on what it fixes where in-context is wrong, on what it breaks where
    in-context is right.
    """
    base, families = table.correct[:, 0], np.array(table.families)
    targets = [BinaryTarget(X, base, families)]
    for right in np.where(table.applicable, table.correct, np.nan)[:, 1:].T:
        fixed, broken = np.where(base == 0, right, np.nan), np.where(base == 1, 1 - right, np.nan)
        targets += [BinaryTarget(X, fixed, families, prior=0), BinaryTarget(X, broken, families, prior=0)]
    fitted = fit_classifiers(targets, settings.fold_count, settings.seed, settings.candidates)
    (difficulty, probability), *others = fitted
    fixes, breaks = others[::2], others[1::2]
    changes = tuple(Change(fix, brk) for (fix, _), (brk, _) in zip(fixes, breaks, strict=True))
    of_fixes, of_breaks = (np.stack([held_out for _, held_out in some], axis=1) for some in (fixes, breaks))
    return difficulty, changes, compose_probabilities(probability, of_fixes, of_breaks)


def _fit_costs(table: OutcomeTable, settings: TrainingSettings) -> tuple[tuple[CostRegressor, ...], Floats | None]:
    """Cost models of each strategy but in-context, and their predictions for each case with its family held out [N, S];
    none if the settings do without."""
    if not settings.predict_costs:
        return (), None
    fitted = [
        fit_cost_regressor(table.stage(0), costs, table.families, settings.fold_count, settings.seed)
        for costs in _known_costs(table)[:, 1:].T
    ]
    predicted = np.stack([np.zeros(len(table)), *(held_out for _, held_out in fitted)], axis=1)
    return tuple(model for model, _ in fitted), predicted


def _known_costs(table: OutcomeTable) -> Floats:
    """Relative costs [N, S], NaN where a strategy is not applicable; 0 for a strategy that never is."""
    costs = np.where(table.applicable, table.costs, np.nan)
    return np.where(np.isnan(costs).all(axis=0), 0.0, costs)


def _mean_costs(table: OutcomeTable) -> dict[str, tuple[float, ...]]:
    """Mean costs of each kind with fully observed cases, and of all kinds under the empty name."""
    whole = table.complete()
    kinds, costs = np.array(whole.kinds), np.where(whole.applicable, whole.costs, np.nan)
    overall = _means(costs, [0.0] * costs.shape[1])
    return {"": tuple(overall), **{k: tuple(_means(costs[kinds == k], overall)) for k in sorted(set(whole.kinds))}}


def _means(costs: Floats, defaults: Sequence[float]) -> list[float]:
    """Mean of each column [S] without NaN; the default where a column has no number."""
    known = ~np.isnan(costs)
    sums, counts = np.where(known, costs, 0.0).sum(axis=0), known.sum(axis=0)
    return [float(s / n) if n else default for s, n, default in zip(sums, counts, defaults, strict=True)]


def _choose(
    policy: TrainedPolicy, table: OutcomeTable, probabilities: Mapping[int, Floats], costs: Floats,
    shifts: float | Floats = 0.0,
) -> RoutedCases:  # fmt: skip
    """What is done with each case, as `LearnedPolicy` and the graph do it; `simulate`, vectorised."""
    unusual = policy.is_out_of_distribution(table.stage(0), table.kinds)
    skipped = policy.can_skip_probe(probabilities[0], costs) & ~unusual
    measured = ~skipped & (~unusual | policy.by_evidence)
    utilities = policy.utilities(np.where(measured[:, None], probabilities[1], probabilities[0]), costs)
    preferences = np.where(
        measured[:, None],
        policy.preferences(probabilities[1], costs, measured=True),
        policy.preferences(probabilities[0], costs, measured=False),
    )
    kept = preferences[:, 0] > -np.inf
    if policy.by_evidence and unusual.any():
        by_evidence = policy.evidence_probabilities(table.X[unusual], np.broadcast_to(shifts, len(table))[unusual])
        utilities[unusual] = policy.utilities(by_evidence, costs[unusual])
        preferences[unusual] = policy.evidence_preferences(by_evidence, costs[unusual])
    preferences = np.where(table.applicable, preferences, -np.inf)
    fallback = unusual & (not policy.by_evidence)
    next_best = partial(_next_best, policy, table, preferences, utilities, fallback)
    choice, wasted = preferences.argmax(axis=1), np.zeros(len(table))
    choice[fallback] = [next_best(case, []) for case in np.flatnonzero(fallback).tolist()]
    for case in np.flatnonzero(table.unparsed[np.arange(len(table)), choice]).tolist():
        choice[case], wasted[case] = run_attempts(table, case, int(choice[case]), partial(next_best, case))
    may_keep = kept & ~(unusual & (policy.risk is not None))
    return RoutedCases(choice, measured, wasted, may_keep & (choice == 0) & ~table.unparsed[:, 0])


def _next_best(
    policy: TrainedPolicy, table: OutcomeTable, preferences: Floats, utilities: Floats, fallback: Booleans,
    case: int, tried: Sequence[int],
) -> int | None:  # fmt: skip
    """The strategy that is tried on a case after others, or None if none is left or worthwhile. Cases of `fallback` get
    the best strategy on average."""
    remaining = [n for n in range(len(policy.strategies)) if table.applicable[case, n] and n not in tried]
    if not remaining:
        return None
    if fallback[case]:
        best = policy.strategies.index(policy.fallback([policy.strategies[n] for n in remaining]))
    else:
        best = max(remaining, key=lambda n: float(preferences[case, n]))
    return best if not tried or utilities[case, best] > 0 else None


def _select_margin(
    policy: TrainedPolicy, table: OutcomeTable, held_out: Floats, costs: Floats, weights: Floats | None = None
) -> tuple[float, float]:
    """From held-out probabilities [N, S]: the probability from which an in-context answer takes the place of the SBS,
    and the lead in utility over the SBS that any other choice needs. Each is the one whose gain over the SBS has the
    highest lower bound, over families. With `NEVER` and the last margin the SBS is always used, which gains nothing for
    sure (Thomas et al. 2015, "High confidence policy improvement"). `weights` [N] are those of the cases, equal by
    default."""
    reached, index = table.utilities(policy.cost_weight), np.arange(len(table))
    gains = reached - reached[:, [policy.strategies.index(policy.ranking[0])]]
    _, family = np.unique(np.array(table.families), return_inverse=True)
    shares = np.full(len(table), 1 / len(table)) if weights is None else weights

    def lower_bound(threshold: float, margin: float) -> float:
        candidate = replace(policy, sure_thresholds=(threshold, threshold), utility_margins=(margin, margin))
        preferred = np.where(table.applicable, candidate.with_margin(held_out, costs, measured=True), -np.inf)
        gain = gains[index, preferred.argmax(axis=1)]
        mean = float(shares @ gain)
        errors = np.bincount(family, weights=shares * (gain - mean))
        return round(mean - float(np.sqrt(np.square(errors).sum())), 12)

    threshold = max(SURE_THRESHOLDS, key=lambda one: lower_bound(one, UTILITY_MARGINS[-1]))
    return threshold, max(UTILITY_MARGINS, key=lambda one: lower_bound(threshold, one))


def _select_skip_probe_threshold(
    policy: TrainedPolicy, table: OutcomeTable, probabilities: Mapping[int, Floats], costs: Floats
) -> float:
    """The lowest threshold at which skipping the probe loses at most `PROBE_ACCURACY_TOLERANCE`, from held-out
    probabilities."""
    index = np.arange(len(table))

    def accuracy(threshold: float) -> float:
        candidate = replace(policy, skip_probe_threshold=threshold)
        return float(table.correct[index, _choose(candidate, table, probabilities, costs).choice].mean())

    lowest, required = 1.0, accuracy(1.0) - PROBE_ACCURACY_TOLERANCE
    for threshold in np.linspace(0.99, 0.0, 100).round(2).tolist():
        if accuracy(threshold) < required:
            break
        lowest = threshold
    return lowest


def _select_probe_margin(
    policy: TrainedPolicy, table: OutcomeTable, probabilities: Mapping[int, Floats], costs: Floats
) -> float | None:
    """The probe margin with the highest utility, cost of the probe included, from held-out probabilities; None where
    the probe pays for every query that `skip_probe_threshold` leaves."""

    def utility(margin: float | None) -> float:
        candidate = replace(policy, probe_margin=margin)
        right, cost = table.score_routing(_choose(candidate, table, probabilities, costs))
        return float((right - policy.cost_weight * cost).mean())

    leads = policy.leads(probabilities[0], costs)
    finite = leads[np.isfinite(leads)]
    margins = np.quantile(finite, PROBE_MARGINS).clip(0).round(4).tolist() if len(finite) else [0.0]
    best, highest = None, utility(None)
    for margin in reversed(margins):
        if (reached := utility(margin)) > highest + 1e-9:
            best, highest = margin, reached
    return best


def _with_probe_plans(
    policy: TrainedPolicy, table: OutcomeTable, probabilities: Mapping[int, Floats], costs: Floats, sure: Floats,
    probe_costs: Sequence[float],
) -> TrainedPolicy:  # fmt: skip
    """The policy with when the probe pays at each of these costs, as if it had that cost in training; `sure` are the
    probabilities of right in-context answers by evidence on kinds of task that were held out."""
    plans = []
    for cost in probe_costs:
        priced = replace(table, probe_cost=np.full(len(table), cost))
        pays = evidence_pays(policy.evidence, sure, priced, policy.cost_weight)
        candidate = replace(policy, probe_cost=cost, probes_unfamiliar=pays)
        plans.append(ProbePlan(cost, _select_probe_margin(candidate, priced, probabilities, costs), pays))
    answers = float((table.probe_cost / table.costs[:, 0]).mean())
    return replace(policy, probe_plans=tuple(plans), probe_answers=answers)


def _select_keep_threshold(
    policy: TrainedPolicy, table: OutcomeTable, probabilities: Mapping[int, Floats], costs: Floats, risk: float
) -> float:
    """The lowest threshold, descending from 1, such that it and all higher ones satisfy the risk guarantee on held-out
    probabilities; `NEVER` if none does.

    Fixed-sequence testing (Angelopoulos et al. 2021, "Learn then Test"): each threshold is tested in turn by the
    probability of so few wrong answers among the kept ones if the true risk were `risk`. The first tested threshold
    keeps four times as many answers as would pass without any wrong one, so that a few wrong answers do not end the
    sequence. Each family counts once, by one random case, since cases of a family are not independent; the guarantee is
    for queries of other families from the same distribution.
    """
    order = np.random.default_rng(policy.seed).permutation(len(table))
    _, firsts = np.unique(np.array(table.families)[order], return_index=True)
    one_per_family = np.zeros(len(table), dtype=bool)
    one_per_family[order[firsts]] = True
    min_kept = 4 * math.ceil(math.log1p(-CONFIDENCE) / math.log1p(-risk))
    lowest = NEVER
    for threshold in np.linspace(1.0, 0.0, 101).round(2).tolist():
        candidate = replace(policy, keep_threshold=threshold, risk=risk)
        kept = _choose(candidate, table, probabilities, costs).kept & one_per_family
        if kept.sum() < min_kept:
            continue
        wrong = int((1 - table.correct[kept, 0]).sum())
        if float(lazy.stats.binom.cdf(wrong, int(kept.sum()), risk)) > 1 - CONFIDENCE:
            break
        lowest = threshold
    return lowest
