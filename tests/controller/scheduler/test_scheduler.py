"""Queries of many threads and coroutines: the same answers as alone, precedence of easy ones, and every way to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import subprocess
import sys
import threading
import time
import types
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from autottt import BaseChangedError, Cancelled, Controller, FixedPolicy, TooLongError, make_task
from autottt.controller.scheduler import lanes
from autottt.controller.scheduler.jobs import Job
from autottt.controller.scheduler.lanes import ANSWERS_BEFORE_TRAINING, Lanes
from autottt.controller.scheduler.scheduler import Scheduler
from autottt.strategies import registry
from autottt.strategies.base import Attempt, CostClass
from autottt.strategies.registry import strategies
from autottt.ttt_core.engine.adapter_trainer import AdapterTrainer
from autottt.ttt_core.engine.answering import Answerer
from autottt.ttt_core.errors import ClosedError, DeadlineError, QueueFullError, SettingsError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = Recipe(rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, views=3)
ENDLESS = replace(QUICK, max_steps=1_000_000, early_stop_loss=0.0)
EASY = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8], answer=[8, 7], id="easy")
LONG = make_task([([n] * 90, [n] * 90) for n in range(9)], [1] * 90, id="long")
SECONDS = 60
"""How long a test waits for what must come; no test measures time."""


def hard(number: int) -> Any:
    """A task with demonstrations of its own, so that it has an adapter of its own."""
    pairs = [([number, n], [n, number]) for n in (1, 2, 3)]
    return make_task(pairs, [number, 9], answer=[9, number], id=f"hard{number}")


@pytest.fixture
def controller() -> Controller:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    learner.trainer._loaded = learner.loaded
    return Controller(learner, FixedPolicy("in_context"))


@pytest.fixture
def endless(controller) -> Controller:
    """A controller whose strategy `ttt_in_context` never ends by itself; `ttt_direct` is quick."""
    recipes = {**controller.learner.loaded.recipes, "ttt_in_context": ENDLESS}
    controller.learner.loaded = replace(controller.learner.loaded, recipes=recipes)
    return controller


class Hold:
    """An `on_event` that blocks the thread which calls it, at the first event of a kind, until it is let go."""

    def __init__(self, event: str = "phase") -> None:
        self.event, self.reached, self.released = event, threading.Event(), threading.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == self.event and not self.reached.is_set():
            self.reached.set()
            assert self.released.wait(SECONDS)

    def wait(self) -> None:
        assert self.reached.wait(SECONDS)


def until(condition: Any) -> None:
    for _ in range(SECONDS * 200):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not come true")


@pytest.fixture
def decoded(monkeypatch) -> dict[tuple[str, str], list[Any]]:
    """Of every answer that is decoded: its tokens and their log-probabilities, by task and query."""
    answers: dict[tuple[str, str], list[Any]] = defaultdict(list)
    real = Answerer._as_answer

    def as_answer(self: Answerer, task: Any, generated: Any) -> Any:
        answers[task.id, str(task.query)].append((generated.ids, generated.scores.log_probs))
        return real(self, task, generated)

    monkeypatch.setattr(Answerer, "_as_answer", as_answer)
    return answers


# --- the same answers as alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "budget"),
    [
        *((name, None) for name in ["in_context", "in_context_vote", *(n for n in strategies() if n[:3] == "ttt")]),
        *((name, "1000s") for name in ["in_context", "ttt_direct", "ttt_in_context", "ttt_crossfit"]),
    ],
)
def test_an_answer_alone_and_among_others_has_the_same_tokens_and_log_probabilities(
    controller, decoded, strategy, budget
):
    tasks = [hard(number) for number in range(5)]
    alone = [controller.solve(task, strategy=strategy, budget=budget) for task in tasks]
    answers_alone = dict(decoded)
    decoded.clear()
    controller.learner.clear()
    with controller.scheduler(batch=4) as scheduler:
        futures = [scheduler.submit(task, strategy=strategy, budget=budget) for task in tasks]
        together = [future.result(SECONDS) for future in futures]
    assert decoded.keys() == answers_alone.keys()
    for key, answers in answers_alone.items():
        assert [ids for ids, _ in decoded[key]] == [ids for ids, _ in answers]
        for (_, one), (_, other) in zip(answers, decoded[key], strict=True):
            assert other == pytest.approx(one, abs=1e-3)
    for one, other in zip(alone, together, strict=True):
        assert (other.answer, other.strategy, other.status, other.seed) == (one.answer, one.strategy, one.status, 0)
        assert [event["node"] for event in other.trace] == [event["node"] for event in one.trace]
        trained = [result.adaptation.steps if result.adaptation else 0 for result in (one, other)]
        assert trained[0] == trained[1]
        if strategy != "ttt_warm":
            assert other.cost.backward_tokens == one.cost.backward_tokens
            if budget is None:  # else a batch estimates the seconds of a step once
                assert other.cost.forward_tokens == one.cost.forward_tokens


def test_threads_and_coroutines_share_a_scheduler(controller, unchanged):
    names = ["in_context", "ttt_direct", "ttt_in_context", "ttt_crossfit"]
    queries = [(hard(number % 6), names[number % 4]) for number in range(64)]
    with unchanged(controller.learner.loaded.model, but="random state of Python"):
        alone = {(task.id, name): controller.solve(task, strategy=name).answer for task, name in queries}
        controller.learner.clear()
        with controller.scheduler() as scheduler, ThreadPoolExecutor(32) as threads:

            async def solve_all() -> list[Any]:
                return await asyncio.gather(*(scheduler.asolve(task, strategy=name) for task, name in queries[32:]))

            in_threads = [threads.submit(scheduler.solve, task, strategy=name) for task, name in queries[:32]]
            in_coroutines = asyncio.run(solve_all())
            results = [future.result(SECONDS) for future in in_threads] + in_coroutines
        assert scheduler.waiting == scheduler.running == 0
        assert controller.learner.verify(full=True).hash == controller.learner.base_hash
    assert [result.answer for result in results] == [alone[task.id, name] for task, name in queries]
    assert all(result.proof is not None for result in results)


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """How many adapters were trained together, one number for each training."""
    sizes, real = [], AdapterTrainer.adapt_many

    def adapt_many(self: AdapterTrainer, examples: Any, *given: Any, **more: Any) -> Any:
        sizes.append(len(examples))
        return real(self, examples, *given, **more)

    monkeypatch.setattr(AdapterTrainer, "adapt_many", adapt_many)
    return sizes


@pytest.mark.parametrize("budget", [None, "1000s"])
def test_the_adapters_of_a_batch_are_trained_together(controller, batches, budget):
    hold = Hold()
    with controller.scheduler(batch=4) as scheduler:
        first = scheduler.submit(hard(9), strategy="ttt_direct", on_event=hold_at_training(hold))
        hold.wait()
        others = [
            scheduler.submit(hard(number), strategy="ttt_direct", budget=budget if number % 3 else None)
            for number in range(6)
        ]
        until(lambda: len(scheduler.lanes._to_train) == 6)
        hold.released.set()
        results = [future.result(SECONDS) for future in [first, *others]]
    assert batches == [1, 4, 2]
    assert all(result.adaptation is not None for result in results)


def hold_at_training(hold: Hold) -> Any:
    """Holds the training lane, which has begun to work on a query."""
    return lambda event: hold(event) if event.get("phase") == "training" else None


def test_a_query_of_another_client_gets_an_adapter_of_its_own(controller):
    with controller.scheduler() as scheduler:
        one, two = scheduler.for_scope("one"), scheduler.for_scope("two")
        futures = [each.submit(hard(1), strategy="ttt_direct") for each in (one, two)]
        first = [future.result(SECONDS).attempts[-1].from_cache for future in futures]
        again = [each.solve(hard(1), strategy="ttt_direct").attempts[-1].from_cache for each in (one, two, scheduler)]
    assert first == [False, False]
    assert again == [True, True, False]


def test_a_decision_is_made_between_two_queries(controller):
    with controller.scheduler() as scheduler:
        decision, proof = asyncio.run(scheduler.adecide(EASY))
    assert decision.strategy == "in_context"
    assert proof.hash == controller.learner.base_hash


# --- easy queries go first --------------------------------------------------------------------------------------------


def test_an_easy_query_is_answered_while_the_training_of_others_is_in_the_middle(controller):
    hold = Hold("step")
    with controller.scheduler() as scheduler:
        futures = [scheduler.submit(hard(n), strategy="ttt_direct", on_event=hold) for n in range(4)]
        hold.wait()
        assert scheduler.solve(EASY).answer == controller.solve(EASY).answer
        assert not any(future.done() for future in futures)
        hold.released.set()
        assert [future.result(SECONDS).strategy for future in futures] == ["ttt_direct"] * 4


@pytest.mark.parametrize("queries", [1, 3])
def test_training_pauses_while_a_query_is_read_and_pauses_are_not_charged(endless, queries):
    steps, paused = threading.Event(), threading.Event()
    with endless.scheduler() as scheduler:
        precedence = scheduler.lanes.precedence
        cancel = threading.Event()
        futures = [
            scheduler.submit(
                hard(n), strategy="ttt_in_context", cancel=cancel,
                on_event=lambda event: steps.set() if event["event"] == "step" else None,
            )
            for n in range(queries)
        ]  # fmt: skip
        assert steps.wait(SECONDS)

        def wait_for_a_pause(event: dict[str, Any]) -> None:
            until(lambda: precedence.is_training_paused)
            paused.set()

        scheduler.solve(EASY, on_event=wait_for_a_pause)
        assert paused.is_set()
        assert precedence.pauses > 0
        cancel.set()
        for future in futures:
            with pytest.raises(Cancelled):
                future.result(SECONDS)


def test_the_cost_of_a_query_has_no_pauses_in_it(controller):
    hold, elapsed = Hold("step"), []
    with controller.scheduler() as scheduler:

        def on_event(event: dict[str, Any]) -> None:
            elapsed.append(scheduler.lanes.precedence.paused_seconds())
            hold(event)

        future = scheduler.submit(hard(1), strategy="ttt_direct", budget="1000s", on_event=on_event)
        hold.wait()
        reading = Hold()
        other = scheduler.submit(EASY, on_event=reading)
        reading.wait()
        hold.released.set()
        until(lambda: scheduler.lanes.precedence.is_training_paused)
        threading.Event().wait(0.5)
        reading.released.set()
        other.result(SECONDS)
        result = future.result(SECONDS)
        assert scheduler.lanes.precedence.paused_seconds() >= 0.5
    train = next(event for event in result.trace if event["node"] == "ttt_direct")
    assert train["seconds"] < elapsed[-1] + 0.5 or not elapsed
    assert result.adaptation.stop_reason == "finished"


def test_training_continues_although_there_is_always_something_to_read(controller):
    with controller.scheduler() as scheduler:
        trained = scheduler.submit(hard(1), strategy="ttt_direct")
        answers: list[Future[Any]] = []

        def again(future: Any) -> None:
            if not trained.done():
                answers.append(scheduler.submit(EASY))
                answers[-1].add_done_callback(again)

        for _ in range(ANSWERS_BEFORE_TRAINING):
            again(None)
        assert trained.result(SECONDS).strategy == "ttt_direct"
        for future in list(answers):
            future.result(SECONDS)


def test_a_query_whose_adapter_is_known_is_not_stuck_behind_training(controller):
    hold = Hold("step")
    with controller.scheduler() as scheduler:
        scheduler.solve(hard(1), strategy="ttt_direct")
        held = scheduler.submit(hard(2), strategy="ttt_direct", on_event=hold)
        hold.wait()
        result = scheduler.solve(hard(1), strategy="ttt_direct")
        assert result.attempts[-1].from_cache
        hold.released.set()
        held.result(SECONDS)


def test_a_model_without_a_replica_answers_in_turns_and_says_so(controller, caplog):
    layer = controller.learner.loaded.model.model.layers[0]
    layer.forward = types.MethodType(type(layer).forward, layer)
    learner = Learner.wrap(
        controller.learner.loaded.model, controller.learner.loaded.tokenizer, prompt_format="compact"
    )
    learner.loaded = controller.learner.loaded
    controller = Controller(learner, FixedPolicy("in_context"))
    alone = controller.solve(EASY)
    with caplog.at_level(logging.WARNING, "autottt"), controller.scheduler() as scheduler:
        futures = [scheduler.submit(hard(n), strategy="ttt_direct") for n in range(3)]
        assert scheduler.solve(EASY).answer == alone.answer
        assert [future.result(SECONDS).strategy for future in futures] == ["ttt_direct"] * 3
    assert [r.getMessage() for r in caplog.records if "has no replica" in r.getMessage()] != []


# --- order ------------------------------------------------------------------------------------------------------------


def test_queries_of_a_lower_priority_go_first(controller):
    hold, order = Hold(), []
    with controller.scheduler() as scheduler:
        scheduler.submit(EASY, on_event=hold)
        hold.wait()
        for name, priority in (("c", 1), ("a", 0), ("d", 2), ("b", 0)):
            future = scheduler.submit(replace(EASY, id=name), priority=priority)
            future.add_done_callback(lambda future: order.append(future.result().task.id))
        hold.released.set()
    assert order == ["a", "b", "c", "d"]


def test_without_a_queue_a_query_is_taken_only_if_it_is_read_at_once(controller):
    hold = Hold()
    with controller.scheduler(queue=0) as scheduler:
        assert [scheduler.solve(EASY).task for _ in range(3)] == [EASY] * 3
        held = scheduler.submit(EASY, on_event=hold)
        hold.wait()
        with pytest.raises(QueueFullError):
            scheduler.submit(EASY)
        hold.released.set()
        held.result(SECONDS)


def test_a_full_queue_refuses_and_says_when_to_try_again(controller):
    hold = Hold()
    with controller.scheduler(queue=2) as scheduler:
        held = scheduler.submit(EASY, on_event=hold)
        hold.wait()
        waiting = [scheduler.submit(hard(number)) for number in range(2)]
        with pytest.raises(QueueFullError, match="2 queries wait, which is the limit") as refused:
            scheduler.submit(EASY)
        assert refused.value.retry_after > 0
        assert (scheduler.waiting, scheduler.running) == (2, 1)
        hold.released.set()
        assert [future.result(SECONDS).status != "refused" for future in [held, *waiting]] == [True] * 3
        assert scheduler.solve(EASY).task is EASY


# --- cancelling and deadlines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_event", [False, True])
def test_a_cancelled_query_leaves_the_queue_at_once(controller, by_event):
    hold, cancel = Hold(), threading.Event()
    with controller.scheduler() as scheduler:
        held = scheduler.submit(EASY, on_event=hold)
        hold.wait()
        future = scheduler.submit(hard(1), cancel=cancel)
        if by_event:
            cancel.set()
            hold.released.set()
            with pytest.raises(Cancelled):
                future.result(SECONDS)
        else:
            assert future.cancel()
            assert scheduler.waiting == 0
            hold.released.set()
            with pytest.raises(CancelledError):
                future.result(SECONDS)
        assert held.result(SECONDS).task is EASY


@pytest.mark.parametrize("by_event", [False, True])
@pytest.mark.parametrize("others", [0, 2])
def test_a_query_cancelled_while_it_is_trained_ends_and_harms_no_other(endless, by_event, others):
    steps, cancel = threading.Event(), threading.Event()
    alone = endless.solve(hard(5), strategy="ttt_direct")
    endless.learner.clear()

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            steps.set()

    with endless.scheduler() as scheduler:
        hold = Hold()
        scheduler.submit(EASY, on_event=hold)
        hold.wait()
        quick = [scheduler.submit(hard(5 + n), strategy="ttt_direct") for n in range(others)]
        future = scheduler.submit(hard(1), strategy="ttt_in_context", cancel=cancel, on_event=on_event)
        hold.released.set()
        assert steps.wait(SECONDS)
        cancel.set() if by_event else future.cancel()
        with pytest.raises(Cancelled if by_event else CancelledError):
            future.result(SECONDS)
        results = [each.result(SECONDS) for each in quick]
        after = scheduler.solve(hard(5), strategy="ttt_direct")
    assert [result.strategy for result in results] == ["ttt_direct"] * others
    assert after.answer == alone.answer
    assert not scheduler.lanes._memory.storage


@pytest.mark.parametrize("budget", [None, "1000s"])
def test_one_of_a_batch_leaves_it_and_the_others_get_the_same_adapters(controller, budget):
    recipe = replace(QUICK, max_steps=30, early_stop_loss=0.0)
    controller.learner.loaded = replace(controller.learner.loaded, recipes=dict.fromkeys(strategies(), recipe))
    alone = [controller.solve(hard(n), strategy="ttt_direct") for n in range(3)]
    controller.learner.clear()
    steps: list[str] = []
    futures: list[Future[Any]] = []
    with controller.scheduler() as scheduler:

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                steps.append(event["tasks"][0])
                if len(steps) == 4:
                    futures[1].cancel()

        hold = Hold()
        first = scheduler.submit(hard(9), strategy="ttt_direct", on_event=hold_at_training(hold))
        hold.wait()
        futures += [
            scheduler.submit(hard(n), strategy="ttt_direct", on_event=on_event, budget=budget) for n in range(3)
        ]
        until(lambda: len(scheduler.lanes._to_train) == 3)
        hold.released.set()
        first.result(SECONDS)
        results = [future.result(SECONDS) for future in (futures[0], futures[2])]
    assert futures[1].cancelled()
    assert steps.count("hard1") < 4
    assert steps.count("hard0") == steps.count("hard2") == 30
    for result, expected in zip(results, (alone[0], alone[2]), strict=True):
        assert result.answer == expected.answer
        assert result.adaptation.losses == pytest.approx(expected.adaptation.losses, abs=1e-4)


def test_a_query_of_a_batch_whose_budget_is_used_up_stops_training_and_the_others_continue(endless, batches):
    alone = [endless.solve(hard(n), strategy="ttt_direct") for n in range(2)]
    endless.learner.clear()
    batches.clear()
    with endless.scheduler() as scheduler:
        hold = Hold()
        first = scheduler.submit(hard(9), strategy="ttt_direct", on_event=hold_at_training(hold))
        hold.wait()
        bounded = scheduler.submit(hard(5), strategy="ttt_in_context", budget="3s")
        others = [scheduler.submit(hard(n), strategy="ttt_direct", budget="1000s") for n in range(2)]
        until(lambda: len(scheduler.lanes._to_train) == 3)
        hold.released.set()
        first.result(SECONDS)
        cut, results = bounded.result(SECONDS), [future.result(SECONDS) for future in others]
        again = scheduler.solve(hard(5), strategy="ttt_in_context", budget="3s")
    assert batches == [1, 3, 1]
    for result in (cut, again):
        assert not result.attempts[-1].from_cache
        if result.adaptation is None:  # a slow machine reached the deadline within a pass, and there is no adapter
            assert "the deadline passed" in str(result.attempts[0]), (result.reason, result.attempts)
        else:
            assert result.adaptation.stop_reason == "deadline"
            assert result.strategy == "ttt_in_context"
            assert result.cost.seconds >= result.adaptation.seconds > 0
    for result, expected in zip(results, alone, strict=True):
        assert (result.answer, result.adaptation.stop_reason) == (expected.answer, "finished")
        assert result.adaptation.losses == pytest.approx(expected.adaptation.losses, abs=1e-4)


def test_seconds_of_training_in_a_batch_are_no_longer_left_for_the_answer(controller, monkeypatch):
    learner, task = controller.learner, hard(1)
    formatted = learner.formats.formatted(task)
    provider = learner.adapters
    provider.prefetch([strategies()["ttt_direct"].plan(learner, formatted, 0)])
    (key,) = provider._prefetched
    adapter = provider._prefetched[key]
    provider._prefetched[key] = replace(adapter, training=replace(adapter.training, seconds=1e6))
    real, stopped = Answerer.answers, []

    def answers(self: Answerer, tasks: Any, adapter: Any = None, *given: Any) -> Any:
        if adapter is not None:
            until(self._guarded.should_stop)
            stopped.append(True)
        return real(self, tasks, adapter, *given)

    monkeypatch.setattr(Answerer, "answers", answers)
    result = controller.solve(task, strategy="ttt_direct", budget="100000s")
    assert stopped == [True]
    assert result.cost.seconds > 1e6


def test_a_deadline_before_the_in_context_answer_is_an_error(controller):
    hold = Hold()
    with controller.scheduler() as scheduler:
        scheduler.submit(EASY, on_event=hold)
        hold.wait()
        future = scheduler.submit(hard(1), deadline=0.01)
        threading.Event().wait(0.02)
        hold.released.set()
        with pytest.raises(DeadlineError, match="before the query had an in-context answer"):
            future.result(SECONDS)


@pytest.mark.parametrize("state", ["waits", "alone", "in a batch"])
def test_a_deadline_during_training_gives_the_in_context_answer_with_the_reason(endless, state):
    in_context = endless.solve(hard(1), strategy="in_context")
    steps = threading.Event()
    with endless.scheduler() as scheduler:
        stop, blocker = threading.Event(), None
        if state == "waits":
            blocker = scheduler.submit(
                hard(8), strategy="ttt_in_context", cancel=stop,
                on_event=lambda event: steps.set() if event["event"] == "step" else None,
            )  # fmt: skip
            assert steps.wait(SECONDS)
        hold = Hold()
        scheduler.submit(EASY, on_event=hold)
        hold.wait()
        count = 2 if state == "in a batch" else 1
        futures = [scheduler.submit(hard(1 + n), strategy="ttt_in_context", deadline=1.5) for n in range(count)]
        hold.released.set()
        results = [future.result(SECONDS) for future in futures]
        stop.set()
        if blocker is not None:
            with pytest.raises(Cancelled):
                blocker.result(SECONDS)
    for result in results:
        assert result.strategy == "in_context"
        assert "the deadline passed before ttt_in_context was trained" in result.reason
        assert result.proof is not None
    assert results[0].answer == in_context.answer


def test_a_coroutine_that_is_cancelled_cancels_its_query(endless):
    steps = threading.Event()

    async def limited(scheduler: Any) -> None:
        waiting = asyncio.create_task(
            scheduler.asolve(
                hard(1), strategy="ttt_in_context", on_event=lambda e: steps.set() if e["event"] == "step" else None
            )
        )
        await asyncio.to_thread(steps.wait, SECONDS)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with endless.scheduler() as scheduler:
        asyncio.run(limited(scheduler))
        until(lambda: scheduler.running == 0)
        assert scheduler.solve(EASY).task is EASY


def test_a_stream_gives_the_events_of_its_own_query_and_the_result(controller):
    async def read(scheduler: Any, number: int) -> list[Any]:
        return [event async for event in scheduler.astream(hard(number), strategy="ttt_direct")]

    async def both(scheduler: Any) -> list[Any]:
        return await asyncio.gather(*(read(scheduler, number) for number in range(3)))

    with controller.scheduler() as scheduler:
        streams = asyncio.run(both(scheduler))
    for number, events in enumerate(streams):
        *progress, result = events
        assert {tuple(event["tasks"]) for event in progress} == {(f"hard{number}",)}
        assert {event["event"] for event in progress} == {"phase", "step", "node"}
        assert [event["step"] for event in progress if event["event"] == "step"] == [1, 2, 3]
        nodes = [event["node"] for event in progress if event["event"] == "node"]
        assert nodes == ["measure", "decide", "ttt_direct", "judge", "revert"]
        assert result.task.id == f"hard{number}"


def test_a_stream_that_is_closed_cancels_its_query(endless):
    async def read_one(scheduler: Any) -> None:
        stream = scheduler.astream(hard(1), strategy="ttt_in_context")
        async for event in stream:
            if event["event"] == "step":
                break
        await stream.aclose()

    with endless.scheduler() as scheduler:
        asyncio.run(read_one(scheduler))
        until(lambda: scheduler.running == 0)
        assert scheduler.solve(EASY).task is EASY, "the lanes are free"


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, "1000s"])
@pytest.mark.parametrize("at", ["step", "training"])
@pytest.mark.parametrize(
    "error", [KeyError("of the caller"), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()], ids=repr
)
def test_a_query_that_raises_harms_no_other(controller, budget, error, at):
    calls: list[str] = []

    def raises(event: dict[str, Any]) -> None:
        if at in (event["event"], event.get("phase")):
            calls.append(at)
            raise error

    with controller.scheduler() as scheduler:
        hold = Hold()
        first = scheduler.submit(hard(9), strategy="ttt_direct", on_event=hold_at_training(hold))
        hold.wait()
        too_long = scheduler.submit(LONG)
        broken = scheduler.submit(hard(1), strategy="ttt_direct", on_event=raises, budget=budget)
        sound = scheduler.submit(hard(2), strategy="ttt_direct", budget=budget)
        until(lambda: len(scheduler.lanes._to_train) == 2)
        hold.released.set()
        with pytest.raises(TooLongError):
            too_long.result(SECONDS)
        assert broken.exception(SECONDS) is error
        assert [f.result(SECONDS).adaptation.steps for f in (first, sound)] == [3, 3]
        assert calls == [at]
        assert controller.learner.verify(full=True).hash == controller.learner.base_hash


@dataclass(frozen=True)
class Writer:
    """A plug-in that writes to the base, past the version counter."""

    name: str = "writer"
    cost_class: CostClass = "train"
    min_demonstrations: int = 0
    recipe: Recipe | None = None
    default_recipe: ClassVar[Recipe | None] = None

    def answers_per_query(self, recipe: Recipe) -> int:
        return 1

    def attempt(self, learner: Learner, task: Any, **settings: Any) -> Attempt:
        next(learner.loaded.model.parameters()).data.view(-1)[-1] += 1
        return Attempt(self.name, None, "", 0.0)


def test_a_changed_base_is_found_and_all_work_is_refused(controller, monkeypatch):
    monkeypatch.setitem(registry._REGISTRY, "writer", Writer())
    scheduler = controller.scheduler()
    hold = Hold()
    held = scheduler.submit(hard(9), strategy="ttt_direct", on_event=hold_at_training(hold))
    hold.wait()
    futures = [scheduler.submit(hard(n), strategy=name) for n, name in enumerate(["writer", "ttt_direct"])]
    until(lambda: len(scheduler.lanes._to_train) == 2)
    hold.released.set()
    held.result(SECONDS)
    for future in futures:
        with pytest.raises(BaseChangedError):
            future.result(SECONDS)
    with pytest.raises(BaseChangedError):
        scheduler.submit(EASY)
    scheduler.close()


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"priority": "high"}, TypeError, "priority: expected a whole number"),
        ({"deadline": -1}, ValueError, "deadline: expected seconds"),
        ({"deadline": math.nan}, ValueError, "deadline: expected seconds"),
        ({"cancel": True}, TypeError, "threading.Event; received True"),
        ({"seed": "x"}, Exception, "seed"),
    ],
)
def test_an_invalid_argument_is_named(controller, settings, error, says):
    with controller.scheduler() as scheduler, pytest.raises(error, match=says):
        scheduler.submit(EASY, **settings)


def test_invalid_sizes_are_named(controller):
    with pytest.raises(ValueError, match="queue: expected a whole number of at least 0; received -1"):
        controller.scheduler(queue=-1)
    with pytest.raises(ValueError, match="batch: expected a whole number of at least 1; received 0"):
        controller.scheduler(batch=0)
    with pytest.raises(TypeError, match="expected a Task"), controller.scheduler() as scheduler:
        scheduler.submit("a task")


# --- closing ----------------------------------------------------------------------------------------------------------


def test_closing_finishes_what_was_taken_and_leaves_nothing_behind(controller, unchanged):
    before = set(threading.enumerate())
    with unchanged(controller.learner.loaded.model, but="random state of Python"):
        scheduler = controller.scheduler()
        replica = weakref.ref(scheduler.lanes._trainer.loaded.model)
        futures = [scheduler.submit(hard(n), strategy="ttt_direct") for n in range(3)]
        scheduler.close()
        assert all(future.done() for future in futures)
        assert set(threading.enumerate()) == before
        with pytest.raises(ClosedError, match="closed"):
            scheduler.submit(EASY)
    assert not scheduler.lanes._memory.storage
    del scheduler
    gc.collect()
    assert replica() is None
    assert controller.solve(EASY).task is EASY


def test_an_error_in_the_block_cancels_what_was_taken(endless):
    scheduler = endless.scheduler()
    futures = [scheduler.submit(hard(n), strategy="ttt_in_context") for n in range(3)]

    def fail() -> None:
        with scheduler:
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for future in futures:
        with pytest.raises(Cancelled, match="closed"):
            future.result(SECONDS)


def test_a_controller_closes_its_schedulers(controller):
    before = set(threading.enumerate())
    with controller:
        future = controller.scheduler().submit(EASY)
    assert future.done()
    assert set(threading.enumerate()) == before


def test_closing_a_controller_of_a_scope_leaves_the_schedulers_and_caches_of_the_others(controller):
    with controller.scheduler() as scheduler:
        scheduler.solve(EASY)
        cached = len(controller.learner.answerer.base_answers)
        with controller.for_scope("one") as scoped:
            own = scoped.scheduler()
        assert own.is_closed
        assert not scheduler.is_closed
        assert len(controller.learner.answerer.base_answers) == cached > 0
        assert scheduler.solve(EASY).status != "refused"


def within(call: Callable[[], Any]) -> Any:
    """What a call returns; where it never does, the test fails."""
    future: Future[Any] = Future()
    threading.Thread(target=lambda: future.set_result(call()), daemon=True).start()
    return future.result(SECONDS)


CALLBACKS: dict[str, Callable[[Scheduler, Callable[[Any], None]], Future[Any]]] = {
    "event of reading": lambda scheduler, back: scheduler.submit(EASY, on_event=back),
    "event of training": lambda scheduler, back: scheduler.submit(
        hard(9), strategy="ttt_direct", on_event=lambda event: back(event) if event["event"] == "step" else None
    ),
    "call": lambda scheduler, back: scheduler.call(lambda: back(None)),
    "result": lambda scheduler, back: with_callback(scheduler.submit(EASY), back),
    "result of training": lambda scheduler, back: with_callback(scheduler.submit(hard(9), strategy="ttt_direct"), back),
}


def with_callback(future: Future[Any], back: Callable[[Any], None]) -> Future[Any]:
    future.add_done_callback(back)
    return future


@pytest.mark.parametrize("cancel", [False, True], ids=["finish", "cancel"])
@pytest.mark.parametrize("has_replica", [True, False], ids=["two lanes", "in turns"])
@pytest.mark.parametrize("way", CALLBACKS)
def test_a_scheduler_may_be_closed_by_its_own_callbacks(controller, monkeypatch, way, has_replica, cancel):
    if not has_replica:
        monkeypatch.setattr(lanes, "learner_of_replica", lambda learner: None)
    scheduler, called, submitted = controller.scheduler(), threading.Event(), threading.Event()

    def close(_: Any) -> None:
        called.set()
        assert submitted.wait(SECONDS)
        scheduler.close(cancel=cancel)

    hold = Hold()
    held = scheduler.submit(EASY, on_event=hold)
    hold.wait()
    futures = [held, CALLBACKS[way](scheduler, close)]
    hold.released.set()
    assert called.wait(SECONDS)
    futures += [scheduler.submit(hard(1), strategy="ttt_direct"), scheduler.submit(EASY)]
    submitted.set()
    for future in futures[2:]:
        if cancel:
            with pytest.raises(Cancelled, match="closed"):
                future.result(SECONDS)
        else:
            assert future.result(SECONDS).status != "refused"
    until(lambda: all(future.done() for future in futures) and scheduler.is_closed)
    with pytest.raises(ClosedError):
        scheduler.submit(EASY)
    within(scheduler.close)
    assert not any(thread.is_alive() for thread in scheduler.lanes._threads)
    assert scheduler.lanes._trainer is controller.learner
    assert within(lambda: controller.solve(EASY)).status != "refused"


@pytest.mark.parametrize("way", CALLBACKS)
def test_a_callback_that_would_wait_for_itself_is_refused(controller, way):
    refused, done = list[SettingsError](), threading.Event()

    def solve(_: Any) -> None:
        if not done.is_set():
            try:
                scheduler.solve(EASY)
            except SettingsError as error:
                refused.append(error)
            done.set()

    with controller.scheduler() as scheduler:
        CALLBACKS[way](scheduler, solve).result(SECONDS)
        assert done.wait(SECONDS)
        assert "use submit, and read the result outside" in str(refused[0])
        assert within(lambda: scheduler.solve(EASY)).status != "refused"


def test_a_scheduler_may_be_used_by_who_holds_the_model(controller):
    """Its queries are part of the turn of their caller, so they need not wait for its end."""
    results = list[Any]()

    def solve(_: Any) -> None:
        with controller.scheduler() as scheduler:
            future = scheduler.submit(hard(9), strategy="ttt_direct")
            results.append(scheduler.solve(EASY))
        results.append(future.result(0))

    within(lambda: controller.solve_many([hard(1)], strategy="in_context", on_result=solve))
    with controller.learner.guarded.lock.exclusive():
        solve(None)
    with controller.scheduler() as other:  # and by a callback of another scheduler
        done = with_callback(other.submit(EASY), lambda future: solve(None) if len(results) == 4 else None)
        done.result(SECONDS)
    assert [result.status != "refused" for result in results] == [True] * 6


@pytest.mark.parametrize("way", ["solve", "another scheduler"])
def test_a_controller_may_be_closed_while_the_caller_holds_the_model(controller, way):
    scheduler, futures = controller.scheduler(), list[Any]()

    def close(event: dict[str, Any]) -> None:
        if not futures:
            futures.extend(within(lambda n=n: scheduler.submit(hard(n), strategy="ttt_direct")) for n in range(2))
        controller.close()

    if way == "solve":
        within(lambda: controller.solve(EASY, on_event=close))
    else:
        controller.scheduler().submit(EASY, on_event=close).result(SECONDS)
    assert [future.result(SECONDS).adaptation.steps for future in futures] == [3, 3]
    within(controller.close)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_make_a_scheduler_of_its_own(controller):
    with controller.scheduler() as scheduler:
        scheduler.solve(EASY)
        child = os.fork()
        if not child:
            try:
                scheduler.submit(EASY)
            except ClosedError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert scheduler.solve(EASY).task is EASY


def test_a_program_that_ends_without_closing_does_not_hang():
    program = """
