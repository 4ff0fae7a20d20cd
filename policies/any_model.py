"""Trains a policy for models without one of their own, on the outcomes of several models.

It reads features that mean the same for every model, and counts costs as percentages of the mean cost of a model's most
expensive strategy. It is judged on models and families that were both held out. Knows nothing about files. Axes: N
cases, S strategies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ttt_core.errors import PolicyError, shortened
from ..ttt_core.model.loading import BUNDLED
from .bundle_card import ANY_MODEL, BUNDLES, read_card
from .calibration import Calibration, share_answered_right
from .classifiers import group_folds
from .fast_inference import Floats
from .features import COMPARABLE, NAMES, REQUIRED
from .outcome_table import MIN_FAMILIES, OutcomeTable, build_outcome_table, merged_families
from .outcomes import BASE, Outcome
from .policy import HeuristicPolicy
from .scorecard import Bootstrap, OutOfFoldDecisions, scorecard
from .simulation import simulate
from .trained_policy import TrainedPolicy
from .training import (
    DEFAULT_ACCURACY_PER_MAX_COST,
    SEEDS,
    AcrossModels,
    TrainingSettings,
    estimated_elsewhere,
    fit,
    ranked,
    record_baselines,
    record_policy,
)

CANDIDATES = ("logistic", "logistic_free", "nearest_families")
"""Estimators to select from: few models and dozens of families suffice for no others."""
PROBE_COSTS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 100.0)
"""Costs of the probe, in percent of the most expensive strategy's, at which it is found when the probe pays: it depends
on the model and its recipes."""
FOLDS_OF_OTHER_MODELS = 3
"""Folds of the families of each model that is held out where the margins are chosen."""
COST_WEIGHT = DEFAULT_ACCURACY_PER_MAX_COST / 100
"""Accuracy per percent of the most expensive strategy's cost."""


def completed(outcome: Outcome, vocabulary: int) -> Outcome:
    """An outcome with the comparable features that follow from its others and the size of the vocabulary, where it was
    measured before these existed."""
    values, uniform = dict(outcome.features), math.log(max(2, vocabulary))
    if not values:
        return outcome
    sources = {
        "answer_mean_normalised": "answer_mean", "answer_entropy_normalised": "answer_entropy_mean",
        "reading_mean_normalised": "reading_mean", "loo_mean_normalised": "loo_mean",
    }  # fmt: skip
    derived = {name: values[source] / uniform for name, source in sources.items() if source in values}
    if values.get("answer_mean"):
        derived["answer_tokens"] = math.log1p(round(values["answer_total"] / values["answer_mean"]))
    return replace(outcome, features={**derived, **values})


def bundled_vocabulary() -> dict[str, int]:
    """The content hash of the bundled model, whose older outcomes lack comparable features, and its vocabulary."""
    config = json.loads((BUNDLED / "config.json").read_text("utf-8"))
    return {str(read_card(BUNDLES / "bundled")["base_hash"]): int(config["vocab_size"])}


def tables_by_model(outcomes: Iterable[Outcome], vocabularies: Mapping[str, int]) -> dict[str, OutcomeTable]:
    """An outcome table of each model, with equal strategies and features: those that all have. Families that share a
    task are one in all tables. `vocabularies` completes features of the models that it names (see `completed`). Raises
    `PolicyError` for fewer than two models, or without a common strategy besides `in_context`."""
    by_model: dict[str, list[Outcome]] = {}
    every = list(outcomes)
    for outcome, family in zip(every, merged_families(every), strict=True):
        size = vocabularies.get(outcome.base_hash)
        own = replace(completed(outcome, size) if size else outcome, family=family)
        by_model.setdefault(outcome.base_hash, []).append(own)
    if len(by_model) < 2:
        raise PolicyError(f"a policy for any model needs outcomes of at least 2 models; received {len(by_model)}")
    common = set.intersection(*({o.strategy for o in some} for some in by_model.values()))
    tables = {model: build_outcome_table([o for o in some if o.strategy in common]) for model, some in by_model.items()}
    strategies = set.intersection(*(set(table.strategies) for table in tables.values()))
    if len(strategies) < 2:
        raise PolicyError(f"the outcomes of these models have no strategy in common besides {BASE}")
    names = set.intersection(*(set(table.feature_names[1]) for table in tables.values())) & {*COMPARABLE, *REQUIRED}
    order = (BASE, *sorted(strategies - {BASE}, key=lambda s: np.mean([_share(t, s) for t in tables.values()])))
    return {model: _uniform(table, order, names) for model, table in tables.items()}


