"""Collection: every strategy on every task and seed, written down as it comes.

Knows nothing about what is learned from it. Cost is counted in tokens, not seconds, so that it is the
same on every machine and in every repetition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..strategies.base import Attempt, Strategy, get_strategy, recipe_digest, run
from ..ttt_core.errors import PolicyError, StrategyError, TaskError, TooLongError
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks import Task, content_digest
from .features import FEATURES_VERSION, free_features, probe_features
from .outcomes import Key, Outcome, OutcomeStore, finite

BASE = "in_context"
"""The strategy that costs are multiples of."""
OnProgress = Callable[[int, int], None]
"""Called with the number of outcomes in the store and of all that there will be."""


@dataclass(frozen=True)
class Unit:
    """What is missing of one query with one seed."""

    task: Task
    seed: int
    strategies: tuple[Strategy, ...]
    """In the order in which they are run: `in_context` first, where it is missing."""
    in_context_work: int | None
    """Tokens that `in_context` took, where it is not missing."""


Batch = tuple[Unit, ...]
"""What is missing of a task's queries with one seed: one process measures them, since they share adapters."""


def collect(
    learner: Learner,
    tasks: Sequence[Task],
    strategies: Sequence[Strategy],
    seeds: Sequence[int],
    store: OutcomeStore,
    on_progress: OnProgress | None = None,
) -> None:
    """Adds to the store what it lacks. May be stopped at any time and called again.

    `in_context` is always run, since all costs are multiples of its. Each attempt pays for all it needs, also where
    another query of the task has trained the adapter before. Failures are outcomes with their full cost. Raises
    `TaskError` for a task whose answer is not known, and `PolicyError` for one whose name is another task's in the
    store, or one whose strategies had other recipes there.
    """
    batches, total = missing(learner.base_hash, learner.loaded.recipes, tasks, strategies, seeds, store)
    done = total - lacking(batches)
    try:
        for batch in batches:
            for outcome in measured(learner, batch):
                store.append(outcome)
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
    finally:
        store.seal()


def missing(
    base_hash: str,
    recipes: Mapping[str, Recipe],
    tasks: Sequence[Task],
    strategies: Sequence[Strategy],
    seeds: Sequence[int],
    store: OutcomeStore,
) -> tuple[list[Batch], int]:
    """What the store lacks by task, and how many outcomes there are when it lacks none. Raises as `collect`."""
    for task in tasks:
        if task.answer is None:
            raise TaskError(f"{task.id}: collecting outcomes needs the right answer of every query; this one has none")
    base = get_strategy(BASE)
    wanted = [base, *(s for s in strategies if s.name != BASE)]
    stored = store.read()
    _refuse_other_recipes(stored, base_hash, recipes, wanted)
    known = {outcome.key: outcome for outcome in stored}
    digests = {outcome.key: outcome.digest for outcome in stored}
    batches: dict[tuple[str, str, int], list[Unit]] = {}
    keys_of_all = set[Key]()
    for task in tasks:
        for seed in seeds:
            keys = {
                s.name: Key(base_hash, task.dataset, task.id, s.name, seed, recipe_digest(s, recipes, task.kind))
                for s in wanted
            }
            for key in keys.values():
                if (digests.get(key) or task.digest) != task.digest:
                    raise PolicyError(
                        f"{task.id}: another task of this name, in the data set {task.dataset!r}, is in {store.folder} "
                        "or among those given. Collect into another --store, or give the tasks other ids"
                    )
                digests[key] = task.digest
            new = tuple(s for s in wanted if keys[s.name] not in known and keys[s.name] not in keys_of_all)
            keys_of_all |= set(keys.values())
            unit = known.get(keys[BASE])
            if new:
                batch = batches.setdefault((task.dataset, task.group, seed), [])
                batch.append(Unit(task, seed, new, None if unit is None else unit.work))
    return [tuple(batch) for batch in batches.values()], len(keys_of_all)


def _refuse_other_recipes(
    stored: Sequence[Outcome], base_hash: str, recipes: Mapping[str, Recipe], strategies: Sequence[Strategy]
) -> None:
    """Raises `PolicyError` where a store holds outcomes of a strategy with another recipe: they do not go together."""
    by_name = {strategy.name: strategy for strategy in strategies}
    for outcome in stored:
        strategy = by_name.get(outcome.strategy)
        if strategy is None or outcome.base_hash != base_hash or not outcome.recipe:
            continue
        if outcome.recipe != (now := recipe_digest(strategy, recipes, outcome.kind)):
            raise PolicyError(
                f"the store holds outcomes of {outcome.strategy} on {outcome.kind} tasks with the recipe "
                f"{outcome.recipe}, and the model's is {now} now; collect into another folder"
            )


def lacking(batches: Sequence[Batch]) -> int:
    """The number of outcomes that are missing."""
    return sum(len(unit.strategies) for batch in batches for unit in batch)


def measured(learner: Learner, batch: Batch) -> Iterator[Outcome]:
    """The outcomes that are missing of a task's queries with a seed, one by one."""
    learner.forget()
    for unit in batch:
        work = unit.in_context_work
        for strategy in unit.strategies:
            outcome = _outcome(learner, unit.task, strategy, unit.seed)
            if work is None:
                work = outcome.work
            outcome = replace(outcome, cost=outcome.work / work if work else 0.0)
            if strategy.name == BASE and outcome.status != "too_long":
                outcome = _measured(outcome, learner, unit.task, unit.seed)
            yield outcome
    learner.forget()


def _outcome(learner: Learner, task: Task, strategy: Strategy, seed: int) -> Outcome:
    """The outcome without its cost, which another outcome is needed for."""
    learner.charge_anew()
    began, before, ahead = time.perf_counter(), learner.work, learner.ahead
    attempt: Attempt | None = None
    try:
        attempt = run(strategy, learner, task, seed=seed)
        status: str = attempt.status
    except TooLongError:
        status = "too_long"
    except StrategyError:
        status = "too_few"
    done, value = learner.work - before, None if attempt is None else attempt.value
    return Outcome(
        task_id=task.id, group=task.group, family=task.family, dataset=task.dataset, kind=task.kind,
        strategy=strategy.name, seed=seed, status=status, correct=float(value is not None and value == task.answer),
        seconds=time.perf_counter() - began + learner.ahead - ahead, work=done.passes, cost=0.0,
        base_hash=learner.base_hash, recipe=recipe_digest(strategy, learner.loaded.recipes, task.kind),
        digest=task.digest, forward=done.forward, backward=done.backward,
        confidence=attempt.confidence if attempt else 0.0, answer="" if value is None else content_digest(value),
        gain=attempt.evidence.gain if attempt and attempt.evidence else 1.0,
        losses=finite(attempt.training.losses if attempt and attempt.training else ()),
        votes={content_digest(c.value): c.share for c in attempt.candidates} if attempt else {},
    )  # fmt: skip


def _measured(outcome: Outcome, learner: Learner, task: Task, seed: int) -> Outcome:
    """The outcome of answering in context with the features of every stage."""
    learner.charge_anew()
    reading = learner.read(task)
    answer = learner.answer([task])[0]
    before = learner.work
    values = free_features(task, answer, reading) | probe_features(learner, task, answer, seed)
    probe = (learner.work - before).passes / outcome.work
    return replace(outcome, features=values, features_version=FEATURES_VERSION, probe_cost=probe)
