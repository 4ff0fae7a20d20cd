"""Replays of stored runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from autottt.controller.budget import Budget
from autottt.controller.controller import Controller
from autottt.controller.replay import replay
from autottt.controller.run_facts import different_settings, outcome_settings, policy_digest
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.store import TraceStore
from autottt.policies.exploration import ExploringPolicy
from autottt.policies.policy import FixedPolicy, HeuristicPolicy
from autottt.strategies.base import Attempt
from autottt.strategies.registry import strategies
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.errors import TraceError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora import training
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer
from tests.controller.tracing.sample_traces import small_learner

TASK = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="reverse")
QUICK = Recipe(rank=2, alpha=2.0, max_steps=3, batch_size=2, transformations=2, views=3)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return small_learner(QUICK)


@pytest.fixture
def store(tmp_path) -> TraceStore:
    return TraceStore(tmp_path / "traces.sqlite")


@pytest.mark.parametrize("name", list(strategies()))
def test_a_run_of_every_strategy_is_repeated_identically(learner, store, name):
    learner.clear()
    Controller(learner, FixedPolicy(name), trace=TraceRecorder([store])).solve(TASK, seed=5)
    learner.clear()
    repeated = replay(Controller(learner), store.get("last"))
    assert [str(difference) for difference in repeated.differences] == []
    assert repeated.result.seed == 5


def test_the_decisions_of_a_run_with_a_budget_are_repeated(learner, store):
    policy = HeuristicPolicy(keep_threshold=2.0)
    learner.clear()
    result = Controller(learner, policy, trace=TraceRecorder([store])).solve(TASK, budget=1e-6)
    learner.clear()
    repeated = replay(Controller(learner, policy), store.get("last"))
    assert [event["node"] for event in repeated.result.trace] == [event["node"] for event in result.trace]
    assert repeated.is_identical


@pytest.mark.parametrize("policy", [HeuristicPolicy(), FixedPolicy("ttt_direct")], ids=lambda policy: policy.name)
@pytest.mark.parametrize("explore", [0.0, 1.0])
def test_a_run_with_a_shadow_or_exploration_is_repeated_without_them(learner, store, policy, explore):
    served = ExploringPolicy(policy, HeuristicPolicy(name="new rule", keep_threshold=0.0), explore)
    learner.clear()
    Controller(learner, served, trace=TraceRecorder([store])).solve(TASK)
    learner.clear()
    trace = store.get("last")
    facts = trace.attributes["policy"]["served"]
    assert (facts["explore"], facts["seed"]) == (explore, 0 if explore else None)
    assert facts["shadow"].startswith("new rule (")
    for other in (policy, served):
        repeated = replay(Controller(learner, other), trace)
        assert [str(difference) for difference in repeated.differences] == []
        assert repeated.trace.decisions[0]["shadow"] == trace.decisions[0]["shadow"] != ""
        learner.clear()
    asked = replay(Controller(learner, policy), trace, budget="1000x")
    assert "policy served" not in [difference.name for difference in asked.differences]


def test_settings_of_a_run_tell_shadows_and_exploration_apart(learner):
    rule = HeuristicPolicy()
    policies = [
        rule, ExploringPolicy(rule, HeuristicPolicy()), ExploringPolicy(rule, HeuristicPolicy(keep_threshold=0.1)),
        ExploringPolicy(rule, explore=0.1), ExploringPolicy(rule, explore=0.1, seed=1),
    ]  # fmt: skip
    settings = [outcome_settings(learner, policy, Budget()) for policy in policies]
    assert all(different_settings(one, other) for one, other in combinations(settings, 2))
    assert len({policy_digest(policy) for policy in policies}) == 1, "what decides where nothing is explored"


def test_a_card_of_a_callers_policy_may_have_any_entries(learner, store):
    class Carded(HeuristicPolicy):
        def card(self):
            return {"served": {1, 2}, "explore": object()}

    Controller(learner, Carded(), trace=TraceRecorder([store])).solve(TASK)
    assert "served" not in store.get("last").attributes["policy"]
    assert outcome_settings(learner, Carded(), Budget())["policy"]


def test_a_decision_for_a_cached_adapter_is_repeated_where_the_adapter_is_no_longer(learner, store):
    policy = HeuristicPolicy(keep_threshold=2.0)
    learner.clear()
    controller = Controller(learner, policy, trace=TraceRecorder([store]))
    controller.solve(TASK, strategy="ttt_augmented")
    result = controller.solve(TASK)
    assert store.get("last").adapter_costs["cached_adapters"] == {"ttt_augmented": 3.0}
    assert result.decision["strategy"] == "ttt_augmented"
    learner.clear()
    repeated = replay(Controller(learner, policy), store.get("last"))
    assert repeated.result.decision == result.decision
    assert repeated.result.answer == result.answer


TRAINED = ["ttt_in_context", "ttt_direct", "ttt_augmented", "ttt_crossfit", "ttt_warm"]


@pytest.fixture
def endless(learner, monkeypatch) -> Learner:
    """A learner whose training a deadline stops."""
    long = replace(QUICK, max_steps=40, early_stop_loss=0.0)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), long)))
    learner.clear()
    return learner


class LimitedClock:
    """The module `clock` for training, whose clock passes every deadline after a number of readings."""

    def __init__(self, readings: int) -> None:
        self.readings = readings

    def monotonic(self) -> float:
        self.readings -= 1
        return time.monotonic() + (1e9 if self.readings < 0 else 0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def training_time(monkeypatch: pytest.MonkeyPatch, readings: int) -> Iterator[None]:
    """While inside, a training with a deadline ends after a few steps, whatever the machine does."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "clock", LimitedClock(readings))
        yield