def _share(table: OutcomeTable, strategy: str) -> float:
    """The mean cost of a strategy as a share of that of the most expensive one."""
    means = np.nanmean(table.costs, axis=0)
    return float(means[table.strategies.index(strategy)] / means.max())


def _uniform(table: OutcomeTable, strategies: Sequence[str], names: set[str]) -> OutcomeTable:
    """The table with these strategies and features, and costs in percent of the most expensive strategy's mean."""
    places = [table.strategies.index(s) for s in strategies]
    chosen = {stage: tuple(n for n in NAMES[stage] if n in names) for stage in NAMES}
    columns = [table.feature_names[1].index(name) for name in chosen[1]]
    scale = 100 / float(np.nanmean(table.costs[:, places], axis=0).max())
    return replace(
        table, base_hash=ANY_MODEL, strategies=tuple(strategies), X=table.X[:, columns], feature_names=chosen,
        correct=table.correct[:, places], alone=table.alone[:, places], costs=scale * table.costs[:, places],
        probe_cost=scale * table.probe_cost,
        applicable=table.applicable[:, places], unparsed=table.unparsed[:, places], recipes={}, prompt_format="",
        excluded={},
    )  # fmt: skip


def joined(tables: Sequence[OutcomeTable]) -> OutcomeTable:
    """One table of the cases of several models; each model's tasks stay apart, families of one name are one."""
    first = tables[0]

    def texts(name: str) -> tuple[str, ...]:
        return tuple(value for table in tables for value in getattr(table, name))

    def rows(name: str) -> Floats:
        return np.concatenate([getattr(table, name) for table in tables])

    return replace(
        first, families=texts("families"), tasks=texts("tasks"), kinds=texts("kinds"),
        datasets=tuple(f"{n}:{value}" for n, table in enumerate(tables) for value in table.datasets),
        groups=texts("groups"), X=rows("X"), correct=rows("correct"), alone=rows("alone"),
        costs=rows("costs"), probe_cost=rows("probe_cost"),
        applicable=np.concatenate([table.applicable for table in tables]),
        unparsed=np.concatenate([table.unparsed for table in tables]),
    )  # fmt: skip


def train_any_model(
    outcomes: Iterable[Outcome], vocabularies: Mapping[str, int] | None = None, *, seed: int = 0, fold_count: int = 5
) -> TrainedPolicy:
    """A policy for any model. Its scorecard has one of each model (`models`), whose policy saw neither the model nor
    the families, and the gain over the rule of thumb, in which every model counts alike. Raises `PolicyError` for too
    few models or families."""
    tables = tables_by_model(outcomes, vocabularies or {})
    seed %= SEEDS
    settings = TrainingSettings(
        COST_WEIGHT, seed, fold_count, CANDIDATES, predict_costs=False, by_free_features=False, probe_costs=PROBE_COSTS
    )
    cards = {model: _judged(model, tables, settings) for model in tables}
    whole = joined(list(tables.values()))
    policies = [cards[model][1] for model in tables]
    thumbs = [cards[model][2] for model in tables]
    families = [name for table in tables.values() for name in table.complete().families]
    utilities = {"policy": np.concatenate(policies), "rule_of_thumb": np.concatenate(thumbs)}
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in policies])  # every model counts alike
    bootstrap = Bootstrap(families, utilities, seed, weights)
    card: dict[str, Any] = {
        "models": {model: one for model, (one, _, _) in cards.items()},
        "gain_over_rule_of_thumb": bootstrap.gain("rule_of_thumb"),
        "cost_weight": COST_WEIGHT, "families": len(set(families)), "cases": len(families), "digest": whole.digest,
    }  # fmt: skip
    return replace(_fitted(whole, settings), base_hash=ANY_MODEL, models=tuple(sorted(tables)), scorecard=card)


def _fitted(table: OutcomeTable, settings: TrainingSettings) -> TrainedPolicy:
    """A policy whose ranking of strategies, the fallback for queries out of distribution, counts every model alike,
    however many outcomes it has, and whose margins are such that following the estimates paid on models held out."""
    whole = table.complete()
    models, counts = np.unique(_model_of(whole), return_inverse=True, return_counts=True)[1:]
    if len(counts) < 2:
        return fit(table, settings)
    weights = 1 / (len(counts) * counts[models])
    ranking = ranked(table, weights @ whole.utilities(settings.cost_weight))
    return fit(table, settings, AcrossModels(weights, _models_held_out(table, whole, settings), ranking))


