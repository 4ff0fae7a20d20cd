"""What a strategy is, what it returns, and how one is run. Knows no strategy by name; the registry does.

A new strategy is one file in this folder with a frozen dataclass under `registry.register`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Literal, Protocol, runtime_checkable

from ..ttt_core.engine.answering import Answer
from ..ttt_core.engine.cost import TRAINING_WEIGHT
from ..ttt_core.engine.cost import Cost as Cost
from ..ttt_core.errors import (
    AdaptationError,
    AutotttError,
    BaseChangedError,
    Cancelled,
    DeadlineError,
    ModelError,
    StrategyError,
    TaskError,
    described,
    is_interruption,
    shortened,
)
from ..ttt_core.learner import Learner
from ..ttt_core.lora.cross_validation import CrossValidationResult
from ..ttt_core.lora.training import OnStep as OnStep
from ..ttt_core.lora.training import TrainingRecord
from ..ttt_core.recipes import Recipe, recipe_digest
from ..ttt_core.tasks.fields import as_utf8, is_utf8
from ..ttt_core.tasks.kinds import KINDS
from ..ttt_core.tasks.task import Task, Value

ROUNDING = 1e-6
"""By how much a probability may exceed 1."""
CostClass = Literal["read", "sample", "train"]
"""One pass over the prompt; several; or training."""


@dataclass(frozen=True)
class Candidate:
    """An answer that was voted for."""

    value: Value
    share: float
    """Of the votes, 0 to 1."""


@dataclass(frozen=True)
class Attempt:
    """What a strategy made of a task."""

    strategy: str
    value: Value | None
    """The answer; None when there is none that can be read."""
    text: str
    """The answer as the model wrote it."""
    confidence: float
    """Probability that the model gives its answer, or the share of votes for it; 0 to 1."""
    candidates: tuple[Candidate, ...] = ()
    training_record: TrainingRecord | None = None
    cross_validation: CrossValidationResult | None = None
    """Of cross-fitted training: what held-out demonstrations say of it."""
    from_cache: bool = False
    """Whether the adapter was known already."""
    recipe: str = ""
    """Digest of the recipe that was used; empty for strategies without one."""
    error: str = ""
    """Why there is no answer, where an attempt failed."""
    cost: Cost = field(default_factory=Cost)

    @property
    def status(self) -> Literal["answered", "unreadable", "failed"]:
        """A failure is never dressed up as an answer."""
        if self.error:
            return "failed"
        return "answered" if self.value is not None else "unreadable"


class Strategy(Protocol):
    """One way to answer a task. Fields of the dataclass are its settings."""

    @property
    def name(self) -> str: ...

    @property
    def cost_class(self) -> CostClass: ...

    @property
    def min_demonstrations(self) -> int:
        """Demonstrations without which it cannot run."""
        ...

    @property
    def recipe(self) -> Recipe | None:
        """Overrides the model's recipe and `default_recipe`."""
        ...

    @property
    def default_recipe(self) -> Recipe | None:
        """For models that bring no recipe for this strategy; None for a strategy that needs no recipe."""
        ...

    def answers_per_query(self, recipe: Recipe) -> int:
        """How many answers are decoded for a query under a recipe; 1 unless they are voted over. Where folds of the
        demonstrations vote, of a task with many demonstrations; see `CrossValidates`."""
        ...

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        """Answers the task. The learner is as before when it returns or raises.

        `deadline` is a time of `ttt_core.clock.monotonic` by which training stops. Raises `TooLongError` when the task
        does not fit in the context, and `AdaptationError` or `DeadlineError`, which `run` turns into a failed attempt.
        """
        ...


@runtime_checkable
class CrossValidates(Protocol):
    """A strategy that trains an adapter for each fold of the demonstrations, which all vote under every view."""

    def fold_count(self, demonstrations: int) -> int:
        """The number of folds where a task has this number of demonstrations."""
        ...


def recipe_for(strategy: Strategy, recipes: Mapping[str, Recipe], kind: str) -> Recipe:
    """The recipe that a strategy uses on tasks of a kind: its own, else the model's for the kind (`NAME/KIND`) or for
    any kind (`NAME`) in `recipes`, else its default.
    """
    if strategy.recipe is not None:
        return strategy.recipe
    by_model = recipes.get(f"{strategy.name}/{kind}") or recipes.get(strategy.name)
    return by_model or strategy.default_recipe or Recipe()


def recipe_digest_for(strategy: Strategy, recipes: Mapping[str, Recipe], kind: str) -> str:
    """The digest of the recipe that a strategy uses; empty for a strategy that needs none."""
    return recipe_digest(recipe_for(strategy, recipes, kind)) if strategy.default_recipe is not None else ""


def answer_count(strategy: Strategy, recipes: Mapping[str, Recipe], task: Task) -> int:
    """How many answers a strategy decodes for a query: `Strategy.answers_per_query`, or of as many folds as the
    demonstrations of the task make."""
    recipe = recipe_for(strategy, recipes, task.kind)
    if isinstance(strategy, CrossValidates):
        return _count(strategy, lambda: strategy.fold_count(len(task.demonstrations)) * recipe.views)
    return _count(strategy, lambda: strategy.answers_per_query(recipe))