LONG = 1e6
"""A budget, in seconds, that pays for everything."""


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_that_a_deadline_stopped_is_repeated_to_the_same_step(endless, store, name, monkeypatch):
    with training_time(monkeypatch, 12):
        Controller(endless, FixedPolicy(name), trace=TraceRecorder([store])).solve(TASK, seed=5, budget=LONG)
    trace = store.get("last")
    record = trace.attempts[0]["training_record"]
    assert record["stop_reason"] == "deadline"
    assert record["steps"] > 1
    for clears in (True, False):
        if clears:
            endless.clear()
        repeated = replay(Controller(endless), trace)
        assert [str(difference) for difference in repeated.differences] == []
        assert repeated.result.attempts[0].training_record.steps == record["steps"]


def test_a_deadline_before_the_first_step_is_repeated(endless, store, monkeypatch):
    real = AdapterTrainer.adapt_many
    too_late = {"deadline": 0.0}  # of time.monotonic
    monkeypatch.setattr(AdapterTrainer, "adapt_many", lambda self, *a, **k: real(self, *a, **{**k, **too_late}))
    Controller(endless, FixedPolicy("ttt_direct"), trace=TraceRecorder([store])).solve(TASK)
    trace = store.get("last")
    assert trace.attempts[0]["training_record"]["steps"] == 0
    monkeypatch.setattr(AdapterTrainer, "adapt_many", real)
    assert replay(Controller(endless), trace).is_identical


@pytest.mark.parametrize("policy", [FixedPolicy("ttt_direct"), FixedPolicy("ttt_direct", why="the best on average")])
def test_a_fixed_policy_whose_strategy_the_budget_did_not_pay_for_is_repeated(learner, store, policy):
    Controller(learner, policy, trace=TraceRecorder([store])).solve(TASK, budget=1e-6)
    trace = store.get("last")
    assert trace.decisions[0]["strategy"] == "in_context"
    assert [str(d) for d in replay(Controller(learner, policy), trace).differences] == []