def _model_of(table: OutcomeTable) -> NDArray[np.str_]:
    """The number of the model of each case of a joined table, as a text."""
    return np.array([dataset.split(":")[0] for dataset in table.datasets])


def _models_held_out(table: OutcomeTable, whole: OutcomeTable, settings: TrainingSettings) -> dict[int, Floats]:
    """Stage -> probability of each strategy on the cases of `whole` [N, S], by classifiers that were trained on neither
    the case's model nor its family."""
    estimates = {stage: np.zeros(whole.correct.shape) for stage in whole.feature_names}
    models, models_of_whole = _model_of(table), _model_of(whole)
    for model in sorted(set(models.tolist())):
        own = np.flatnonzero(models_of_whole == model)
        folds = group_folds([whole.families[n] for n in own], FOLDS_OF_OTHER_MODELS, settings.seed)
        for held_out in [others for _, others in folds] or [np.arange(len(own))]:  # a single family is one fold
            unseen = whole.take(own[held_out])
            elsewhere = _without_families_of(unseen, table.take(np.flatnonzero(models != model)))
            for stage, values in estimated_elsewhere(elsewhere, unseen, settings).items():
                estimates[stage][own[held_out]] = values
    return estimates


def _without_families_of(unseen: OutcomeTable, others: OutcomeTable) -> OutcomeTable:
    """The cases of other models whose families are not those of `unseen` cases. Raises `PolicyError` where nothing is
    left to train on."""
    elsewhere = others.take(np.flatnonzero(~np.isin(np.array(others.families), unseen.families)))
    if not elsewhere.fully_observed.any():
        names = ", ".join(sorted(set(unseen.families)))
        raise PolicyError(
            f"nothing is left to train on while a model and the families {shortened(names)} are "
            "held out: on other families no other model ran every strategy; collect more of these"
        )
    return elsewhere


def _judged(
    model: str, tables: Mapping[str, OutcomeTable], settings: TrainingSettings
) -> tuple[dict[str, Any], Floats, Floats]:
    """The scorecard on one model of policies that were trained on other models and other families, calibrated on the
    queries that the model answered before each in a random order; and the utilities of the policy and of the rule of
    thumb on each of its cases."""
    own = tables[model].complete()
    if len(set(own.families)) < MIN_FAMILIES:
        raise PolicyError(
            f"{model[:12]}: {len(set(own.families))} families on which every strategy was run; at least {MIN_FAMILIES} "
            "are needed to hold some out"
        )
    others = joined([table for name, table in tables.items() if name != model])
    results = OutOfFoldDecisions.empty(own)
    results.heuristic.assign(np.arange(len(own)), simulate(HeuristicPolicy(), own))
    folds, served = group_folds(own.families, settings.fold_count, settings.seed), []
    for _, held_out in folds:
        unseen = own.take(held_out)
        elsewhere = _without_families_of(unseen, others)
        policy = _fitted(elsewhere, settings)
        served.append(policy.with_probe_cost(policy.probe_answers * float(unseen.costs[:, 0].mean())))
        record_policy(results, held_out, served[-1], unseen, settings.seed)
    shifts = _calibration_shifts(own, results, settings.seed)
    for policy, (train, held_out) in zip(served, folds, strict=True):
        unseen = own.take(held_out)
        record_policy(results, held_out, policy, unseen, settings.seed, shifts[held_out])
        record_baselines(results, held_out, own.take(train), unseen, settings.cost_weight)
    card = scorecard(own, [results], settings.cost_weight, settings.seed)
    worth = [
        right - settings.cost_weight * cost
        for right, cost in (own.score_routing(routed) for routed in (results.policy, results.heuristic))
    ]
    return card, worth[0], worth[1]


def _calibration_shifts(table: OutcomeTable, results: OutOfFoldDecisions, seed: int) -> Floats:
    """For each case the shift by the demonstrations of the queries before it, in a random order."""
    estimates = {0: results.free_in_context_probability, 1: results.in_context_probability}
    calibration, shifts = Calibration(), np.zeros(len(table))
    for case in np.random.default_rng(seed).permutation(len(table)):
        shifts[case] = calibration.shift
        stage = int(results.policy.measured[case])
        right = share_answered_right(dict(zip(table.feature_names[stage], table.stage(stage)[case], strict=True)))
        if right is not None:
            calibration = calibration.updated(float(estimates[stage][case]), float(right))
    return shifts
