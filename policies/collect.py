"""Collection of outcomes: runs every strategy on every task and seed, and stores each outcome at once.

Knows nothing about training policies. Cost is counted in tokens, not seconds, so that it is equal on every machine and
in every repetition.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..strategies.base import Attempt, Strategy, recipe_digest_for, run
from ..strategies.registry import get_strategy, plugin_proofs
from ..ttt_core.errors import (
    AutotttError,
    BaseChangedError,
    Cancelled,
    ModelError,
    PolicyError,
    StrategyError,
    TaskError,
    TooLongError,
    shortened,
)
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.answers import is_right
from ..ttt_core.tasks.task import Task, content_digest
from .features import FEATURES_VERSION
from .measurement import measure_task
from .outcomes import BASE, Key, Outcome, OutcomeStore, checked, finite

FATAL = (BaseChangedError, Cancelled, ModelError)
"""Errors after which no other outcome can be measured either."""
ANOTHER_STORE = "collect into another --store"
"""What to do about a store whose outcomes must not be mixed with the new ones."""
OnProgress = Callable[[int, int], None]
"""Called with the number of outcomes in the store and the number there will be in the end."""


class ModelIdentity(NamedTuple):
    """What outcomes depend on besides tasks, strategies and seeds."""

    base_hash: str
    prompt_format: str
    recipes: Mapping[str, Recipe]
    starting_adapter: str = ""
    """Digest of the adapter that training starts from; empty if it starts from zero."""

    @classmethod
    def of(cls, learner: Learner) -> ModelIdentity:
        """What the outcomes of a learner depend on."""
        return cls(
            learner.base_hash,
            learner.loaded.prompt_format,
            dict(learner.loaded.recipes),
            learner.adapters.starting_digest,
        )


@dataclass(frozen=True)
class WorkItem:
    """The missing outcomes of one query with one seed."""

    task: Task
    seed: int
    strategies: tuple[Strategy, ...]
    """In the order in which they are run: `in_context` first, if it is missing."""
    in_context_tokens: int | None
    """Token equivalents of `in_context`, if it is not missing."""


Batch = tuple[WorkItem, ...]
"""The missing outcomes of the queries of one task with one seed; one process measures them, since they share
adapters."""


def collect(
    learner: Learner,
    tasks: Sequence[Task],
    strategies: Sequence[Strategy],
    seeds: Sequence[int],
    store: OutcomeStore,
    on_progress: OnProgress | None = None,
    remedy: str = ANOTHER_STORE,
) -> None:
    """Measures the outcomes that the store lacks. May be stopped at any time and called again.

    `in_context` is always run, since all relative costs are multiples of its cost. Each attempt is charged for the
    training of its adapter, even if another query of the task has trained it before. Whatever a strategy raises, except
    `FATAL`, is an outcome with its full cost. Raises `TaskError` for a task without an answer, and `PolicyError` if the
    store holds another task of the same name, an outcome judged by another answer, or outcomes of the same model with
    other recipes or another prompt format; `remedy` is what that message tells the user to do.
    """
    batches, total = missing(ModelIdentity.of(learner), tasks, strategies, seeds, store, remedy)
    done = total - missing_count(batches)
    if on_progress is not None:
        on_progress(done, total)
    with store.sealed():
        for batch in batches:
            for outcome in measure_batch(learner, batch):
                store.append(outcome)
                done += 1
                if on_progress is not None:
                    on_progress(done, total)


def missing(
    identity: ModelIdentity,
    tasks: Sequence[Task],
    strategies: Sequence[Strategy],
    seeds: Sequence[int],
    store: OutcomeStore,
    remedy: str = ANOTHER_STORE,
) -> tuple[list[Batch], int]:
    """The outcomes that the store lacks, by task, and the total number of outcomes. Raises as `collect`."""
    for task in tasks:
        if task.answer is None:
            raise TaskError(
                f"{task.id}: collecting outcomes needs the right answer of every query, and this one has none"
            )
        for seed in seeds:
            _require_storable(task, seed, identity.base_hash)
    base = get_strategy(BASE)
    wanted = [base, *(s for s in strategies if s.name != BASE)]
    stored = store.read()
    _refuse_mismatch(stored, identity, wanted, remedy)
    base_hash, recipes = identity.base_hash, identity.recipes
    known = {outcome.key: outcome for outcome in stored}
    digests = {outcome.key: outcome.digest for outcome in stored}
    batches: dict[tuple[str, str, int], list[WorkItem]] = {}
    keys_of_all = set[Key]()
    given: dict[tuple[str, str], Task] = {}
    _warn_of_families(tasks, stored, base_hash)
    for task in tasks:
        before = given.setdefault((task.dataset, task.id), task)
        if before.digest == task.digest and content_digest(before.answer) != content_digest(task.answer):
            raise PolicyError(
                f"{task.id}: the given tasks, in the data set {task.dataset!r}, hold it twice with different right "
                "answers; correct one of them, or give them other ids"
            )
        for seed in seeds:
            keys = {
                s.name: Key(base_hash, task.dataset, task.id, s.name, seed, recipe_digest_for(s, recipes, task.kind))
                for s in wanted
            }
            for key in keys.values():
                if (digests.get(key) or task.digest) != task.digest:
                    raise PolicyError(
                        f"{task.id}: another task of this name, in the data set {task.dataset!r}, is in {store.folder} "
                        f"or among the given tasks; {remedy}, or give the tasks other ids"
                    )
                digests[key] = task.digest
                if key in known and not _same_right_answer(known[key], task):
                    raise PolicyError(
                        f"{task.id}: its right answer is not the one by which the outcomes in {store.folder} were "
                        f"judged, or answers are compared with it in another way; {remedy}"
                    )
            new = tuple(s for s in wanted if keys[s.name] not in known and keys[s.name] not in keys_of_all)
            keys_of_all |= set(keys.values())
            stored_base = known.get(keys[BASE])
            if new:
                batch = batches.setdefault((task.dataset, task.group, seed), [])
                batch.append(WorkItem(task, seed, new, stored_base.token_equivalents if stored_base else None))
    return [tuple(batch) for batch in batches.values()], len(keys_of_all)


def _warn_of_families(tasks: Sequence[Task], stored: Sequence[Outcome], base_hash: str) -> None:
    """Warns of tasks whose stored outcomes have another family: these keep it, and with it their side of a split."""
    families = {(o.dataset, o.task_id): o.family for o in stored if o.base_hash == base_hash}
    changed = [task for task in tasks if families.get((task.dataset, task.id), task.family) != task.family]
    if changed:
        first = changed[0]
        logging.getLogger("autottt").warning(
            "%s%s: the stored outcomes have the family %s, and the task has %s now; outcomes keep the family with "
            "which they were measured, so collect into another --store to divide tasks by the new one",
            first.id, f" and {len(changed) - 1} more tasks" if changed[1:] else "",
            shortened(families[first.dataset, first.id]), shortened(first.family),
        )  # fmt: skip


def _require_storable(task: Task, seed: int, base_hash: str) -> None:
    """Raises `PolicyError` naming what no store can hold of a task and a seed, before anything is measured."""
    checked(
        Outcome(
            task_id=task.id, group=task.group, family=task.family, dataset=task.dataset, kind=task.kind, strategy=BASE,
            seed=seed, status="answered", correct=0.0, seconds=0.0, token_equivalents=0, relative_cost=0.0,
            base_hash=base_hash, digest=task.digest, comparison=task.comparison,
        )
    )  # fmt: skip


def _same_right_answer(outcome: Outcome, task: Task) -> bool:
    """Whether a stored outcome was judged by the task's right answer and comparison; true if unknown."""
    if outcome.comparison and outcome.comparison != task.comparison:
        return False
    if not outcome.answer or not outcome.digest:
        return True
    equal = outcome.answer == content_digest(task.answer)
    return outcome.correct == float(equal) or not (equal or task.comparison == "exact")


