"""`ttt_warm`: as `ttt_in_context`, from the adapter of the nearest known task."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..ttt_core.learner import Learner
from ..ttt_core.lora.adapter import Adapter
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import leave_one_out_orders
from ..ttt_core.tasks.task import Task
from .adapter_plan import adapter_key, example_count, fit_to_context, with_training
from .base import Attempt, CostClass, OnStep, from_answer, register


@register
@dataclass(frozen=True)
class TttWarm:
    """Idea: of the adapters at hand, begin with the one under which the demonstrations are likeliest, where it beats
    the model as it is; then learn as `ttt_in_context`.

    Wins where tasks of few families come again and again: it took 5.9 steps instead of 9.3, and a third less work.
    Loses where they do not: half a step of 13 was saved, and looking costs as much, a prompt for each known adapter.
    What it does depends on what was learned before, so it is for those who ask for it. Source: ours; the numbers are in
    benchmarks/LOG.md.
    """

    name: str = "ttt_warm"
    cost_class: CostClass = "train"
    min_demonstrations: int = 2
    recipe: Recipe | None = None
    max_candidates: int = 8
    """Adapters that are looked at, those used last."""

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        recipe = self.recipe or learner.recipe(self.name, task.kind)
        rng = random.Random(f"{self.name}-{seed}")

        def train() -> Adapter:
            (examples,), fit = fit_to_context(learner, [leave_one_out_orders(task, example_count(recipe), rng)], recipe)
            start = learner.nearest(task, recipe, self.max_candidates)
            return learner.adapt(examples, fit, seed=seed, deadline=deadline, on_step=on_step, start=start)

        adapter, reused = learner.get_or_train(adapter_key(self.name, task, recipe, seed, self.max_candidates), train)
        return with_training(from_answer(self.name, learner.answer([task], adapter)[0]), adapter, reused)