import threading
from dataclasses import replace
from autottt import Controller, FixedPolicy, Learner, make_task
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer
import torch
torch.set_num_threads(2)
learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
endless = Recipe(rank=2, alpha=2, max_steps=10**6, batch_size=2, early_stop_loss=0.0)
learner.loaded = replace(learner.loaded, recipes={"ttt_direct": endless})
scheduler = Controller(learner, FixedPolicy("in_context")).scheduler()
began = threading.Event()
for n in range(2):
    task = make_task([([n, 2], [2, n]), ([3, 4], [4, 3]), ([5, 6], [6, 5])], [7, 8])
    scheduler.submit(task, strategy="ttt_direct", on_event=lambda e: began.set() if e["event"] == "step" else None)
began.wait()
print("began", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "began\n"
    assert done.returncode == 0, done.stderr


def test_a_query_is_trained_after_the_lane_that_read_it_has_left_it(controller, monkeypatch) -> None:
    """The caller's variables can be entered by one thread at a time."""
    read = Lanes._read

    def slow(self: Lanes, job: Job) -> None:
        read(self, job)
        time.sleep(0.05)  # long enough for the training lane to take the job

    monkeypatch.setattr(Lanes, "_read", slow)
    with controller.scheduler() as scheduler:
        results = [scheduler.submit(hard(number), strategy="ttt_in_context").result() for number in range(2)]
    assert all(result.strategy == "ttt_in_context" or result.attempts for result in results)