def _refuse_mismatch(
    stored: Sequence[Outcome], identity: ModelIdentity, strategies: Sequence[Strategy], remedy: str
) -> None:
    """Raises `PolicyError` if a store holds outcomes of the model with another prompt format, or of a strategy with
    another recipe: such outcomes must not be mixed."""
    by_name = {strategy.name: strategy for strategy in strategies}
    for outcome in stored:
        if outcome.base_hash != identity.base_hash:
            continue
        if outcome.prompt_format not in ("", identity.prompt_format):
            raise PolicyError(
                f"the store holds outcomes with the prompt format {outcome.prompt_format!r}, and the model is prompted "
                f"in {identity.prompt_format!r} now; {remedy}"
            )
        if outcome.starting_adapter != identity.starting_adapter:
            raise PolicyError(
                f"the store holds outcomes with the starting adapter {outcome.starting_adapter or 'none'}, and now it "
                f"is {identity.starting_adapter or 'none'}; {remedy}"
            )
        strategy = by_name.get(outcome.strategy)
        if strategy is None or not outcome.recipe:
            continue
        if outcome.recipe != (now := recipe_digest_for(strategy, identity.recipes, outcome.kind)):
            raise PolicyError(
                f"the store holds outcomes of {outcome.strategy} on {outcome.kind} tasks with the recipe "
                f"{outcome.recipe}, and the model's is {now} now; {remedy}"
            )


