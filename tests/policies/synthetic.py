"""Synthetic outcomes whose features are informative, policies trained on them, and features of queries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest import mock

import numpy as np

from autottt.policies import scorecard as scorecard_module
from autottt.policies.features import FEATURES_VERSION, NAMES, Features
from autottt.policies.outcomes import Outcome
from autottt.policies.trained_policy import TrainedPolicy
from autottt.policies.training import (
    train_policy,
)

COSTS = {"in_context": 1.0, "in_context_vote": 8.0, "ttt_in_context": 60.0}


ALL = list(COSTS)


def values_of(level: float, rng: np.random.Generator) -> dict[str, float]:
    """Features of a list task; how likely the in-context answer is right, -1 to 1, shows in three of them."""
    values = {name: float(rng.normal()) for name in NAMES[1]}
    values |= {"instruction": 0.0, "kind_grid": 0.0, "kind_grid1d": 0.0, "kind_list": 1.0, "kind_text": 0.0}
    values |= {"answer_mean": level + 0.5 * rng.normal(), "loo_hits": level + 0.3 * rng.normal(), "loo_possible": 1.0}
    return values | {"reading_hits": level + 0.4 * rng.normal()}


def made(families: int = 24, each: int = 10, seed: int = 0) -> list[Outcome]:
    """Outcomes where reading suffices above a level, training helps below, nothing far below; training may fail."""
    rng = np.random.default_rng(seed)
    outcomes = []
    for family in range(families):
        for number in range(each):
            level = rng.uniform(-1, 1)
            easy = level + 0.2 * rng.normal() > 0.1
            learnable = level + 0.2 * rng.normal() > -0.5 and rng.uniform() < 0.8
            right = {"in_context": easy, "in_context_vote": easy, "ttt_in_context": learnable}
            for strategy, cost in COSTS.items():
                base = strategy == "in_context"
                outcomes.append(
                    Outcome(
                        f"t{family}-{number}", f"t{family}-{number}", f"family{family}", "made", "list", strategy, 0,
                        "answered", float(right[strategy]), cost / 10, int(100 * cost), cost, "base",
                        features=values_of(level, rng) if base else {},
                        features_version=FEATURES_VERSION if base else 0, probe_cost=2.0 if base else 0.0,
                    )
                )  # fmt: skip
    return outcomes


OUTCOMES = made()


SMALL = made(8, 8)


def trained(outcomes: Sequence[Outcome] = OUTCOMES, **settings: Any) -> TrainedPolicy:
    """A policy trained with two folds, logistic regressions and few bootstrap resamples."""
    with mock.patch.object(scorecard_module, "INTERVAL_RESAMPLES", 40):
        return train_policy(outcomes, **{"fold_count": 2, "candidates": ("logistic",), "repeats": 1} | settings)


@cache
def trained_small() -> TrainedPolicy:
    """The policy trained on `SMALL`, once per session."""
    return trained(SMALL)


def at(level: float, stage: int = 1, **changed: float) -> Features:
    """Features without noise."""
    values = dict.fromkeys(NAMES[stage], 0.0) | {"kind_list": 1.0, "answer_mean": level, "reading_hits": level}
    return Features(stage, values | ({"loo_hits": level, "loo_possible": 1.0} if stage else {}) | changed)


def thumb(agreement: float, kind: str = "list", stage: int = 1) -> Features:
    values = dict.fromkeys(NAMES[stage], 0.0) | {f"kind_{kind}": 1.0}
    values |= {"reading_hits_late": agreement, "answer_total": float(np.log(agreement + 1e-9))}
    more = {"loo_possible": 1.0, "loo_hits": agreement, "orders_hits": agreement}
    return Features(stage, values | (more if stage else {}))