def test_what_if_stops_at_the_same_step_unless_it_sets_a_budget(endless, store, monkeypatch):
    with training_time(monkeypatch, 12):
        Controller(endless, FixedPolicy("ttt_direct"), trace=TraceRecorder([store])).solve(TASK, budget=LONG)
    trace = store.get("last")
    steps = trace.attempts[0]["training_record"]["steps"]
    for question in ({"strategy": "ttt_direct"}, {"other_policy": True}):
        asked = replay(Controller(endless, FixedPolicy("ttt_direct")), trace, **question)
        assert asked.result.attempts[0].training_record.steps == steps
        assert {d.name for d in asked.differences} <= {"budget"}
    with training_time(monkeypatch, 60):
        longer = replay(Controller(endless), trace, strategy="ttt_direct", budget=LONG)
    assert longer.result.attempts[0].training_record.steps > steps


def test_a_cached_adapter_does_not_replace_a_training_that_stops_early(learner, store, monkeypatch):
    long = replace(QUICK, max_steps=40, early_stop_loss=0.0)
    monkeypatch.setattr(learner, "loaded", replace(learner.loaded, recipes=dict.fromkeys(strategies(), long)))
    learner.clear()
    controller = Controller(learner, FixedPolicy("ttt_direct"), trace=TraceRecorder([store]))
    with training_time(monkeypatch, 12):
        controller.solve(TASK, budget=LONG)
    trace = store.get("last")
    assert trace.attempts[0]["training_record"]["stop_reason"] == "deadline"
    whole = controller.solve(TASK)
    assert whole.attempts[0].training_record.steps == 40
    assert replay(Controller(learner), trace).is_identical
    assert controller.solve(TASK).attempts[0].from_cache, "the whole adapter is still cached"


def test_another_strategy_or_budget_is_a_question_and_its_answer_differs(learner, store):
    learner.clear()
    Controller(learner, FixedPolicy("in_context"), trace=TraceRecorder([store])).solve(TASK)
    asked = replay(Controller(learner), store.get("last"), strategy="ttt_direct")
    assert "decision 1: in_context -> ttt_direct" in [str(d) for d in asked.differences]
    assert not asked.has_same_answers
    asked = replay(Controller(learner), store.get("last"), budget="3s")
    assert "budget: unlimited -> 3s" in [str(d) for d in asked.differences]


def test_another_model_another_policy_and_missing_content_are_refused(learner, store):
    policy = HeuristicPolicy(keep_threshold=2.0)
    Controller(learner, policy, trace=TraceRecorder([store])).solve(TASK, budget="1s")
    trace = store.get("last")
    other = Learner.wrap(tiny_model("llama", 1), tiny_tokenizer(), prompt_format="compact")
    with pytest.raises(TraceError, match="is of the model"):
        replay(Controller(other, policy), trace)
    with pytest.raises(TraceError, match="was decided by the policy"):
        replay(Controller(learner, HeuristicPolicy()), trace)
    assert replay(Controller(learner, HeuristicPolicy()), trace, other_policy=True).trace.decisions
    Controller(learner, policy, trace=TraceRecorder([store], content=False)).solve(TASK, budget="1s")
    with pytest.raises(TraceError, match="without the content"):
        replay(Controller(learner, policy), store.get("last"))


def test_an_answer_after_training_that_gave_way_to_a_more_certain_one_gives_way_again(learner, store, monkeypatch):
    sure, doubtful = Attempt("in_context", (1,), "1", 1.0), Attempt("ttt_in_context", (2,), "2", 0.5)
    monkeypatch.setattr("autottt.policies.measurement.from_answer", lambda name, answer: sure)
    monkeypatch.setattr("autottt.strategies.ttt_in_context.from_answer", lambda name, answer: doubtful)
    policy = HeuristicPolicy(keep_threshold=2.0)
    learner.clear()
    result = Controller(learner, policy, trace=TraceRecorder([store])).solve(TASK)
    assert (result.decision["strategy"], result.strategy) == ("ttt_in_context", "in_context")
    learner.clear()
    repeated = replay(Controller(learner, policy), store.get("last"))
    assert (repeated.result.strategy, repeated.result.answer) == ("in_context", (1,))
