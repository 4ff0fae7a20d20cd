"""`ttt_warm`: as `ttt_in_context`, from the adapter of the nearest known task."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..ttt_core.adapters import Adapter
from ..ttt_core.examples import reordered
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks import Task
from .adapting import examples_of, fitting, key_of, learned
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
    needs: int = 2
    recipe: Recipe | None = None
    known: int = 8
    """Adapters that are looked at, those used last."""

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        recipe = self.recipe or learner.recipe(self.name, task.kind)
        rng = random.Random(f"{self.name}-{seed}")

        def train() -> Adapter:
            (examples,), fit = fitting(learner, [reordered(task, examples_of(recipe), rng)], recipe)
            start = learner.nearest(task, recipe, self.known)
            return learner.adapt(examples, fit, seed=seed, deadline=deadline, on_step=on_step, start=start)

        adapter, reused = learner.remembered(key_of(self.name, task, recipe, seed, self.known), train)
        return learned(from_answer(self.name, learner.answer([task], adapter)[0]), adapter, reused)
