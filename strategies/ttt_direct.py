"""`ttt_direct`: learn the demonstrations as single pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import single_pairs
from ..ttt_core.tasks.task import Task
from .adapter_plan import AdapterPlan, get_or_train_adapter, with_training
from .base import Attempt, CostClass, OnStep, from_answer, register


@register
@dataclass(frozen=True)
class TttDirect:
    """Idea: train on each input-output pair by itself, as ordinary fine-tuning would; answer with the full prompt.

    Wins where the mapping is simple and prompts are long, since its examples are short. Loses on most sets (-11 of 29
    on ARC, -6.3 points on BIG-Bench Hard against leave-one-out prompts). Source: Akyürek et al. 2025, section 5.
    """

    name: str = "ttt_direct"
    cost_class: CostClass = "train"
    min_demonstrations: int = 1
    recipe: Recipe | None = None

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        recipe = self.recipe or learner.recipe(self.name, task.kind)
        return AdapterPlan(self.name, task, recipe, seed, lambda: single_pairs(task), lambda: [task])

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        adapter, known = get_or_train_adapter(learner, self.plan(learner, task, seed), deadline, on_step)
        return with_training(from_answer(self.name, learner.answer([task], adapter)[0]), adapter, known)
