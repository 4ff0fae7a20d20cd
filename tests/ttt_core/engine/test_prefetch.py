"""Answers of many adapters decoded side by side are those of each alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from autottt.controller.controller import Controller
from autottt.policies.policy import FixedPolicy
from autottt.strategies.registry import get_strategy, strategies
from autottt.ttt_core.engine import prefetch
from autottt.ttt_core.engine.adapter_plan import AdapterPlan
from autottt.ttt_core.engine.guarded_model import GuardedModel
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


def ready(make_learner: Any, plans: Any, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Learner:
    learner: Learner = make_learner(architecture, dtype)
    learner.window.max_new_tokens = lambda task: 6  # type: ignore[method-assign]
    learner.adapters.prefetch(plans)
    return learner


@pytest.fixture
def plans(make_plan: Any) -> list[AdapterPlan]:
    """One for each task, with unequal numbers of prompts to answer."""
    return [make_plan(key, leave_one_out(TASKS[i]), QUICK, i, asked(i)) for i, key in enumerate("abcd")]


def asked(index: int) -> list[Task]:
    """As many as its number and one, so that adapters are asked unequally much."""
    return [replace(TASKS[index], query=(n, 3, 1)) for n in range(index + 1)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_in_a_batch_equal_the_answers_of_each_adapter_alone(
    architecture: str, make_learner: Any, plans: Any
) -> None:
    learner = ready(make_learner, plans, architecture)
    learner.adapters.prefetch_answers(plans)
    assert len(learner.adapters.answers) == 4
    for index, plan in enumerate(plans):
        adapter, from_cache = learner.adapters.get_or_train(replace(plan, make_examples=pytest.fail))
        assert not from_cache
        before = learner.guarded.charged.forward_tokens
        ahead = learner.answer(asked(index), adapter)
        assert learner.guarded.charged.forward_tokens - before >= sum(
            len(learner.window.encode(t).ids) for t in asked(index)
        )
        learner.adapters.answers.clear()
        alone = learner.answer(asked(index), adapter)
        for one, other in zip(ahead, alone, strict=True):
            assert one.text == other.text
            assert one.scores.log_probs == pytest.approx(other.scores.log_probs, abs=1e-3)
        learner.adapters.prefetch_answers(plans)


def test_adapters_of_different_shapes_and_scales_answer_in_different_batches(
    make_learner: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner: Learner = make_learner()
    learner.window.max_new_tokens = lambda task: 6  # type: ignore[method-assign]
    recipes = [
        QUICK,
        replace(QUICK, rank=2),
        replace(QUICK, alpha=64.0),
        replace(QUICK, target_modules=("q_proj",)),
        QUICK,
    ]
    plans = [make_plan(n, leave_one_out(TASKS[1]), recipe, n, [TASKS[1]]) for n, recipe in enumerate(recipes)]
    for plan in plans:
        learner.adapters.prefetch([plan])
    sizes: list[int] = []
    real = prefetch.decode_per_adapter

    def counted(loaded: Any, prompts: Any, *more: Any) -> list[list[Generated]]:
        sizes.append(len(prompts))
        return real(loaded, prompts, *more)

    monkeypatch.setattr(prefetch, "decode_per_adapter", counted)
    learner.adapters.prefetch_answers(plans)
    assert sorted(sizes) == [1, 1, 1, 2]
    answered = []
    for plan in plans:
        adapter, _ = learner.adapters.get_or_train(replace(plan, make_examples=pytest.fail))
        before = learner.guarded.charged.seconds
        answered.append((adapter, *learner.answer([TASKS[1]], adapter)))
        assert learner.guarded.charged.seconds > before
    learner.adapters.answers.clear()
    for adapter, ahead in answered:
        (alone,) = learner.answer([TASKS[1]], adapter)
        assert ahead.scores.log_probs == pytest.approx(alone.scores.log_probs, abs=1e-3)


def test_prompts_without_a_prefetched_answer_are_decoded(make_learner: Any, plans: Any) -> None:
    learner = ready(make_learner, plans)
    learner.adapters.prefetch_answers([*plans[:2], replace(plans[2], key="unknown")])
    adapter, _ = learner.adapters.get_or_train(replace(plans[1], make_examples=pytest.fail))
    other = replace(TASKS[1], query=(9, 9, 9))
    answers = learner.answer([*asked(1), other], adapter)
    learner.clear()
    assert [a.text for a in learner.answer([*asked(1), other], adapter)] == [a.text for a in answers]


def test_where_memory_does_not_suffice_fewer_adapters_answer_at_once(
    make_learner: Any, plans: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = ready(make_learner, plans)
    real, sizes = prefetch.decode_per_adapter, []

    def narrow(loaded: Any, prompts: Any, *more: Any) -> list[list[Generated]]:
        if len(prompts) > fits:
            raise torch.OutOfMemoryError("too much")
        sizes.append(len(prompts))
        return real(loaded, prompts, *more)

    monkeypatch.setattr(prefetch, "decode_per_adapter", narrow)
    fits = 1
    learner.adapters.prefetch_answers(plans)
    assert sizes == [1] * 4
    assert len(learner.adapters.answers) == 4
    sizes.clear()
    fits = 2
    learner.adapters.prefetch_answers([replace(plan, inference_prompts=lambda: asked(0)) for plan in plans])
    assert sizes == [2, 2]
    fits = 0
    learner.adapters.answers.clear()
    learner.adapters.prefetch_answers(plans)
    assert len(learner.adapters.answers) == 0, "they answer when they are asked"


def _no_prompts() -> list[Task]:
    raise ValueError("a mistake of a strategy")


@pytest.mark.parametrize("prompts", [_no_prompts, lambda: [task_of(1, 200)]], ids=["mistake", "over-long"])
def test_a_plan_whose_prompts_fail_leaves_the_answers_of_the_others(
    prompts: Any, make_learner: Any, plans: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedModel, "batches_adapters", True)
    learner = ready(make_learner, [])
    failing = replace(plans[1], inference_prompts=prompts)
    every = [plans[0], failing, plans[2], replace(plans[0], inference_prompts=prompts)]
    assert len(learner.adapters.prefetch(every)) == 3
    assert len(learner.adapters.answers) == 2
    adapter, _ = learner.adapters.get_or_train(plans[0])
    before = learner.guarded.charged.forward_tokens
    learner.answer(asked(0), adapter)
    assert learner.guarded.charged.forward_tokens > before


@pytest.mark.parametrize("strategy", ["ttt_direct", "ttt_in_context", "ttt_augmented"])
def test_a_queue_on_an_accelerator_gets_the_same_answers_in_fewer_passes(
    strategy: str, make_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner()
    settings = replace(get_strategy(strategy), recipe=QUICK)  # type: ignore[type-var]
    monkeypatch.setattr("autottt.strategies.registry._REGISTRY", {**strategies(), strategy: settings})
    passes: list[int] = []
    handle = learner.loaded.model.register_forward_pre_hook(lambda *_: passes.append(1))
    learner = Learner(learner.loaded)  # the hook is there when the model is wrapped
    controller = Controller(learner, FixedPolicy(strategy))
    alone = controller.solve_many(TASKS)
    one_by_one = len(passes)
    learner.clear()
    monkeypatch.setattr(GuardedModel, "batches_adapters", True)
    side_by_side = controller.solve_many(TASKS)
    handle.remove()
    assert [r.text for r in side_by_side] == [r.text for r in alone]
    assert [r.adapted for r in side_by_side] == [True] * 4
    assert len(learner.adapters.answers) == 0
    assert len(passes) - one_by_one <= one_by_one - 4


def test_a_queue_of_unlike_tasks_is_trained_in_one_batch(make_learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds that take other numbers of steps, and prompts that only fit in smaller batches."""
    learner = make_learner()
    grids = [([[i, 0], [0, i]], [[0, i], [i, 0]]) for i in range(1, 5)]
    mixed = [*TASKS, make_task(grids, [[7, 0], [0, 7]], answer=[[0, 7], [7, 0]], id="grids")]
    tokens = 2 * learner.window.length(TASKS[0])
    settings = {
        kind: replace(QUICK, max_steps=steps, max_tokens_per_step=tokens) for kind, steps in (("list", 3), ("grid", 5))
    }
    recipes = {f"ttt_in_context/{kind}": recipe for kind, recipe in settings.items()}
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=recipes))
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
    assert all(t.seconds > 0 for t in spent), "each is charged the time that its tokens took"


