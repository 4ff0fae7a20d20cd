"""What adapter to train for a task's demonstrations: a plan, made before anything is trained. Knows no strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..model.context_window import ContextWindow
from ..recipes import Recipe
from ..tasks.task import Task
from .cost import TRAINING_WEIGHT

SAMPLED_PROMPTS = 8
"""Prompts of an adapter whose lengths are measured for an estimate."""


@dataclass(frozen=True)
class TrainingExamples:
    """The prompts that an adapter is trained on; for cross-validation, those of each fold."""

    folds: Sequence[Sequence[Task]]
    """One list of tasks with known answers per adapter: a single list unless the plan cross-validates."""
    held_out: Sequence[Sequence[Task]] = ()
    """Per fold, the tasks that its adapter is evaluated on."""

    def training_tokens(self, recipe: Recipe, window: ContextWindow) -> int:
        """Token equivalents of all steps of a recipe with its adapted batch size, estimated from the first prompts."""
        steps = TRAINING_WEIGHT * recipe.max_steps * recipe.batch_size
        return round(sum(steps * fmean(window.length(task) for task in fold[:SAMPLED_PROMPTS]) for fold in self.folds))


@dataclass(frozen=True)
class AdapterPlan:
    """How to train the adapter of a task's demonstrations. Queries that share the demonstrations share the adapter."""

    key: object
    """What the adapter is cached under; its `repr` is stable across processes."""
    task: Task
    recipe: Recipe
    seed: int
    make_examples: Callable[[], TrainingExamples]
    """Called only where no adapter is cached yet."""
    inference_prompts: Callable[[], Sequence[Task]] = tuple
    """Makes the prompts that the adapter will answer greedily, so that they can be answered ahead."""
    cross_validates: bool = False
    """Whether there is one adapter per fold, evaluated on `TrainingExamples.held_out`."""
    trial_steps: int = 0
    """Steps after which cross-validated training is given up unless it has beaten the base; 0: it is not given up."""
    warm_start_candidates: int = 0
    """How many cached adapters are compared as a starting point; 0: training starts from a new adapter."""
    strategy: str = ""
    """Name of the strategy that plans it, for lists of cached adapters."""
    scope: str | None = None
    """Whose adapter it is; None: of the scope in which it is trained, see `AdapterProvider.scoped`."""
    max_seconds: float = math.inf
    """Seconds that its training may take in a batch with others, where the seconds of the batch are divided in
    proportion to tokens. The training of an adapter by itself has a deadline."""

    @property
    def can_be_prefetched(self) -> bool:
        """Whether its adapter can be trained in one batch with the adapters of other tasks."""
        return not self.cross_validates and not self.warm_start_candidates

    def fitted_examples(self, window: ContextWindow) -> tuple[TrainingExamples, Recipe]:
        """The distinct examples, and the recipe with a batch size that suits their number and length.

        A few demonstrations make fewer distinct prompts than the recipe's batch size; then a step takes each of them
        once. Raises `TooLongError` for prompts that do not fit in the context.
        """
        made = self.make_examples()
        folds = [list(dict.fromkeys(examples)) for examples in made.folds]
        batch_size = min(self.recipe.batch_size, *map(len, folds))
        if self.recipe.max_tokens_per_step:
            longest = max(window.length(task) for examples in folds for task in examples)
            batch_size = min(batch_size, self.recipe.max_tokens_per_step // longest)
        return replace(made, folds=folds), replace(self.recipe, batch_size=max(1, batch_size))
