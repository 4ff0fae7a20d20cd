"""What a task's adapter is to learn, and training it: shared by the strategies that learn. Not a strategy itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from ..ttt_core.learner import Learner
from ..ttt_core.lora.adapter import Adapter
from ..ttt_core.lora.training import OnStep
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.task import Task
from .base import Attempt

MAX_EXAMPLES = 250
"""Different prompts that an adapter is trained on, as in Akyürek et al. 2025; more steps see them again."""


def example_count(recipe: Recipe) -> int:
    """How many prompts the steps of a recipe use, up to `MOST_EXAMPLES`."""
    return min(MAX_EXAMPLES, recipe.max_steps * recipe.batch_size)


def adapter_key(strategy: str, task: Task, recipe: Recipe, seed: int, *more: object) -> object:
    """What the adapter of a task's demonstrations is kept under; `more` are settings of the strategy."""
    return strategy, recipe, seed, task.kind, task.demonstrations, task.instruction, *more


def fit_to_context(
    learner: Learner, prompts: Sequence[Sequence[Task]], recipe: Recipe
) -> tuple[list[list[Task]], Recipe]:
    """The different prompts of each adapter, and the recipe for as many, and as long ones.

    A few demonstrations make fewer different prompts than the recipe's batch; then a step has each of them once. Raises
    `TooLongError` for prompts that do not fit in the context.
    """
    different = [list(dict.fromkeys(some)) for some in prompts]
    batch = min(recipe.batch_size, *map(len, different))
    if recipe.max_tokens_per_step:
        batch = min(batch, recipe.max_tokens_per_step // max(learner.length(t) for some in different for t in some))
    return different, replace(recipe, batch_size=max(1, batch))


@dataclass(frozen=True)
class AdapterPlan:
    """What is to be learned from a task's demonstrations; queries that share them share it."""

    strategy: str
    task: Task
    recipe: Recipe
    seed: int
    make_examples: Callable[[], Sequence[Task]]
    """Makes the prompts to train on; it is asked only where there is no adapter yet."""
    inference_prompts: Callable[[], Sequence[Task]]
    """Gives what the adapter will be asked, at temperature 0."""

    @property
    def key(self) -> object:
        """What its adapter is kept under."""
        return adapter_key(self.strategy, self.task, self.recipe, self.seed)

    def examples(self, learner: Learner) -> tuple[list[Task], Recipe]:
        """The different prompts, and the recipe for them. Raises `TooLongError` as `fitting`."""
        (different,), recipe = fit_to_context(learner, [self.make_examples()], self.recipe)
        return different, recipe


@runtime_checkable
class PlansAdapter(Protocol):
    """A strategy whose adapter can be trained beside those of other tasks."""

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan: ...


def get_or_train_adapter(
    learner: Learner, lesson: AdapterPlan, deadline: float, on_step: OnStep | None
) -> tuple[Adapter, bool]:
    """The lesson's adapter, and whether it was known."""

    def train() -> Adapter:
        examples, recipe = lesson.examples(learner)
        return learner.adapt(examples, recipe, seed=lesson.seed, deadline=deadline, on_step=on_step)

    return learner.get_or_train(lesson.key, train)


def has_adapter(learner: Learner, strategy: object, task: Task, seed: int) -> bool:
    """Whether the strategy's adapter for a task is there already, so that only answering costs."""
    return isinstance(strategy, PlansAdapter) and learner.has_adapter(strategy.plan(learner, task, seed).key)


def prefetch_adapters(learner: Learner, lessons: Sequence[AdapterPlan], on_step: OnStep | None = None) -> None:
    """Trains the adapters that are not known yet side by side, for the attempts that come; on an accelerator they also
    answer side by side.

    Each attempt then finds what it needs, and is charged what it cost. Lessons that fail are left to their attempts;
    what `on_step` raises is raised.
    """
    new = {lesson.key: lesson for lesson in lessons if not learner.has_adapter(lesson.key)}
    alike: dict[object, list[tuple[AdapterPlan, list[Task], Recipe]]] = {}
    for lesson in new.values():
        try:
            examples, recipe = lesson.examples(learner)
        except Exception:
            continue  # over-long, or a strategy's mistake: met again, and told, by its attempt
        alike.setdefault(recipe.batching_key, []).append((lesson, examples, recipe))
    for some in alike.values():
        taught, examples_of_each, recipes = zip(*some, strict=True)
        keys, seeds = [lesson.key for lesson in taught], [lesson.seed for lesson in taught]
        learner.prefetch(keys, examples_of_each, recipes, seeds, on_step=on_step)
    if learner.batches_adapters:
        asked: dict[object, list[Task]] = {}
        for lesson in lessons:
            asked.setdefault(lesson.key, []).extend(lesson.inference_prompts())
        learner.prefetch_answers(list(asked), list(asked.values()))


def with_training(attempt: Attempt, adapter: Adapter, known: bool) -> Attempt:
    """The attempt with what training did."""
    return replace(
        attempt, training_record=adapter.training, cross_validation=adapter.cross_validation, from_cache=known
    )
