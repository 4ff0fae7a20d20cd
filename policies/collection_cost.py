"""Estimates what collecting outcomes will take, before it starts. Runs a few in-context answers and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from ..strategies.adapter_training import PlansAdapter
from ..strategies.base import Strategy, answer_count
from ..ttt_core.errors import AutotttError
from ..ttt_core.learner import Learner
from ..ttt_core.tasks.augmentation import leave_one_out
from ..ttt_core.tasks.task import Task
from .collect import Batch, missing_count
from .feature_measures import probe_tokens
from .outcomes import BASE

SAMPLE = 40
"""Batches whose tokens are counted; the others are taken to be as long."""
TIMED = 3
"""Prompts whose in-context answer and whose pass are timed."""


@dataclass(frozen=True)
class CollectionEstimate:
    """What the outcomes that a store lacks will take."""

    outcomes: int
    token_equivalents: float
    """Tokens forward, plus twice the tokens backward."""
    seconds: float
    """Of one process, at the speed of the timed answers and passes."""


@dataclass
class _Work:
    """What the missing outcomes of tasks consist of."""

    answers: int = 0
    """Answers that are decoded one after the other; those of a vote are decoded side by side."""
    answer_tokens: float = 0.0
    """Tokens of the prompts of these answers."""
    other_tokens: float = 0.0
    """Token equivalents of training, of further votes and of prompts that are only read."""


class _Speed(NamedTuple):
    """Seconds of an in-context answer, and of a token where whole prompts are read."""

    answer: float
    token: float


def estimate(learner: Learner, batches: Sequence[Batch], seed: int = 0) -> CollectionEstimate:
    """The estimate for batches of missing outcomes, from the tokens of a sample of them, and from the time of a few
    in-context answers and of passes over the same prompts: an answer is decoded token by token, and takes several
    times as long as a pass. Tasks that fit in the context in no format are taken to cost nothing.
    """
    if not batches:
        return CollectionEstimate(0, 0.0, 0.0)
    sample = random.Random(seed).sample(batches, min(SAMPLE, len(batches)))
    work, times = _Work(), len(batches) / len(sample)
    for batch in sample:
        _add_work(work, learner, batch)
    speeds = [speed for batch in sample[:TIMED] if (speed := _speed(learner, batch[0].task)) is not None]
    answer, token = (median(column) for column in zip(*speeds, strict=True)) if speeds else (0.0, 0.0)
    seconds = work.answers * answer + work.other_tokens * token
    return CollectionEstimate(missing_count(batches), (work.answer_tokens + work.other_tokens) * times, seconds * times)


def _add_work(work: _Work, learner: Learner, batch: Batch) -> None:
    """Adds the missing outcomes of a task's queries: adapters are trained once, answers are not. The probes of all
    queries are taken to be as long as that of the first."""
    trained: set[str] = set()
    probed: int | None = None
    formats = len(learner.loaded.formats)
    for item in batch:
        try:
            length = learner.window.length(item.task)
            work.other_tokens += formats * length
            formats = 0  # the format is chosen once for the queries of a task
            for strategy in item.strategies:
                if strategy.name not in trained:
                    work.other_tokens += _training_tokens(learner, strategy, item.task, item.seed)
                    trained.add(strategy.name)
                work.answers += 1
                work.answer_tokens += length
                work.other_tokens += length * (answer_count(strategy, learner.loaded.recipes, item.task) - 1)
                if strategy.name == BASE:
                    probed = probe_tokens(learner, item.task, item.seed) if probed is None else probed
                    work.other_tokens += probed
        except AutotttError:  # it will be an outcome without cost
            continue


def _training_tokens(learner: Learner, strategy: Strategy, task: Task, seed: int) -> float:
    """Token equivalents of training the strategy's adapter; 0 for a strategy without one."""
    if not isinstance(strategy, PlansAdapter):
        return 0.0
    examples, recipe = strategy.plan(learner, task, seed).fitted_examples(learner.window)
    return examples.training_tokens(recipe, learner.window)


def _speed(learner: Learner, task: Task) -> _Speed | None:
    """How long an answer to a task takes, and passes over prompts of its demonstrations; None where one fails."""
    meter = learner.guarded.meter()
    try:
        learner.answer([task])
        answer = meter.read()
        learner.score(leave_one_out(task))
    except AutotttError:
        return None
    passed = meter.read() - answer
    tokens = passed.token_equivalents
    return _Speed(answer.seconds, (passed.seconds / tokens) if tokens else answer.seconds / answer.token_equivalents)
