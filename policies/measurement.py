"""Measures a task before anything is decided: the in-context answer, and the features in stages of rising cost.

Serving and collecting call the same function, so that a policy is trained on what it will see. Knows no policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from ..strategies.base import Attempt, from_answer
from ..ttt_core.engine.cost import Cost
from ..ttt_core.engine.format_choice import FormatChoice
from ..ttt_core.learner import Learner
from ..ttt_core.spans import span
from ..ttt_core.tasks.task import Task
from .feature_measures import ModelFacts, free_features, probe_features
from .features import Features
from .outcomes import BASE


@dataclass(frozen=True)
class Measurement:
    """What is known of a task before the first decision."""

    in_context: Attempt
    features: Features
    in_context_tokens: int
    """Tokens of an in-context answer, prompt and answer, where nothing of the prompt is cached."""
    probe_cost: Cost = field(default_factory=Cost)
    """Of the features of stage 1; zero where they were not measured."""
    format_choice: FormatChoice = field(default_factory=lambda: FormatChoice(""))
    """The prompt format in which the task was measured, and must be answered."""


def measure_task(learner: Learner, task: Task, seed: int, wants_probe: Callable[[Features, Cost], bool]) -> Measurement:
    """Chooses the prompt format, answers in context and measures the free features; where `wants_probe` says so of them
    and of the cost so far, also those of stage 1. Raises `TooLongError` for a task that does not fit in the context.
    """
    meter = learner.guarded.meter()
    choice = learner.formats.choose(task)
    task = learner.formats.formatted(task)
    learner.answerer.clear_scores()  # the cost is a label to learn from, so it must not depend on earlier queries
    scores = learner.answerer.read(task)
    answer = learner.answerer.answers([task])[0][0]
    cost = meter.read() - choice.cost
    model = ModelFacts.of(learner, choice.margin)
    features = Features(0, free_features(task, answer, scores, model))
    probe_cost = Cost()
    if wants_probe(features, cost):
        probe = learner.guarded.meter()
        with span("probe") as step:
            features = Features(1, {**features.values, **probe_features(learner, task, answer, seed, model)})
            probe_cost = probe.read()
            step.set(cost=asdict(probe_cost))
    tokens = len(learner.window.encode(task).ids) + len(answer.scores.log_probs)
    return Measurement(replace(from_answer(BASE, answer), cost=cost), features, tokens, probe_cost, choice)
