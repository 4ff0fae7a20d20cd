"""`zero_shot`: the query alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.task import Task
from .base import Attempt, CostClass, OnStep, from_answer
from .registry import register


@register
@dataclass(frozen=True)
class ZeroShot:
    """Idea: answer the query with the instruction, where there is one, and without the demonstrations.

    Wins where demonstrations mislead (it beats in-context learning by 56 points on one BIG-Bench Hard sub-task of
    Akyürek et al. 2025). Loses wherever only the demonstrations show the rule, which is almost everywhere here. Source:
    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    name: str = "zero_shot"
    cost_class: CostClass = "read"
    min_demonstrations: int = 0
    recipe: Recipe | None = None
    default_recipe: ClassVar[Recipe | None] = None

    def answers_per_query(self, recipe: Recipe) -> int:
        return 1

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        return from_answer(self.name, learner.answer([task.with_demonstrations(())])[0])