def _count(strategy: Strategy, count: Callable[[], int]) -> int:
    """A number of answers of a strategy; 1 where a plug-in raises or gives no such number, which is logged. It only
    serves to estimate costs: no query is lost for it."""
    if not is_plugin(strategy):
        return count()
    try:
        return checked_count(count())
    except Exception as error:
        log = logging.getLogger("autottt")
        log.warning("%s does not say how many answers it gives: %s", strategy.name, type(error).__name__)
        log.debug("the error of %s", strategy.name, exc_info=True)
        return 1


def checked_count(answers: object) -> int:
    """A number of answers. Raises `TypeError` for what is none."""
    if not isinstance(answers, int) or isinstance(answers, bool) or answers < 1:
        raise TypeError(f"expected a number of answers, at least 1; received {shortened(answers)}")
    return answers


def nominal_cost(recipes: Mapping[str, Recipe], strategy: Strategy) -> float:
    """The cost of a strategy in multiples of an in-context answer, by its recipe alone: its answers, and its
    training prompts, each with the weight of a prompt that is trained on. Each fold has an adapter."""
    recipe = recipe_for(strategy, recipes, "")
    answers = _count(strategy, lambda: strategy.answers_per_query(recipe))
    adapters = max(1, answers // recipe.views) if strategy.cost_class == "train" else 0
    return float(answers + TRAINING_WEIGHT * adapters * recipe.max_steps * recipe.batch_size)


def is_plugin(strategy: object) -> bool:
    """Whether a strategy's class is not part of this package."""
    return not type(strategy).__module__.startswith(f"{__name__.rpartition('.')[0]}.")


def run(
    strategy: Strategy,
    learner: Learner,
    task: Task,
    *,
    seed: int = 0,
    deadline: float = math.inf,
    on_step: OnStep | None = None,
) -> Attempt:
    """Runs an attempt in the prompt format of the task, or else in the one that is chosen now, and adds its cost.

    A training that fails makes a failed attempt, and so does an unexpected exception of a strategy, which is logged, or
    what a plug-in returns in place of an attempt. Other errors of this package are raised; of a plug-in, which may have
    made tasks of its own, only a cancellation, a model that has changed or cannot be used, and `KeyboardInterrupt` are.

    Raises `StrategyError` when the task has too few demonstrations and `TooLongError` when it does not fit.
    """
    if len(task.demonstrations) < (needs := strategy.min_demonstrations):
        raise StrategyError(
            f"{task.id}: {strategy.name} needs {needs} demonstration{'' if needs == 1 else 's'}; the task has "
            f"{len(task.demonstrations)}"
        )
    meter = learner.guarded.meter()
    try:
        task = learner.formats.formatted(task)
        with learner.guarded.running_plugin() if is_plugin(strategy) else nullcontext():
            attempt = strategy.attempt(learner, task, seed=seed, deadline=deadline, on_step=on_step)
        if is_plugin(strategy):
            attempt = _checked(attempt, strategy.name, task)
    except (AdaptationError, DeadlineError) as error:
        said = as_utf8(described(error)) if is_plugin(strategy) else str(error)  # which may quote the task
        attempt = Attempt(strategy.name, None, "", 0.0, error=said)
    except (BaseChangedError, Cancelled, ModelError):
        raise
    except BaseException as error:
        is_own = not is_plugin(strategy) and (isinstance(error, AutotttError) or not isinstance(error, Exception))
        if is_own or is_interruption(error):
            raise
        log = logging.getLogger("autottt")
        log.warning("%s failed on %s: %s", strategy.name, task.id, type(error).__name__)
        log.debug("the error of %s, which may quote the task", strategy.name, exc_info=True)
        attempt = Attempt(strategy.name, None, "", 0.0, error=as_utf8(described(error)))
    digest = recipe_digest_for(strategy, learner.loaded.recipes, task.kind)
    return replace(attempt, cost=meter.read(), recipe=digest)


def _checked(attempt: object, name: str, task: Task) -> Attempt:
    """What a plug-in returned, under its own name and with its value in canonical form. Raises `TypeError` or
    `ValueError` for what is no attempt, or has a field of another type."""
    if not isinstance(attempt, Attempt):
        raise TypeError(f"attempt: expected an Attempt; received a {type(attempt).__name__}")
    for field_name in ("text", "error"):
        if not isinstance(text := getattr(attempt, field_name), str):
            raise TypeError(f"{field_name}: expected a text; received a {type(text).__name__}")
        if not is_utf8(text):
            raise ValueError(f"{field_name}: expected a text that UTF-8 can hold; received {shortened(text)}")
    confidence = attempt.confidence
    if not isinstance(confidence, Real) or isinstance(confidence, bool):
        raise TypeError(f"confidence: expected a number between 0 and 1; received a {type(confidence).__name__}")
    if not 0 <= confidence <= 1 + ROUNDING:
        raise ValueError(f"confidence: expected a number between 0 and 1; received {confidence!r}")
    check = KINDS[task.kind].check
    try:
        value = None if attempt.value is None else check(attempt.value)
        candidates = tuple(replace(candidate, value=check(candidate.value)) for candidate in attempt.candidates)
    except TaskError as error:
        raise ValueError(f"value: {error}") from None
    return replace(attempt, strategy=name, value=value, confidence=min(1.0, float(confidence)), candidates=candidates)


def from_answer(name: str, answer: Answer) -> Attempt:
    """The attempt that a single decoded answer makes."""
    return Attempt(name, answer.value, answer.text, math.exp(answer.scores.total))
