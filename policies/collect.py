"""Collection: every strategy on every task and seed, written down as it comes.

Knows nothing about what is learned from it. Cost is counted in tokens, not seconds, so that it is the
same on every machine and in every repetition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..strategies.base import Strategy, get_strategy, run
from ..ttt_core.errors import StrategyError, TaskError, TooLongError
from ..ttt_core.learner import Learner
from ..ttt_core.tasks import Task
from .features import FEATURES_VERSION, free_features, probe_features
from .outcomes import Key, Outcome, OutcomeStore

OnProgress = Callable[[int, int], None]
"""Called with the number of outcomes in the store and of all that there will be."""


def collect(
    learner: Learner,
    tasks: Sequence[Task],
    strategies: Sequence[Strategy],
    seeds: Sequence[int],
    store: OutcomeStore,
    on_progress: OnProgress | None = None,
) -> None:
    """Adds to the store what it lacks. May be stopped at any time and called again.

    `in_context` is always run, since all costs are multiples of its. Each attempt begins with nothing remembered, so
    that it pays for all it needs. Failures are outcomes with their full cost. Raises `TaskError` for a task whose
    answer is not known.
    """
    for task in tasks:
        if task.answer is None:
            raise TaskError(f"{task.id}: collecting outcomes needs the right answer of every query; this one has none")
    base = get_strategy("in_context")
    wanted = [base, *(s for s in strategies if s.name != base.name)]
    known = {outcome.key: outcome for outcome in store.read()}
    pairs = [(task, seed) for task in tasks for seed in seeds]
    keys = {_key(learner, task, s.name, seed) for task, seed in pairs for s in wanted}
    done = len(keys & known.keys())
    for task, seed in pairs:
        for strategy in wanted:
            key = _key(learner, task, strategy.name, seed)
            if key in known:
                continue
            outcome = _outcome(learner, task, strategy, seed)
            unit = outcome if strategy is base else known[key._replace(strategy=base.name)]
            outcome = replace(outcome, cost=outcome.work / unit.work if unit.work else 0.0)
            if strategy is base and outcome.status != "too_long":
                outcome = _measured(outcome, learner, task, seed)
            store.append(outcome)
            known[key] = outcome
            done += 1
            if on_progress is not None:
                on_progress(done, len(keys))


def _key(learner: Learner, task: Task, strategy: str, seed: int) -> Key:
    return Key(learner.base_hash, task.dataset, task.id, strategy, seed)


def _outcome(learner: Learner, task: Task, strategy: Strategy, seed: int) -> Outcome:
    """The outcome without its cost, which another outcome is needed for."""
    learner.forget()
    began, before = time.perf_counter(), learner.work
    correct = 0.0
    try:
        attempt = run(strategy, learner, task, seed=seed)
        status: str = attempt.status
        correct = float(attempt.value == task.answer)
    except TooLongError:
        status = "too_long"
    except StrategyError:
        status = "too_few"
    return Outcome(
        task_id=task.id, group=task.group, family=task.family, dataset=task.dataset, kind=task.kind,
        strategy=strategy.name, seed=seed, status=status, correct=correct, seconds=time.perf_counter() - began,
        work=(learner.work - before).passes, cost=0.0, base_hash=learner.base_hash,
    )  # fmt: skip


def _measured(outcome: Outcome, learner: Learner, task: Task, seed: int) -> Outcome:
    """The outcome of answering in context with the features of every stage."""
    learner.forget()
    reading = learner.read(task)
    answer = learner.answer([task])[0]
    before = learner.work
    values = free_features(task, answer, reading) | probe_features(learner, task, answer, seed)
    probe = (learner.work - before).passes / outcome.work
    return replace(outcome, features=values, features_version=FEATURES_VERSION, probe_cost=probe)
