"""Answers of many adapters decoded side by side are those of each alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from autottt.controller.controller import Controller
from autottt.policies.policy import FixedPolicy
from autottt.strategies.base import get_strategy, strategies
from autottt.ttt_core.engine import prefetch
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.generation import Generated
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import ARCHITECTURES

QUICK = Recipe(
    rank=4, alpha=8.0, dropout=0.0, learning_rate=3e-2, max_steps=4, batch_size=2, views=3, transformations=2
)


def task_of(number: int, count: int) -> Task:
    """Unequal lengths and numbers of demonstrations."""
    pairs = [([i, number, i + 1], [i + 1, number, i]) for i in range(count)]
    return make_task(pairs, [5, number, 6], answer=[6, number, 5], id=f"task {number}")


TASKS = [task_of(number, 2 + number) for number in range(4)]


def ready(make_learner: Any, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Learner:
    learner: Learner = make_learner(architecture, dtype)
    learner.window.max_new_tokens = lambda task: 6  # type: ignore[method-assign]
    learner.prefetch(list("abcd"), [leave_one_out(t) for t in TASKS], QUICK, list(range(4)))
    return learner


def asked(index: int) -> list[Task]:
    """As many as its number and one, so that adapters are asked unequally much."""
    return [replace(TASKS[index], query=(n, 3, 1)) for n in range(index + 1)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_answered_side_by_side_is_what_each_answers_alone(architecture: str, make_learner: Any) -> None:
    learner = ready(make_learner, architecture)
    learner.prefetch_answers(list("abcd"), [asked(i) for i in range(4)])
    assert len(learner.store.answers) == 4
    for index, key in enumerate("abcd"):
        adapter, known = learner.get_or_train(key, pytest.fail)
        assert not known
        before = learner.work.forward
        ahead = learner.answer(asked(index), adapter)
        assert learner.work.forward - before >= sum(len(learner.encode(t).ids) for t in asked(index))
        learner.store.answers.clear()
        alone = learner.answer(asked(index), adapter)
        for one, other in zip(ahead, alone, strict=True):
            assert one.text == other.text
            assert one.scores.log_probs == pytest.approx(other.scores.log_probs, abs=1e-3)
        learner.prefetch_answers(list("abcd"), [asked(i) for i in range(4)])


def test_adapters_of_unlike_shapes_and_scales_answer_apart(make_learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learner: Learner = make_learner()
    learner.window.max_new_tokens = lambda task: 6  # type: ignore[method-assign]
    recipes = [
        QUICK,
        replace(QUICK, rank=2),
        replace(QUICK, alpha=64.0),
        replace(QUICK, target_modules=("q_proj",)),
        QUICK,
    ]
    for number, recipe in enumerate(recipes):
        learner.prefetch([number], [leave_one_out(TASKS[1])], recipe, [number])
    sizes: list[int] = []
    real = prefetch.decode_per_adapter

    def counted(loaded: Any, prompts: Any, *more: Any) -> list[list[Generated]]:
        sizes.append(len(prompts))
        return real(loaded, prompts, *more)

    monkeypatch.setattr(prefetch, "decode_per_adapter", counted)
    learner.prefetch_answers(range(5), [[TASKS[1]]] * 5)
    assert sorted(sizes) == [1, 1, 1, 2]
    answered = []
    for number in range(5):
        adapter, _ = learner.get_or_train(number, pytest.fail)
        before = learner.prefetch_seconds
        answered.append((adapter, *learner.answer([TASKS[1]], adapter)))
        assert learner.prefetch_seconds > before
    learner.store.answers.clear()
    for adapter, ahead in answered:
        (alone,) = learner.answer([TASKS[1]], adapter)
        assert ahead.scores.log_probs == pytest.approx(alone.scores.log_probs, abs=1e-3)


def test_what_was_not_asked_ahead_is_answered_as_ever(make_learner: Any) -> None:
    learner = ready(make_learner)
    learner.prefetch_answers(["a", "b", "unknown"], [asked(0), asked(1), asked(2)])
    adapter, _ = learner.get_or_train("b", pytest.fail)
    other = replace(TASKS[1], query=(9, 9, 9))
    found = learner.answer([*asked(1), other], adapter)
    learner.clear()
    assert [a.text for a in learner.answer([*asked(1), other], adapter)] == [a.text for a in found]


def test_where_memory_does_not_suffice_fewer_adapters_answer_at_once(
    make_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = ready(make_learner)
    real, sizes = prefetch.decode_per_adapter, []

    def narrow(loaded: Any, prompts: Any, *more: Any) -> list[list[Generated]]:
        if len(prompts) > fits:
            raise torch.OutOfMemoryError("too much")
        sizes.append(len(prompts))
        return real(loaded, prompts, *more)

    monkeypatch.setattr(prefetch, "decode_per_adapter", narrow)
    fits = 1
    learner.prefetch_answers(list("abcd"), [asked(i) for i in range(4)])
    assert sizes == [1] * 4
    assert len(learner.store.answers) == 4
    sizes.clear()
    fits = 2
    learner.prefetch_answers(list("abcd"), [asked(0)] * 4)
    assert sizes == [2, 2]
    fits = 0
    learner.store.answers.clear()
    learner.prefetch_answers(list("abcd"), [asked(i) for i in range(4)])
    assert len(learner.store.answers) == 0, "they answer when they are asked"


@pytest.mark.parametrize("strategy", ["ttt_direct", "ttt_in_context", "ttt_augmented"])
def test_a_queue_on_an_accelerator_gets_the_same_answers_in_fewer_passes(
    strategy: str, make_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner()
    controller = Controller(learner, FixedPolicy(strategy))
    settings = replace(get_strategy(strategy), recipe=QUICK)  # type: ignore[type-var]
    monkeypatch.setattr("autottt.strategies.base._REGISTRY", {**strategies(), strategy: settings})
    passes: list[int] = []
    handle = learner.loaded.model.register_forward_pre_hook(lambda *_: passes.append(1))
    alone = controller.solve_many(TASKS)
    one_by_one = len(passes)
    learner.clear()
    monkeypatch.setattr(Learner, "batches_adapters", True)
    side_by_side = controller.solve_many(TASKS)
    handle.remove()
    assert [r.text for r in side_by_side] == [r.text for r in alone]
    assert [r.adapted for r in side_by_side] == [True] * 4
    assert len(learner.store.answers) == 0
    assert len(passes) - one_by_one <= one_by_one - 4


def test_a_queue_of_unlike_tasks_is_trained_in_one_batch(make_learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds that take other numbers of steps, and prompts that only fit in smaller batches."""
    learner = make_learner()
    grids = [([[i, 0], [0, i]], [[0, i], [i, 0]]) for i in range(1, 5)]
    mixed = [*TASKS, make_task(grids, [[7, 0], [0, 7]], answer=[[0, 7], [7, 0]], id="grids")]
    tokens = 2 * learner.length(TASKS[0])
    settings = {
        kind: replace(QUICK, max_steps=steps, max_tokens_per_step=tokens) for kind, steps in (("list", 3), ("grid", 5))
    }
    monkeypatch.setattr(learner, "recipe", lambda strategy, kind="": settings[kind])
    batches: list[list[Recipe]] = []
    real = learner.trainer.adapt_many

    def noted(examples: Any, recipes: Any, *given: Any, **more: Any) -> Any:
        batches.append(list(recipes))
        return real(examples, recipes, *given, **more)

    monkeypatch.setattr(learner.trainer, "adapt_many", noted)
    results = Controller(learner, FixedPolicy("ttt_in_context")).solve_many(mixed)
    assert [r.adapted for r in results] == [True] * 5
    assert len(batches) == 1
    assert {(r.max_steps, r.batch_size) for r in batches[0]} >= {(3, 2), (3, 1), (5, 1)}
    trained = [[a.training_record.steps for a in r.attempts if a.training_record] for r in results]
    assert trained == [[3], [3], [3], [3], [5]]
    spent = [next(a.training_record for a in r.attempts if a.training_record) for r in results]
    each = {round(t.seconds / t.tokens, 9) for t in spent}
    assert len(each) == 1, "each is charged the time that its tokens took"
