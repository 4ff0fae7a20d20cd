"""`ttt_augmented`: learn from the demonstrations under invertible transformations, and vote."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ttt_core.examples import reordered, transformed
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks import Task
from .adapting import adapter_for, examples_of, learned
from .base import Attempt, CostClass, OnStep, register
from .views import changing, vote


@register
@dataclass(frozen=True)
class TttAugmented:
    """Idea: as `ttt_in_context`, with the prompts also shown turned, flipped or recoloured; then vote over such views.

    Wins on grids: transformations are worth 16 of the 29 ARC tasks that the paper solves. Loses where a
    transformation breaks the rule (numbers that mean amounts, not symbols), and costs several answers more. Text has no
    transformations but the order. Source: Akyürek et al. 2025, sections 3 and 4.
    """

    name: str = "ttt_augmented"
    cost_class: CostClass = "train"
    needs: int = 2
    recipe: Recipe | None = None

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        recipe = self.recipe or learner.recipe(self.name)
        rng = random.Random(f"{self.name}-{seed}")
        # Drawn from the demonstrations alone: another query of theirs finds the same adapter.
        shown = replace(task, query=task.demonstrations[0].input, answer=None)
        transformations = changing(learner, shown, recipe.transformations, rng)

        def examples() -> Sequence[Task]:
            return transformed(reordered(task, examples_of(recipe), rng), transformations)

        adapter, known = adapter_for(
            self.name, learner, task, recipe, examples, seed=seed, deadline=deadline, on_step=on_step
        )
        views = random.Random(f"{self.name}-views-{seed}")
        sources = transformations[: max(0, recipe.views - 1)]
        return learned(vote(self.name, learner, task, recipe.views, sources, views, adapter), adapter, known)