def test_an_adapter_that_was_cut_short_belongs_to_the_plan_whose_time_was_up(make_learner: Any, make_plan: Any) -> None:
    learner: Learner = make_learner()
    short, long = (
        replace(make_plan("a", leave_one_out(TASKS[1]), QUICK), max_seconds=seconds) for seconds in (0.0, 1000.0)
    )
    (trained,) = learner.adapters.prefetch([short, long])
    assert list(trained.plans) == [short]
    cut, _ = learner.adapters.get_or_train(short)
    whole, from_cache = learner.adapters.get_or_train(long)
    assert (cut.training.steps, cut.training.stop_reason) == (0, "deadline")
    assert (whole.training.steps, whole.training.stop_reason, from_cache) == (4, "finished", False)
    assert learner.adapters.get_or_train(short)[1]


def test_the_tokens_of_an_estimate_are_charged_to_who_uses_the_adapter(make_learner: Any, make_plan: Any) -> None:
    learner: Learner = make_learner()
    plan = replace(make_plan("a", leave_one_out(TASKS[1]), QUICK), max_seconds=1000.0)
    learner.adapters.prefetch([plan])
    before = learner.guarded.charged
    adapter, _ = learner.adapters.get_or_train(plan)
    spent, record = learner.guarded.charged - before, adapter.training
    assert (spent.forward_tokens, spent.backward_tokens) == (record.tokens + record.estimate_tokens, record.tokens)
    assert record.estimate_tokens > 0
    assert spent.seconds == pytest.approx(record.seconds)
