"""Views of a task and the vote over them, shared by the strategies that answer more than once. Not a strategy."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..ttt_core.engine.answering import Answer
from ..ttt_core.learner import Learner
from ..ttt_core.lora.adapter import Adapter
from ..ttt_core.recipes import Recipe
from ..ttt_core.spans import span
from ..ttt_core.tasks.augmentation import shuffled
from ..ttt_core.tasks.kinds import kind_of
from ..ttt_core.tasks.task import Task, Value
from ..ttt_core.tasks.transformations import IdentityTransformation, Transformation
from .base import Attempt, Candidate, Strategy, is_plugin, recipe_for

ORDERS = 2
"""Orders of the demonstrations under each transformation."""


def distinct_transformations(learner: Learner, task: Task, count: int, rng: random.Random) -> list[Transformation]:
    """Up to `count` transformations that each make a different task of it, and one that still fits in the context."""
    by_view: dict[Task, Transformation] = {}
    for transformation in kind_of(task).transformations(task, 2 * count, rng):
        view = task.map(transformation.apply)
        if len(by_view) < count and view != task and learner.fits(view):
            by_view.setdefault(view, transformation)
    return list(by_view.values())


def demonstration_transformations(learner: Learner, task: Task, count: int, rng: random.Random) -> list[Transformation]:
    """As `distinct_transformations`, from the demonstrations alone: other queries of theirs use the same adapter."""
    return distinct_transformations(learner, replace(task, query=task.demonstrations[0].input, answer=None), count, rng)


def vote(
    name: str,
    learner: Learner,
    task: Task,
    views: int,
    transformations: Sequence[Transformation],
    rng: random.Random,
    adapter: Adapter | None = None,
) -> Attempt:
    """Answers the task under `views` views (the task as it is, other orders, transformations) and votes.

    Each fold of a cross-validated adapter votes on every view.
    """
    sources: list[Transformation] = [IdentityTransformation(), *transformations]
    prompts = _prompts(learner, task, views, transformations, rng)
    base_answer = learner.answerer.cached_answer(task)
    drafts = [None if base_answer is None else sources[index].apply(base_answer) for index, _ in prompts]
    answers = learner.answers([p for _, p in prompts], adapter, drafts=drafts)
    groups: list[list[Answer]] = [[] for _ in sources]
    for each in answers:
        for (index, _), answer in zip(prompts, each, strict=True):
            value = None if answer.value is None else sources[index].invert(answer.value)
            groups[index].append(replace(answer, value=value))
    with span("vote", views=len(prompts), transformations=len(transformations)) as step:
        tally = _tally(groups)
        candidates = _ranked(tally)
        step.set(
            answers=sum(map(len, groups)),
            candidates=[
                {"value": c.value, "share": c.share, "votes": tally[c.value].votes, "log_prob": tally[c.value].log_prob}
                for c in candidates
            ],
        )
    if not candidates:
        return Attempt(name, None, answers[0][0].text, 0.0)
    best = candidates[0]
    text = kind_of(task).render(best.value, learner.loaded.format_of(task).notation)
    return Attempt(name, best.value, text, best.share, candidates)


def _prompts(
    learner: Learner, task: Task, views: int, transformations: Sequence[Transformation], rng: random.Random
) -> list[tuple[int, Task]]:
    """The views, each with the number of its transformation; 0 is the task as it is."""
    per = [ORDERS] * (1 + len(transformations)) if transformations else [views]
    prompts: list[tuple[int, Task]] = []
    for index, source in enumerate([IdentityTransformation(), *transformations]):
        base = task.map(source.apply)
        prompts += [(index, base if order == 0 else shuffled(base, rng)) for order in range(per[index])]
    return [p for p in _first_unique(prompts) if p[1] == task or learner.fits(p[1])][:views]


def vote_over_views(
    name: str,
    learner: Learner,
    task: Task,
    recipe: Recipe,
    transformations: Sequence[Transformation],
    seed: int,
    adapter: Adapter,
) -> Attempt:
    """The vote under as many views as a recipe has, of those that the adapter was trained under."""
    return vote(name, learner, task, *_view_settings(name, recipe, transformations, seed), adapter)


def view_prompts(
    name: str, learner: Learner, task: Task, recipe: Recipe, transformations: Sequence[Transformation], seed: int
) -> list[Task]:
    """The prompts that `vote_over_views` lets an adapter answer."""
    return [view for _, view in _prompts(learner, task, *_view_settings(name, recipe, transformations, seed))]


def _view_settings(
    name: str, recipe: Recipe, transformations: Sequence[Transformation], seed: int
) -> tuple[int, Sequence[Transformation], random.Random]:
    """The number of views, their transformations, and the random generator of their orders."""
    sources = transformations[: max(0, recipe.views - 1)]
    return recipe.views, sources, random.Random(f"{name}-views-{seed}")


def strategies_with_cached_views(learner: Learner, among: Iterable[Strategy], task: Task) -> list[str]:
    """Strategies of this package that vote over several prompts of a task, whose demonstrations stay cached for further
    queries."""
    length = learner.window.encode(task).shared_prefix_length
    views = {
        each.name: each.answers_per_query(recipe_for(each, learner.loaded.recipes, task.kind))
        for each in among if not is_plugin(each)
    }  # fmt: skip
    return [name for name, count in views.items() if count > 1 and learner.answerer.keeps_views(count, length)]


def _first_unique(prompts: Sequence[tuple[int, Task]]) -> list[tuple[int, Task]]:
    """Prompts without repetitions, one of every transformation before the second of any."""
    seen: dict[Task, int] = {}
    for index, prompt in prompts:
        seen.setdefault(prompt, index)
    unique = [(index, prompt) for prompt, index in seen.items()]
    firsts: dict[int, int] = {}
    ranks = []
    for index, _ in unique:
        ranks.append(firsts.get(index, 0))
        firsts[index] = firsts.get(index, 0) + 1
    return [unique[i] for i in sorted(range(len(unique)), key=lambda i: ranks[i])]


@dataclass(frozen=True)
class _Tally:
    """What speaks for one answer."""

    votes: int
    log_prob: float
    """The highest log-probability with which a view gave it, in nats."""


def _tally(groups: Sequence[Sequence[Answer]], top: int = 3) -> dict[Value, _Tally]:
    """The votes of each answer that is among the first `top` of a group, over all groups.

    Each group holds the answers from one view of a task under several orders, mapped back to the task's own
    representation (the hierarchical vote of Akyürek et al. 2025, section 4.2).
    """
    votes: dict[Value, int] = {}
    likelihood: dict[Value, float] = {}
    for group in groups:
        counts: dict[Value, int] = {}
        for answer in group:
            if answer.value is not None:
                counts[answer.value] = counts.get(answer.value, 0) + 1
                likelihood[answer.value] = max(likelihood.get(answer.value, -math.inf), answer.scores.total)
        best = sorted(counts, key=lambda v: (-counts[v], -likelihood[v]))[:top]
        for value in best:
            votes[value] = votes.get(value, 0) + counts[value]
    return {value: _Tally(count, likelihood[value]) for value, count in votes.items()}


def _ranked(tally: Mapping[Value, _Tally]) -> tuple[Candidate, ...]:
    """The answers by their votes, the likeliest first among equals."""
    total = sum(each.votes for each in tally.values())
    ranked = sorted(tally, key=lambda v: (-tally[v].votes, -tally[v].log_prob))
    return tuple(Candidate(v, tally[v].votes / total) for v in ranked)