def missing_count(batches: Sequence[Batch]) -> int:
    """The number of missing outcomes."""
    return sum(len(item.strategies) for batch in batches for item in batch)


def measure_batch(learner: Learner, batch: Batch) -> Iterator[Outcome]:
    """Measures the missing outcomes of a task's queries with one seed, one by one."""
    learner.clear()
    for item in batch:
        in_context_tokens = item.in_context_tokens
        # The cost of choosing the prompt format is no strategy's: serving pays it before it decides.
        task = learner.formats.formatted(item.task)
        for strategy in item.strategies:
            with plugin_proofs(learner, strategy):
                outcome = _attempt_outcome(learner, task, strategy, item.seed)
                learner.verify()  # an outcome of a changed base is not stored
            if in_context_tokens is None:
                in_context_tokens = outcome.token_equivalents
            relative = outcome.token_equivalents / in_context_tokens if in_context_tokens else 0.0
            outcome = replace(outcome, relative_cost=relative)
            if strategy.name == BASE and outcome.status not in ("too_long", "failed"):
                outcome = _with_features(outcome, learner, item.task, item.seed)
            yield outcome
    learner.clear()


def _attempt_outcome(learner: Learner, task: Task, strategy: Strategy, seed: int) -> Outcome:
    """The outcome of one attempt, without its relative cost."""
    learner.reset_charges()
    meter = learner.guarded.meter()
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
    cost, value = meter.read(), None if attempt is None else attempt.value
    return Outcome(
        task_id=task.id, group=task.group, family=task.family, dataset=task.dataset, kind=task.kind,
        strategy=strategy.name, seed=seed, status=status, correct=float(is_right(task, value)),
        seconds=cost.seconds, token_equivalents=cost.token_equivalents, relative_cost=0.0,
        base_hash=learner.base_hash, digest=task.digest, comparison=task.comparison,
        recipe=recipe_digest_for(strategy, learner.loaded.recipes, task.kind),
        forward_tokens=cost.forward_tokens, backward_tokens=cost.backward_tokens,
        confidence=_finite(attempt.confidence) if attempt else 0.0,
        answer="" if value is None else content_digest(value),
        held_out_gain=_finite(attempt.cross_validation.gain) if attempt and attempt.cross_validation else 1.0,
        losses=finite(attempt.training_record.losses if attempt and attempt.training_record else ()),
        vote_shares={content_digest(c.value): _finite(c.share) for c in attempt.candidates} if attempt else {},
        prompt_format=learner.loaded.prompt_format, starting_adapter=learner.adapters.starting_digest,
    )  # fmt: skip


def _failed(what: str, task: Task, error: Exception) -> str:
    """Logs an error and returns the status `failed`."""
    log = logging.getLogger("autottt")
    log.warning("%s failed on %s: %s", what, task.id, type(error).__name__)
    log.debug("what the error says, which may quote the task: %s", error)
    return "failed"


def _finite(value: float) -> float:
    """The value, or 0 if it is not finite."""
    return value if math.isfinite(value) else 0.0


def _with_features(outcome: Outcome, learner: Learner, task: Task, seed: int) -> Outcome:
    """The outcome of `in_context` with the features of all stages; without features if measuring them fails."""
    learner.reset_charges()
    try:
        measurement = measure_task(learner, task, seed, wants_probe=lambda features, cost: True)
    except FATAL:
        raise
    except Exception as error:
        _failed("measuring features", task, error)
        return outcome
    return replace(
        outcome, features=measurement.features.values, features_version=FEATURES_VERSION,
        probe_cost=measurement.probe_cost.token_equivalents / max(outcome.token_equivalents, 1),
    )  # fmt: skip
