"""Collection: every strategy on every task and seed, written down as it comes.

Knows nothing about what is learned from it. Cost is counted in tokens, not seconds, so that it is the
same on every machine and in every repetition.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..strategies.base import Attempt, Strategy, get_strategy, run, strategy_recipe_digest
from ..ttt_core.errors import (
    AutotttError,
    BaseChangedError,
    Cancelled,
    ModelError,
    PolicyError,
    StrategyError,
    TaskError,
    TooLongError,
)
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.task import Task, content_digest
from .features import FEATURES_VERSION, free_features, probe_features
from .outcomes import BASE, Key, Outcome, OutcomeStore, finite

FATAL = (BaseChangedError, Cancelled, ModelError)
"""What says that nothing else can be measured either."""
OnProgress = Callable[[int, int], None]
"""Called with the number of outcomes in the store and of all that there will be."""


class ModelIdentity(NamedTuple):
    """What decides outcomes besides tasks, strategies and seeds."""

    base_hash: str
    prompt_format: str
    recipes: Mapping[str, Recipe]

    @classmethod
    def of(cls, learner: Learner) -> ModelIdentity:
        return cls(learner.base_hash, learner.loaded.format.name, dict(learner.loaded.recipes))


@dataclass(frozen=True)
class WorkItem:
    """What is missing of one query with one seed."""

    task: Task
    seed: int
    strategies: tuple[Strategy, ...]
    """In the order in which they are run: `in_context` first, where it is missing."""
    in_context_work: int | None
    """Tokens that `in_context` took, where it is not missing."""


Batch = tuple[WorkItem, ...]
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
    another query of the task has trained the adapter before. Failures are outcomes with their full cost, whatever a
    strategy raises, but for `FATAL`. Raises `TaskError` for a task whose answer is not known, and `PolicyError` for one
    whose name is another task's in the store, or that was judged by another answer there, and for a store of the same
    model with other recipes or another prompt format.
    """
    batches, total = missing(ModelIdentity.of(learner), tasks, strategies, seeds, store)
    done = total - missing_count(batches)
    if on_progress is not None:
        on_progress(done, total)
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
    identity: ModelIdentity,
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
    _refuse_other_ways(stored, identity, wanted)
    base_hash, recipes = identity.base_hash, identity.recipes
    known = {outcome.key: outcome for outcome in stored}
    digests = {outcome.key: outcome.digest for outcome in stored}
    batches: dict[tuple[str, str, int], list[WorkItem]] = {}
    keys_of_all = set[Key]()
    for task in tasks:
        for seed in seeds:
            keys = {
                s.name: Key(
                    base_hash, task.dataset, task.id, s.name, seed, strategy_recipe_digest(s, recipes, task.kind)
                )
                for s in wanted
            }
            for key in keys.values():
                if (digests.get(key) or task.digest) != task.digest:
                    raise PolicyError(
                        f"{task.id}: another task of this name, in the data set {task.dataset!r}, is in {store.folder} "
                        "or among those given. Collect into another --store, or give the tasks other ids"
                    )
                digests[key] = task.digest
                if key in known and not _judged_alike(known[key], task):
                    raise PolicyError(
                        f"{task.id}: its right answer is not the one that the outcomes in {store.folder} were judged "
                        "by. Collect into another --store"
                    )
            new = tuple(s for s in wanted if keys[s.name] not in known and keys[s.name] not in keys_of_all)
            keys_of_all |= set(keys.values())
            unit = known.get(keys[BASE])
            if new:
                batch = batches.setdefault((task.dataset, task.group, seed), [])
                batch.append(WorkItem(task, seed, new, None if unit is None else unit.work))
    return [tuple(batch) for batch in batches.values()], len(keys_of_all)


def _judged_alike(outcome: Outcome, task: Task) -> bool:
    """Whether a stored outcome was judged by the task's right answer, as far as can be told."""
    if not outcome.answer or not outcome.digest:
        return True
    return outcome.correct == float(outcome.answer == content_digest(task.answer))


