"""Queries that share an adapter are each charged for it as if nothing were cached, and it is trained once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autottt.strategies.adapter_training import PlansAdapter
from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy, strategies
from autottt.ttt_core.engine.cost import Cost
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.tasks.task import Task

TRAINING = sorted(name for name in strategies() if isinstance(get_strategy(name), PlansAdapter))


@pytest.mark.parametrize("name", TRAINING)
def test_an_adapter_is_trained_once_and_costs_every_query_the_same(name: str, make_learner: Any, task: Task) -> None:
    learner: Learner = make_learner()
    strategy = get_strategy(name)
    costs, attempts = [], []
    for _ in range(3):
        learner.reset_charges()
        meter = learner.guarded.meter()
        attempts.append(run(strategy, learner, task, seed=0))
        costs.append(meter.read())
    assert [attempt.from_cache for attempt in attempts] == [False] * 3
    records = [attempt.training_record for attempt in attempts]
    assert records[0] is records[1] is records[2], "it was trained again"
    assert {(c.forward_tokens, c.backward_tokens) for c in costs} == {
        (costs[0].forward_tokens, costs[0].backward_tokens)
    }
    assert costs[0].backward_tokens > 0
    trained = records[0].seconds + records[0].evaluation_seconds
    assert trained > 0
    assert all(cost.seconds > trained for cost in costs)


def test_what_evaluating_the_folds_costs_is_recorded_and_stored(make_learner: Any, task: Task, tmp_path: Any) -> None:
    learner: Learner = make_learner()
    strategy: Any = get_strategy("ttt_crossfit")
    meter = learner.guarded.meter()
    adapter, _ = learner.adapters.get_or_train(strategy.plan(learner, task, 0))
    spent, record = meter.read(), adapter.training
    assert record.evaluation_tokens > 0
    assert spent.forward_tokens == record.tokens + record.estimate_tokens + record.evaluation_tokens
    assert 0 < record.evaluation_seconds < record.seconds + record.evaluation_seconds <= spent.seconds
    adapter.save(tmp_path / "adapter.safetensors")
    assert Adapter.load(tmp_path / "adapter.safetensors").training == record


def test_an_adapter_that_does_not_tell_its_cost_is_trained_again(make_learner: Any, task: Task) -> None:
    """As a folder of adapters holds it that an earlier version has filled."""
    learner: Learner = make_learner()
    strategy: Any = get_strategy("ttt_crossfit")
    plan = strategy.plan(learner, task, 0)
    adapter, _ = learner.adapters.get_or_train(plan)
    ((key, cached),) = learner.adapters.cache.clear()
    assert cached is adapter
    old = replace(adapter, training=replace(adapter.training, evaluation_tokens=0, evaluation_seconds=0.0))
    learner.adapters.cache.put(key, old)
    learner.reset_charges()
    again, from_cache = learner.adapters.get_or_train(strategy.plan(learner, task, 0))
    assert not from_cache
    assert again.training.evaluation_tokens == adapter.training.evaluation_tokens > 0


def test_an_adapter_without_folds_has_no_evaluation(make_learner: Any, task: Task) -> None:
    learner: Learner = make_learner()
    strategy: Any = get_strategy("ttt_direct")
    adapter, _ = learner.adapters.get_or_train(strategy.plan(learner, task, 0))
    assert (adapter.training.evaluation_tokens, adapter.training.evaluation_seconds) == (0, 0.0)
    learner.reset_charges()
    before = learner.guarded.charged
    learner.adapters.get_or_train(strategy.plan(learner, task, 0))
    spent = learner.guarded.charged - before
    assert spent == Cost(adapter.training.seconds, adapter.training.tokens, adapter.training.tokens)
