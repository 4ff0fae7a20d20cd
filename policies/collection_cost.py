"""Estimates what collecting outcomes will take, before it starts. Runs a few in-context answers and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from ..strategies.adapter_training import PlansAdapter
from ..strategies.base import Strategy, answer_count
from ..ttt_core.errors import AutotttError
from ..ttt_core.learner import Learner
from ..ttt_core.tasks.task import Task
from .collect import Batch, missing_count
from .feature_measures import probe_tokens
from .outcomes import BASE

SAMPLE = 40
"""Batches whose tokens are counted; the others are taken to be as long."""
TIMED = 3
"""In-context answers that are timed."""


@dataclass(frozen=True)
class CollectionEstimate:
    """What the outcomes that a store lacks will take."""

    outcomes: int
    token_equivalents: float
    """Tokens forward, plus twice the tokens backward."""
    seconds: float
    """Of one process, at the speed of the timed answers."""


def estimate(learner: Learner, batches: Sequence[Batch], seed: int = 0) -> CollectionEstimate:
    """The estimate for batches of missing outcomes, from the tokens of a sample of them and from the time of a few
    in-context answers. Tasks that fit in the context in no format are taken to cost nothing.
    """
    if not batches:
        return CollectionEstimate(0, 0.0, 0.0)
    sample = random.Random(seed).sample(batches, min(SAMPLE, len(batches)))
    tokens = fmean(_batch_tokens(learner, batch) for batch in sample) * len(batches)
    rates = [rate for batch in sample[:TIMED] if (rate := _seconds_per_token(learner, batch[0].task)) is not None]
    return CollectionEstimate(missing_count(batches), tokens, tokens * (median(rates) if rates else 0.0))


def _batch_tokens(learner: Learner, batch: Batch) -> float:
    """Token equivalents of the missing outcomes of a task's queries: adapters are trained once, answers are not. The
    probes of all queries are taken to be as long as that of the first."""
    trained: set[str] = set()
    probed: int | None = None
    total, formats = 0.0, len(learner.loaded.formats)
    for item in batch:
        try:
            length = learner.window.length(item.task)
            total, formats = total + formats * length, 0  # the format is chosen once for the queries of a task
            for strategy in item.strategies:
                if strategy.name not in trained:
                    total += _training_tokens(learner, strategy, item.task, item.seed)
                    trained.add(strategy.name)
                total += length * answer_count(strategy, learner.loaded.recipes, item.task)
                if strategy.name == BASE:
                    probed = probe_tokens(learner, item.task, item.seed) if probed is None else probed
                    total += probed
        except AutotttError:  # it will be an outcome without cost
            continue
    return total


def _training_tokens(learner: Learner, strategy: Strategy, task: Task, seed: int) -> float:
    """Token equivalents of training the strategy's adapter; 0 for a strategy without one."""
    if not isinstance(strategy, PlansAdapter):
        return 0.0
    examples, recipe = strategy.plan(learner, task, seed).fitted_examples(learner.window)
    return examples.training_tokens(recipe, learner.window)


def _seconds_per_token(learner: Learner, task: Task) -> float | None:
    """Seconds per token of an in-context answer; None where it fails."""
    meter = learner.guarded.meter()
    try:
        learner.answer([task])
    except AutotttError:
        return None
    cost = meter.read()
    return cost.seconds / max(1, cost.token_equivalents)