def _refuse_other_ways(stored: Sequence[Outcome], identity: ModelIdentity, strategies: Sequence[Strategy]) -> None:
    """Raises `PolicyError` where a store holds outcomes of the model with another prompt format, or of a strategy with
    another recipe: they do not go together."""
    by_name = {strategy.name: strategy for strategy in strategies}
    for outcome in stored:
        if outcome.base_hash != identity.base_hash:
            continue
        if outcome.prompt_format not in ("", identity.prompt_format):
            raise PolicyError(
                f"the store holds outcomes with the prompt format {outcome.prompt_format!r}, and the model is asked in "
                f"{identity.prompt_format!r} now; collect into another folder"
            )
        strategy = by_name.get(outcome.strategy)
        if strategy is None or not outcome.recipe:
            continue
        if outcome.recipe != (now := strategy_recipe_digest(strategy, identity.recipes, outcome.kind)):
            raise PolicyError(
                f"the store holds outcomes of {outcome.strategy} on {outcome.kind} tasks with the recipe "
                f"{outcome.recipe}, and the model's is {now} now; collect into another folder"
            )


def missing_count(batches: Sequence[Batch]) -> int:
    """The number of outcomes that are missing."""
    return sum(len(unit.strategies) for batch in batches for unit in batch)


def measured(learner: Learner, batch: Batch) -> Iterator[Outcome]:
    """The outcomes that are missing of a task's queries with a seed, one by one."""
    learner.clear()
    for unit in batch:
        work = unit.in_context_work
        for strategy in unit.strategies:
            outcome = _outcome(learner, unit.task, strategy, unit.seed)
            if work is None:
                work = outcome.work
            outcome = replace(outcome, cost=outcome.work / work if work else 0.0)
            if strategy.name == BASE and outcome.status not in ("too_long", "failed"):
                outcome = _measured(outcome, learner, unit.task, unit.seed)
            yield outcome
    learner.clear()


def _outcome(learner: Learner, task: Task, strategy: Strategy, seed: int) -> Outcome:
    """The outcome without its cost, which another outcome is needed for."""
    learner.reset_charges()
    began, before, ahead = time.perf_counter(), learner.work, learner.prefetch_seconds
    attempt: Attempt | None = None
    try:
        attempt = run(strategy, learner, task, seed=seed)
        status: str = attempt.status
    except TooLongError:
        status = "too_long"
    except StrategyError as error:
        enough = len(task.demonstrations) >= strategy.min_demonstrations
        status = _failed(strategy.name, task, error) if enough else "too_few"
    except FATAL:
        raise
    except AutotttError as error:
        status = _failed(strategy.name, task, error)
    done, value = learner.work - before, None if attempt is None else attempt.value
    return Outcome(
        task_id=task.id, group=task.group, family=task.family, dataset=task.dataset, kind=task.kind,
        strategy=strategy.name, seed=seed, status=status, correct=float(value is not None and value == task.answer),
        seconds=time.perf_counter() - began + learner.prefetch_seconds - ahead, work=done.passes, cost=0.0,
        base_hash=learner.base_hash, recipe=strategy_recipe_digest(strategy, learner.loaded.recipes, task.kind),
        digest=task.digest, forward=done.forward, backward=done.backward,
        confidence=_number(attempt.confidence) if attempt else 0.0,
        answer="" if value is None else content_digest(value),
        gain=_number(attempt.cross_validation.gain) if attempt and attempt.cross_validation else 1.0,
        losses=finite(attempt.training_record.losses if attempt and attempt.training_record else ()),
        votes={content_digest(c.value): _number(c.share) for c in attempt.candidates} if attempt else {},
        prompt_format=learner.loaded.format.name,
    )  # fmt: skip


def _failed(what: str, task: Task, error: Exception) -> str:
    """The status of what raised an error, which is logged."""
    logging.getLogger("autottt").warning("%s failed on %s: %s", what, task.id, error)
    return "failed"


def _number(value: float) -> float:
    """The value, or 0 where it is no finite number."""
    return value if math.isfinite(value) else 0.0


def _measured(outcome: Outcome, learner: Learner, task: Task, seed: int) -> Outcome:
    """The outcome of answering in context with the features of every stage; without any, where measuring fails."""
    learner.reset_charges()
    try:
        reading = learner.read(task)
        answer = learner.answer([task])[0]
        before = learner.work
        values = free_features(task, answer, reading) | probe_features(learner, task, answer, seed)
    except FATAL:
        raise
    except Exception as error:
        _failed("measuring", task, error)
        return outcome
    probe = (learner.work - before).passes / max(outcome.work, 1)
    return replace(outcome, features=values, features_version=FEATURES_VERSION, probe_cost=probe)
