"""`ttt_direct`: learn the demonstrations as single pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ..ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import single_pairs
from ..ttt_core.tasks.task import Task
from .adapter_training import BIG_BENCH_RECIPE, adapter_key, with_training
from .base import Attempt, CostClass, OnStep, from_answer, recipe_for
from .registry import register


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
    default_recipe: ClassVar[Recipe | None] = replace(BIG_BENCH_RECIPE, loss="last")

    def answers_per_query(self, recipe: Recipe) -> int:
        return 1

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        recipe = recipe_for(self, learner.loaded.recipes, task.kind)
        return AdapterPlan(
            adapter_key(self.name, task, recipe, seed), task, recipe, seed,
            make_examples=lambda: TrainingExamples([single_pairs(task)]),
            inference_prompts=lambda: [task],
            strategy=self.name,
        )  # fmt: skip

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        adapter, from_cache = learner.adapters.get_or_train(self.plan(learner, task, seed), deadline, on_step)
        answer = learner.answer([task], adapter)[0]
        return with_training(from_answer(self.name, answer), adapter, from_cache)
